"""How far FPS attention moves videos."""

from train.common.start import start

start("eval.fidelity.command")
