"""A schedule for each layer: where a density of the whole model is best spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from .fronts import Choice, find_front

MOST_CUTS = 10  # places between steps where a layer's regime may begin

Choices = tuple[Choice, ...]  # one per layer


def find_layer_front(parts: np.ndarray, densities: np.ndarray, among: list[int]) -> Iterator[Choices]:
    """From the sparsest choices of all layers on, step by step, to those with the least error.

    Each step takes the layer and the denser choice that lower the sum of errors most for what they add to the density,
    which is optimal where a step ends. parts: each layer's part in the error [step, candidate, layer].
    """
    hulls = [_hull(find_front(x, densities, among, MOST_CUTS)) for x in parts.transpose(2, 0, 1)]
    chosen = [hull[0] for hull in hulls]
    yield tuple(chosen)
    steps = [(_slope(one, other), layer, i) for layer, hull in enumerate(hulls)
             for i, (one, other) in enumerate(zip(hull[:-1], hull[1:], strict=True), start=1)]  # fmt: skip
    for _, layer, i in sorted(steps):  # slopes of a hull ascend, so its steps come in their order
        chosen[layer] = hulls[layer][i]
        yield tuple(chosen)


def _slope(one: Choice, other: Choice) -> float:
    return (other.error - one.error) / (other.density - one.density)


def _hull(front: list[Choice]) -> list[Choice]:
    """The lower convex hull of a front."""
    hull: list[Choice] = []
    for choice in front:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def mean_density(choices: Choices) -> float:
    return sum(one.density for one in choices) / len(choices)


def sum_errors(choices: Choices) -> float:
    return sum(one.error for one in choices)


def last_within(front: list[Choices], most: float) -> Choices | None:
    """The least error within a mean density of the layers."""
    return next((choices for choices in reversed(front) if mean_density(choices) <= most + 1e-9), None)


def first_within(front: list[Choices], most: float) -> Choices | None:
    """The least density within a sum of errors."""
    return next((choices for choices in front if sum_errors(choices) <= most * (1 + 1e-9)), None)


def name_ranges(choices: Choices) -> tuple[Choice, dict[str, Choice]]:
    """The commonest choice, and by ranges of layers ("3", "4-7") all that differ from it."""
    common = Counter(one.of_step for one in choices).most_common(1)[0][0]
    ranges, first = {}, 0
    for layer in range(1, len(choices) + 1):
        if layer == len(choices) or choices[layer].of_step != choices[first].of_step:
            if choices[first].of_step != common:
                ranges[f"{first}-{layer - 1}" if layer - 1 > first else str(first)] = choices[first]
            first = layer
    return next(one for one in choices if one.of_step == common), ranges
