"""Measure on the machine at hand, with random weights and inputs in the real sizes."""

from train.common.start import start

start("eval.bench.command")
