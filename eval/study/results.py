"""What a study has measured so far: numbers of each row and seed, and their means over seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from ..intervals import Estimate, Sample, estimate
from .config import BASE, HIGH, MEASURED, Plan
from .losses import mean_over
from .measured import Measured, Real, read_measured, read_real_measures
from .seams import Seams, measure_seams


@dataclass(frozen=True)
class Number:
    """of: it, from what was measured at these noise levels. digits: that are told."""

    of: Callable[[Measured, tuple[float, ...]], float]
    digits: int


NUMBERS = {
    "loss": Number(lambda x, sigmas: fmean(mean_over(x.grid, sigmas)), 4),
    "loss_high": Number(lambda x, sigmas: fmean(mean_over(x.grid, sigmas, HIGH)), 4),
    "frechet": Number(lambda x, sigmas: x.frechet.distance, 2),
    "action": Number(lambda x, sigmas: fmean(x.right_action), 3),
    "flicker": Number(lambda x, sigmas: fmean(x.flicker), 3),
}


@dataclass(frozen=True)
class Results:
    """of: {row: {seed: what was measured}}; rows with the base's own weights have seed 0 alone. seams: likewise."""

    plan: Plan
    of: dict[str, dict[int, Measured]]
    seams: dict[str, dict[int, Seams]] = field(default_factory=dict)

    def get(self, row: str, seed: int) -> Measured | None:
        seeds = self.of.get(row, {})
        return seeds.get(0 if row in self.plan.rows and self.plan.rows[row].weights == BASE else seed)

    def seeds(self, *rows: str) -> list[int]:
        """For which all of the rows are there."""
        every = sorted({seed for seeds in self.of.values() for seed in seeds})
        return [seed for seed in every if all(self.get(row, seed) for row in rows)]

    def number(self, row: str, seed: int, name: str) -> float:
        """By a name of NUMBERS."""
        return NUMBERS[name].of(self.of[row][seed if seed in self.of[row] else 0], self.plan.study.measures.sigmas)

    def over_seeds(self, row: str, name: str) -> Estimate:
        return over({seed: self.number(row, seed, name) for seed in self.of[row]})

    def sum_up(self, row: str, seed: int) -> dict[str, Any]:
        """A row's seed in means over clips, of which each is in its measures.json."""
        measured, sigmas = self.of[row][seed], self.plan.study.measures.sigmas
        kept = {name: x for name, x in asdict(measured).items() if name not in ("grid", "prompts", "scales_of_v")}
        return {
            **kept,
            "losses": dict(zip(sigmas, np.mean(measured.grid, axis=0).tolist(), strict=True)),
            "right_action": fmean(measured.right_action),
            "flicker": fmean(measured.flicker),
            "seams": self.seams.get(row, {}).get(seed),
            "scales_of_v": {name: fmean(errors) for name, errors in (measured.scales_of_v or {}).items()},
        }


def read_results(plan: Plan) -> tuple[Results, Real]:
    """Raises ValueError for what is damaged, or isn't of this study."""
    real, of, seams = read_real_measures(plan), {}, {}
    for row in plan.rows:
        of[row] = {seed: read_measured(plan, row, seed, real) for seed in _list_seeds(plan, row)}
        found = {seed: measure_seams(plan, row, seed) for seed in of[row]}
        seams[row] = {seed: x for seed, x in found.items() if x is not None}
    for row in of:
        _check_weights(plan, row, of)
    return Results(plan, {row: seeds for row, seeds in of.items() if seeds}, seams), real


def _check_weights(plan: Plan, row: str, of: dict[str, dict[int, Measured]]) -> None:
    """Raises ValueError for a row that isn't of those that it should have, of a training that was made again."""
    for seed, measured in of[row].items():
        other = of.get(plan.rows[row].weights or "", {}).get(seed)
        if other and not other.weights.endswith(measured.weights.rpartition("weights ")[2]):  # whichever run made them
            raise ValueError(
                f"{plan.row(row, seed)} is of {measured.weights}, and {plan.row(other.row, seed)} of {other.weights}, "
                "whose weights should be the same: delete one, and the same command makes it again"
            )


def _list_seeds(plan: Plan, row: str) -> list[int]:
    """Of the folders that a study writes; a copy beside them is none."""
    folders = {file.parent.name: file.parent for file in (plan.out / "rows").glob(f"{row}-seed*/{MEASURED}")}
    ends = (name.removeprefix(f"{row}-seed") for name in folders)
    seeds = {int(end) for end in ends if end.isdecimal()}
    return sorted(seed for seed in seeds if plan.row(row, seed) == folders.get(f"{row}-seed{seed}"))


def over(values: dict[Any, float]) -> Estimate:
    """Of what was drawn independently, by whatever tells the draws apart."""
    return estimate(Sample({str(name): [value] for name, value in values.items()}))
