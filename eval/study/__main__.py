"""The study: a small Wan trained dense from nothing, then row by row with FPS attention, and what that does."""

from train.common.start import start

start("eval.study.command")
