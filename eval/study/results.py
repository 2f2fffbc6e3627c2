"""What a study has measured so far: numbers of each row and seed, and their means over seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from ..intervals import Estimate, Sample, estimate
from .config import HIGH, MEASURED, Plan, read_made
from .losses import mean_over
from .seams import measure_seams

Measured = dict[str, Any]
MADE = ("grid", "frechet", "right_action", "flicker", "fidelity", "against", "curve", "density", "not_measured")


@dataclass(frozen=True)
class Number:
    """of: it, from what was measured at these noise levels. digits: that are told."""

    of: Callable[[Measured, tuple[float, ...]], float]
    digits: int


NUMBERS = {
    "loss": Number(lambda x, sigmas: fmean(mean_over(x["grid"], sigmas)), 4),
    "loss_high": Number(lambda x, sigmas: fmean(mean_over(x["grid"], sigmas, HIGH)), 4),
    "frechet": Number(lambda x, sigmas: x["frechet"]["distance"], 2),
    "action": Number(lambda x, sigmas: fmean(x["right_action"]), 3),
    "flicker": Number(lambda x, sigmas: fmean(x["flicker"]), 3),
}


@dataclass(frozen=True)
class Results:
    """of: {row: {seed: what was measured}}; rows with the base's own weights have seed 0 alone."""

    plan: Plan
    of: dict[str, dict[int, Measured]]

    def get(self, row: str, seed: int) -> Measured | None:
        seeds = self.of.get(row, {})
        return seeds.get(0 if row in self.plan.rows and self.plan.rows[row].weights == "base" else seed)

    def seeds(self, *rows: str) -> list[int]:
        """For which all of the rows are there."""
        every = sorted({seed for seeds in self.of.values() for seed in seeds})
        return [seed for seed in every if all(self.get(row, seed) for row in rows)]

    def number(self, row: str, seed: int, name: str) -> float:
        """By a name of NUMBERS."""
        return NUMBERS[name].of(self.of[row][seed if seed in self.of[row] else 0], self.plan.study.measures.sigmas)

    def over_seeds(self, row: str, name: str) -> Estimate:
        return over({seed: self.number(row, seed, name) for seed in self.of[row]})


def read_results(plan: Plan) -> Results:
    of: dict[str, dict[int, Measured]] = {}
    for name in plan.rows:
        for file in sorted((plan.out / "rows").glob(f"{name}-seed*/{MEASURED}")):
            seed = file.parent.name.removeprefix(f"{name}-seed")
            if seed.isdecimal():
                seams = measure_seams(plan, name, int(seed))
                of.setdefault(name, {})[int(seed)] = {**read_made(file, *MADE), "seams": seams}
    return Results(plan, of)


def sum_up(measured: Measured, sigmas: tuple[float, ...]) -> Measured:
    """A row's seed in means over clips, of which each is in its measures.json."""
    losses = np.mean(measured["grid"], axis=0).tolist()
    means = {name: fmean(measured[name]) for name in ("right_action", "flicker")}
    values = {name: fmean(errors) for name, errors in measured.get("scales_of_v", {}).items()}
    kept = {name: x for name, x in measured.items() if name not in ("grid", "prompts", "scales_of_v")}
    return {**kept, **means, "losses": dict(zip(sigmas, losses, strict=True)), "scales_of_v": values}


def over(values: dict[Any, float]) -> Estimate:
    """Of what was drawn independently, by whatever tells the draws apart."""
    return estimate(Sample({str(name): [value] for name, value in values.items()}))
