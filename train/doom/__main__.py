"""Captioned clips of Freedoom.

python -m train.doom --out CLIPS --clips 9000
"""

from ..common.start import start

start("train.doom.command")
