"""How sensitive a model is to FPS attention, by step, layer and head; and schedules that follow from it."""
