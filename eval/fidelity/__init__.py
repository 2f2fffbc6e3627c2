"""How far FPS attention moves videos."""
