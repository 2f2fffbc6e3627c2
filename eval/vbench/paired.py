"""Differences of the same videos of two runs, and how certain they are."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .aggregate import GROUPS, QUALITY_WEIGHT, SEMANTIC_WEIGHT
from .results import Result
from .suite import DIMENSIONS

RESAMPLES, CONFIDENCE = 10_000, 0.95


@dataclass(frozen=True)
class Difference:
    """How far another run's videos score above the first run's, of the same prompts and seeds.

    low, high: of the confidence interval of the mean; None for fewer than two prompts.
    """

    mean: float
    low: float | None
    high: float | None
    videos: int
    prompts: int

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and (self.low > 0 or self.high < 0)


def pair(first: Result, other: Result) -> tuple[Difference, np.ndarray] | None:
    """The mean over the videos that both have, and RESAMPLES means of prompts drawn again; None for no common video.

    Whole prompts are drawn, with all their videos, because the videos of a prompt are alike. The draws are the same
    for dimensions of as many prompts, so those of the same prompts stay together in the totals.
    """
    ours, theirs = first.per_video(), other.per_video()
    prompts: dict[str, list[float]] = defaultdict(list)
    for name in sorted(ours.keys() & theirs.keys()):
        prompts[re.sub(r"-\d+\.\w+$", "", name)].append(theirs[name] - ours[name])
    if not prompts:
        return None
    sums, counts = (np.array([of(values) for values in prompts.values()], dtype=float) for of in (sum, len))
    drawn = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = find_interval(means) if len(sums) > 1 else (None, None)
    return Difference(float(sums.sum() / counts.sum()), low, high, int(counts.sum()), len(sums)), means


def find_interval(draws: np.ndarray) -> tuple[float, float]:
    """The middle CONFIDENCE of the draws."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, (tail, 1 - tail))
    return float(low), float(high)


def compare(first: Mapping[str, Result], other: Mapping[str, Result], groups: tuple[str, ...]) -> dict[str, Difference]:
    """By dimension, in the units of the scores; then of these groups' totals, and of the Total where it is both.

    groups: those that both runs have complete.
    """
    both = [name for name in DIMENSIONS if name in first and name in other]
    pairs = {name: paired for name in both if (paired := pair(first[name], other[name])) is not None}
    found = {name: difference for name, (difference, _) in pairs.items()}
    shifts = {group: _shift(group, pairs) for group in groups if pairs.keys() >= {*GROUPS[group]}}
    if len(shifts) == len(GROUPS):
        whole = QUALITY_WEIGHT + SEMANTIC_WEIGHT
        shifts["total"] = tuple(
            (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / whole
            for quality, semantic in zip(shifts["quality"], shifts["semantic"], strict=True)
        )
    for group, (mean, draws) in shifts.items():
        parts = [found[name] for name in GROUPS.get(group, tuple(DIMENSIONS))]
        videos, prompts = sum(part.videos for part in parts), sum(part.prompts for part in parts)
        found[group] = Difference(float(mean), *find_interval(draws), videos, prompts)
    return found


def _shift(group: str, pairs: Mapping[str, tuple[Difference, np.ndarray]]) -> tuple[float, np.ndarray]:
    """The difference of a group's normalised mean, and its draws."""
    of = [DIMENSIONS[name] for name in GROUPS[group]]
    whole = sum(dimension.weight for dimension in of)
    share = {x.name: x.weight / whole / (x.maximum - x.minimum) for x in of}
    mean = sum(share[name] * pairs[name][0].mean for name in share)
    return mean, sum(share[name] * pairs[name][1] for name in share)
