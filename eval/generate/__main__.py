"""From prompts to videos."""

from train.common.start import start

start("eval.generate.command")
