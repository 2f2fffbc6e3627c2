"""How sensitive a model is to FPS attention, by step, layer and head; and schedules that follow from it."""

from train.common.start import start

start("eval.sensitivity.command")
