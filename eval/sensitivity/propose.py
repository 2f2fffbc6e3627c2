"""Schedules out of what was measured: the least error at a density, or the least density within an error."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import get_args

import numpy as np

from fps_flex.checks import at_home, require
from fps_flex.quant import CodeFormat
from train.common.atomic import check_ours, write_text
from train.common.console import check_writable

from ..markdown import table
from .fragment import describe_use, fragment
from .fronts import Choice, find_front, pick_density
from .layerwise import Choices, find_layer_front, first_within, last_within, mean_density, sum_errors
from .predict import over_steps, share_out
from .result import FILE, Sensitivity, read
from .tables import compare_presets, percent

FRAGMENT = "schedule.yaml"
CODES: tuple[CodeFormat, ...] = get_args(CodeFormat)


@dataclass(frozen=True)
class Goal:
    """budget: the most mean density. error: the most error of the velocity, as a share of its norm. One of them."""

    budget: float | None
    error: float | None

    def __post_init__(self) -> None:
        if (self.budget is None) == (self.error is None):
            given = "neither" if self.budget is None else "both"
            raise ValueError(f"{given} of --budget and --error given, expected one: a density, or an error to keep to")
        if self.budget is not None:
            require("budget", self.budget, above=0, most=1)
        if self.error is not None:
            require("error", self.error, above=0)

    @property
    def relative_mse(self) -> float:
        return self.error**2


class OutOfReach(ValueError):
    """least: the density, or the relative MSE, that can be reached."""

    def __init__(self, goal: Goal, least: float) -> None:
        self.least = least
        if goal.budget is not None:
            super().__init__(
                f"budget is {goal.budget:g}, expected at least {least:.4f}, the density of the sparsest window tried: "
                "measure sparser ones with --windows, or raise the budget"
            )
        else:
            super().__init__(
                f"error is {goal.error:g}, expected at least {sqrt(least):.4f}, the least of all that was measured: "
                "measure other --windows or --granularities, or allow more"
            )


def propose(
    folder: Path,
    budget: float | None = None,
    error: float | None = None,
    layers: bool = False,
    quantize: bool = True,
    out: Path | None = None,
) -> None:
    """Find the bounds and regimes with the least predicted velocity error at a mean density, or the other way round.

    Args:
        folder: with the sensitivity.json of python -m eval.sensitivity.
        budget: the most mean density over a sampler's steps: 0.15 computes 15 % of all token pairs.
        error: in place of a budget, the most root mean squared error of the velocity, as a share of its norm.
        layers: a schedule for each layer.
        quantize: choose regimes with FP8; false chooses windows alone.
        out: file to write; none takes schedule.yaml in the folder.
    """
    folder, goal = at_home(folder), Goal(budget, error)
    measured = read(folder)
    path = at_home(out) if out else folder / FRAGMENT
    check_writable(path.parent, "--out")
    check_ours(path)
    candidates = measured.list_candidates()
    able = [i for i, one in enumerate(candidates) if (one.regime.granularity is not None) == quantize]
    if not able:
        raise ValueError(f"{folder / FILE} has no window but the whole, expected some with --quantize false")
    of_codes = {codes: [i for i in able if candidates[i].codes == codes] for codes in CODES}
    codes, chosen = choose_codes(measured, goal, layers, {codes: among for codes, among in of_codes.items() if among})
    write_text(path, fragment(measured, chosen, codes))
    print(describe(measured, chosen, codes, of_codes[codes]))
    print(f"\n{describe_use(measured, path, chosen, codes)}")


def choose_codes(
    measured: Sensitivity, goal: Goal, layers: bool, of_codes: dict[CodeFormat, list[int]]
) -> tuple[CodeFormat, Choices]:
    """The better of the codes, of which an attention has one kind, and what is chosen in them.

    of_codes: the candidates that may be chosen. Raises ValueError as `choose`, where none reaches the goal.
    """
    found, missed = {}, []
    for codes, among in of_codes.items():
        try:
            found[codes] = choose(measured, goal, among, layers)
        except OutOfReach as error:
            missed.append(error)
    if not found:
        raise min(missed, key=lambda error: error.least)
    costs = {x: (mean_density(found[x]), sum_errors(found[x])) for x in found}
    best = min(found, key=lambda x: costs[x] if goal.budget is None else costs[x][::-1])
    return best, found[best]


def densities_of(measured: Sensitivity) -> np.ndarray:
    """Of each candidate."""
    return np.array([one.density for one in measured.list_candidates()])


def front_of(measured: Sensitivity, among: list[int]) -> list[Choice]:
    return find_front(over_steps(measured, measured.velocity_mse), densities_of(measured), among)


def choose(measured: Sensitivity, goal: Goal, among: list[int], layers: bool) -> Choices:
    """One for all layers, or one for each.

    Raises OutOfReach where the goal can't be reached, and ValueError where layers weren't measured one at a time.
    """
    if layers:
        front = [*find_layer_front(over_steps(measured, share_out(measured)), densities_of(measured), among)]
    else:
        front = [(one,) for one in front_of(measured, among)]
    if goal.budget is not None:
        found, least = last_within(front, goal.budget), mean_density(front[0])
    else:
        found, least = first_within(front, goal.relative_mse), sum_errors(front[-1])
    if found is None:
        raise OutOfReach(goal, least)
    return found


def describe(measured: Sensitivity, chosen: Choices, codes: CodeFormat, among: list[int]) -> str:
    """A table: the proposal, and the presets beside the least error at each one's density."""
    front = front_of(measured, among)
    own = (f"{mean_density(chosen):.3f}", percent(sum_errors(chosen)))
    same = pick_density(front, mean_density(chosen))
    rows = [("proposed", *own, percent(same.error) if same else "none"), *compare_presets(measured, front, codes)]
    return table(("schedule", "mean density", "predicted velocity error", "least at that density"), rows, "lrrr")
