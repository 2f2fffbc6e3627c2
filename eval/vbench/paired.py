"""Differences of the same videos of two runs, and how certain they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ..intervals import FEWEST, Estimate, Sample, estimate, holm
from .aggregate import SHARES, combine_samples
from .suite import DIMENSIONS
from .values import YES_OR_NO, Result, by_prompt, find_prompt

ALPHA = 0.05  # how often, at the most, one of a table's verdicts is by chance
SAME = "the same scores"
Verdict = Literal["the same scores", "better", "worse", "not told apart", "too few prompts", "a quick run"]


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


def compare(
    first: Mapping[str, Result], other: Mapping[str, Result], groups: tuple[str, ...], quick: bool = False
) -> dict[str, Difference]:
    """By dimension, in the units of the scores; then of these groups' totals, and of the total where it is both.

    groups: those that both runs have complete. quick: whether one of the runs is.
    """
    both = find_both(first, other)
    samples = {name: sample for name, results in both.items() if (sample := pair(*results)).values}
    estimates = {name: estimate(sample) for name, sample in samples.items()}
    parts = {name: (name,) for name in samples}
    wanted = {*groups, "total"} if {*groups} == {"quality", "semantic"} else {*groups}
    for group, one in combine_samples(samples, differences=True).items():
        if group in wanted:
            estimates[group], parts[group] = one, tuple(SHARES[group])
    values = (value for sample in samples.values() for those in sample.values.values() for value in those)
    if any(name not in YES_OR_NO for name in samples) and not any(values):  # of yes and no alone, two models' may be so
        estimates = {name: replace(one, low=None, high=None, p=None) for name, one in estimates.items()}
    tested = [name for name, one in estimates.items() if one.p is not None]
    adjusted = dict(zip(tested, holm(estimates[name].p for name in tested), strict=True))
    results = {name: [both[part] for part in those] for name, those in parts.items()}
    return {name: _judge(one, adjusted.get(name), results[name], quick) for name, one in estimates.items()}


def find_both(first: Mapping[str, Result], other: Mapping[str, Result]) -> dict[str, tuple[Result, Result]]:
    """Those of the dimensions that two runs have."""
    return {name: (first[name], other[name]) for name in DIMENSIONS if name in first and name in other}


def match(first: Result, other: Result) -> dict[str, tuple[float, float]]:
    """Both values of the videos that both have, by file name and in its order."""
    ours, theirs = first.per_video(), other.per_video()
    return {name: (ours[name], theirs[name]) for name in sorted(ours.keys() & theirs.keys())}


def pair(first: Result, other: Result) -> Sample:
    """Differences of the videos that both have, by prompt; one of two lengths weighs as their mean."""
    both = match(first, other)
    values = by_prompt({name: theirs - ours for name, (ours, theirs) in both.items()})
    weights = {name: (first.weights.get(name, 1.0) + other.weights.get(name, 1.0)) / 2 for name in both}
    reach = 1 - DIMENSIONS[first.dimension].least
    return Sample(values, -reach, reach, by_prompt(weights) if first.weights and other.weights else {})


def _judge(one: Estimate, p: float | None, results: list[tuple[Result, Result]], quick: bool) -> Difference:
    """A verdict takes enough prompts, a p that stands among all rows, and an interval that leaves out 0.

    p: adjusted. results: both runs' in the dimensions that the mean is over.
    """
    sides = [({*first.videos}, {*other.videos}) for first, other in results]
    kinds = zip(*((ours & theirs, ours - theirs, theirs - ours) for ours, theirs in sides), strict=True)
    both, *alone = (len(set().union(*names)) for names in kinds)
    verdict: Verdict = "not told apart"
    if one.p is None and not one.mean and one.prompts > 1:
        verdict = SAME
    elif quick:
        verdict = "a quick run"
    elif any(len({*map(find_prompt, ours & theirs)}) < FEWEST for ours, theirs in sides):
        verdict = "too few prompts"
    elif p is not None and p < ALPHA and not one.low <= 0 <= one.high:
        verdict = "better" if one.mean > 0 else "worse"
    return Difference(one.mean, one.low, one.high, p, both, one.prompts, verdict, *alone)
