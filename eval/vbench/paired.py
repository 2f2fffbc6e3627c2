"""Differences of the same videos of two runs, and how certain they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

from ..intervals import FEWEST, Estimate, Sample, estimate, holm
from .aggregate import SHARES, combine_samples
from .suite import DIMENSIONS
from .values import YES_OR_NO, Result, find_prompt

ALPHA = 0.05  # how often, at the most, one of a table's verdicts is by chance
SAME = "the same scores"
Verdict = Literal[
    "the same scores", "better", "worse", "not told apart", "too few prompts", "a quick run"
]  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """How far another run's videos score above the first run's, of the same prompts and seeds.

    low, high: of the confidence interval of the mean; None for one prompt, and where all scores are the same. p:
    adjusted for all rows of the table, None without an interval. videos, prompts: that both have; only_first,
    only_other: videos that one of them alone has.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    videos: int
    prompts: int
    verdict: Verdict
    only_first: int = 0
    only_other: int = 0


@dataclass(frozen=True)
class Pairs:
    """The videos of two runs in some dimensions: those that both have, and those of one alone."""

    both: frozenset[str]
    only_first: frozenset[str]
    only_other: frozenset[str]
    fewest: int

    @classmethod
    def of(cls, first: Result, other: Result) -> Pairs:
        ours, theirs = frozenset(first.videos), frozenset(other.videos)
        prompts = {find_prompt(name) for name in ours & theirs}
        return cls(ours & theirs, ours - theirs, theirs - ours, len(prompts))

    def join(self, other: Pairs) -> Pairs:
        """fewest: prompts of any dimension."""
        return Pairs(
            self.both | other.both,
            self.only_first | other.only_first,
            self.only_other | other.only_other,
            min(self.fewest, other.fewest),
        )


def compare(
    first: Mapping[str, Result], other: Mapping[str, Result], groups: tuple[str, ...], quick: bool = False
) -> dict[str, Difference]:
    """By dimension, in the units of the scores; then of these groups' totals, and of the total where it is both.

    groups: those that both runs have complete. quick: whether one of the runs is.
    """
    both = [name for name in DIMENSIONS if name in first and name in other]
    pairs = {name: found for name in both if (found := Pairs.of(first[name], other[name])).both}
    samples = {name: pair(first[name], other[name]) for name in pairs}
    found = {name: estimate(sample) for name, sample in samples.items()}
    wanted = {*groups, "total"} if {*groups} == {"quality", "semantic"} else {*groups}
    for group, one in combine_samples(samples, differences=True).items():
        if group in wanted:
            found[group] = one
            pairs[group] = reduce(Pairs.join, (pairs[name] for name in SHARES[group]))
    if _are_the_same(samples):
        found = {name: replace(one, low=None, high=None, p=None) for name, one in found.items()}
    tested = [name for name, one in found.items() if one.p is not None]
    adjusted = dict(zip(tested, holm(found[name].p for name in tested), strict=True))
    return {name: _judge(one, adjusted.get(name), pairs[name], quick) for name, one in found.items()}


def _are_the_same(samples: Mapping[str, Sample]) -> bool:
    """Whether two runs give each video the same score. Of yes and no alone, two models' may be alike too."""
    told = any(name not in YES_OR_NO for name in samples)
    return told and not any(value for sample in samples.values() for those in sample.values.values() for value in those)


def pair(first: Result, other: Result) -> Sample:
    """Differences of the videos that both have, by prompt; one of two lengths weighs as their mean."""
    ours, theirs = first.per_video(), other.per_video()
    values: dict[str, list[float]] = {}
    weights: dict[str, list[float]] = {}
    for name in sorted(ours.keys() & theirs.keys()):
        values.setdefault(find_prompt(name), []).append(theirs[name] - ours[name])
        weight = (first.weights.get(name, 1.0) + other.weights.get(name, 1.0)) / 2
        weights.setdefault(find_prompt(name), []).append(weight)
    reach = 1 - DIMENSIONS[first.dimension].least
    return Sample(values, -reach, reach, weights if first.weights and other.weights else {})


def _judge(found: Estimate, p: float | None, pairs: Pairs, quick: bool) -> Difference:
    """A verdict takes enough prompts, a p that stands among all rows, and an interval that leaves out 0."""
    verdict: Verdict = "not told apart"
    if found.p is None and not found.mean and found.prompts > 1:
        verdict = SAME
    elif quick:
        verdict = "a quick run"
    elif pairs.fewest < FEWEST:
        verdict = "too few prompts"
    elif p is not None and p < ALPHA and not found.low <= 0 <= found.high:
        verdict = "better" if found.mean > 0 else "worse"
    alone = len(pairs.only_first), len(pairs.only_other)
    return Difference(found.mean, found.low, found.high, p, len(pairs.both), found.prompts, verdict, *alone)
