"""Which of a run's processes this one is, as torchrun, SLURM and Lightning tell it."""

from __future__ import annotations

import os


def rank_and_world() -> tuple[int, int]:
    """This process's rank and how many there are, under torchrun."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def speaks() -> bool:
    """Whether this process is the one of a run that speaks to its user."""
    ranks = [os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if os.environ.get(name)]
    return not ranks or ranks[0] == "0"
