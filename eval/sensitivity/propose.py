"""Schedules out of what was measured: the least error at a density, or the least density within an error."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np

from fps_flex.checks import at_home, require
from train.common.atomic import check_ours, write_text
from train.common.console import check_writable

from ..markdown import table
from .fragment import describe_use, fragment
from .fronts import Choice, find_front, pick_density, pick_error
from .layerwise import Choices, find_layer_front, first_within, last_within, mean_density, sum_errors
from .predict import over_steps, share_out
from .result import FILE, Sensitivity, read
from .tables import compare_presets, percent

FRAGMENT = "schedule.yaml"


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
    among = [i for i, one in enumerate(candidates) if (one.regime.granularity is not None) == quantize]
    if not among:
        raise ValueError(f"{folder / FILE} has no window but the whole, expected some with --quantize false")
    errors = over_steps(measured, measured.velocity_mse)
    front = find_front(errors, densities_of(measured), among)
    chosen = choose_by_layer(measured, goal, among) if layers else (choose(front, goal),)
    write_text(path, fragment(measured, chosen))
    print(describe(measured, errors, front, chosen))
    print(f"\n{describe_use(measured, path)}")


def densities_of(measured: Sensitivity) -> np.ndarray:
    """Of each candidate."""
    return np.array([one.density for one in measured.list_candidates()])


def choose(front: list[Choice], goal: Goal) -> Choice:
    """Raises ValueError where the goal can't be reached, with what can."""
    if goal.budget is not None:
        return pick_density(front, goal.budget) or _refuse_budget(goal.budget, front[0].density)
    return pick_error(front, goal.relative_mse) or _refuse_error(goal.error, front[-1].error)


def choose_by_layer(measured: Sensitivity, goal: Goal, among: list[int]) -> Choices:
    """Raises ValueError as `choose`, and where layers weren't measured one at a time."""
    front = [*find_layer_front(over_steps(measured, share_out(measured)), densities_of(measured), among)]
    if goal.budget is not None:
        return last_within(iter(front), goal.budget) or _refuse_budget(goal.budget, mean_density(front[0]))
    return first_within(iter(front), goal.relative_mse) or _refuse_error(goal.error, sum_errors(front[-1]))


def _refuse_budget(budget: float, least: float):
    raise ValueError(
        f"budget is {budget:g}, expected at least {least:.4f}, the density of the sparsest window that was measured: "
        "measure sparser ones with --windows, or raise the budget"
    )


def _refuse_error(error: float, least: float):
    raise ValueError(
        f"error is {error:g}, expected at least {sqrt(least):.4f}, the least of all that was measured: measure other "
        "--windows or --granularities, or allow more"
    )


def describe(measured: Sensitivity, errors: np.ndarray, front: list[Choice], chosen: Choices) -> str:
    """A table: the proposal, and the presets beside the least error at each one's density."""
    own = (f"{mean_density(chosen):.3f}", percent(sum_errors(chosen)))
    same = pick_density(front, mean_density(chosen))
    rows = [("proposed", *own, percent(same.error)), *compare_presets(measured, errors, front)]
    return table(("schedule", "mean density", "predicted velocity error", "least at that density"), rows, "lrrr")
