"""The schedules that nothing beats: for each density the least error, out of all bounds and choices of regimes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, groupby

import numpy as np

MOST_CUTS = 50


@dataclass(frozen=True)
class Choice:
    """A candidate for each of the sampler's steps. density, error: means over them."""

    density: float
    error: float
    of_step: tuple[int, ...]

    def stretches(self) -> Iterator[tuple[int, int]]:
        """(first step, candidate) of all steps in a row that have the same."""
        for candidate, steps in groupby(range(len(self.of_step)), key=self.of_step.__getitem__):
            yield next(steps), candidate


def find_front(
    errors: np.ndarray, densities: np.ndarray, among: Sequence[int], most_cuts: int = MOST_CUTS
) -> list[Choice]:
    """Schedules of up to three regimes, as the paper's, in ascending density, each with less error than all before.

    errors: [step, candidate]. densities: [candidate]. among: candidates that may be chosen. most_cuts: places between
    steps where a regime may begin.
    """
    able, steps = np.array(among)[_undominated(errors[:, among], densities[among])], len(errors)
    cuts = np.unique(np.linspace(0, steps, min(steps, most_cuts) + 1).round().astype(int))
    before = np.concatenate([np.zeros((1, len(able))), errors[:, able].cumsum(0)])  # sums up to a cut
    found = []
    for one, other in combinations_with_replacement(cuts[:-1], 2):
        density = _sums(*(length * densities[able] for length in (one, other - one, steps - other)))
        error = _sums(before[one], before[other] - before[one], before[-1] - before[other])
        for i in _undominated_points(density, error):
            early, middle, late = able[np.stack(np.unravel_index(i, [len(able)] * 3))]
            found.append(
                (density[i] / steps, error[i] / steps, (one, other - one, steps - other), (early, middle, late))
            )
    kept = _undominated_points(np.array([x[0] for x in found]), np.array([x[1] for x in found]))
    return [
        Choice(float(density), float(error), tuple(np.repeat(candidates, lengths).tolist()))
        for density, error, lengths, candidates in (found[i] for i in kept)
    ]


def _sums(early: np.ndarray, middle: np.ndarray, late: np.ndarray) -> np.ndarray:
    """Of all triples of candidates, flat."""
    return (early[:, None, None] + middle[:, None] + late).ravel()


def _undominated(errors: np.ndarray, densities: np.ndarray) -> np.ndarray:
    """The candidates but for those that another one beats or equals in density and at every step."""
    count = len(densities)
    as_good = (densities[:, None] <= densities) & (errors[:, :, None] <= errors[:, None]).all(0)
    equal = as_good & as_good.T
    beaten = as_good & (~equal | np.triu(np.ones((count, count), dtype=bool), 1))  # of equal ones the first stays
    return np.flatnonzero(~beaten.any(0))


def _undominated_points(density: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Indices in ascending density, where the error is less than at all before."""
    order = np.lexsort((error, density.round(9)))
    least = np.minimum.accumulate(error[order])
    return order[np.concatenate([[True], error[order][1:] < least[:-1]])]


def pick_density(front: list[Choice], most: float) -> Choice | None:
    """The least error within a mean density."""
    return max((x for x in front if x.density <= most + 1e-9), key=lambda x: x.density, default=None)
