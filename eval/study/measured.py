"""What was measured of real clips, and of each row's seed, as a study's files hold it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..reading import NoFile, parse, read_bytes
from .config import BASE, MEASURED, Plan

REAL = "real"  # folder of what is measured of real clips
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Distance:
    """Fréchet's, with its standard deviation over draws of the clips that were sampled."""

    distance: float
    spread: float
    clips: int


@dataclass(frozen=True)
class Mean:
    """Of a score over videos, as eval.fidelity has it."""

    mean: float
    interval: list[float] | None
    all_equal: bool
    prompts: int
    videos: int


@dataclass(frozen=True)
class Looks:
    """right_action: of each clip, whether it is the asked one. frechet: from real clips held out; None for these."""

    right_action: list[int]
    flicker: list[float]
    frechet: Distance | None = None


@dataclass(frozen=True)
class Real:
    """clips: held out. components: of the features. rows: real clips of each kind. prompts: of all rows' videos."""

    clips: int
    components: int
    actions: list[str]
    rows: dict[str, Looks]
    prompts: list[str]
    machine: dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """grid: losses [clip, sigma]. right_action, flicker: of each video. against: whose videos `fidelity` compares with.
    curve: val/loss by the steps made. scales_of_v: of the base, errors of each clip by each kind.
    """

    row: str
    seed: int
    weights: str
    machine: dict[str, Any]
    density: float
    prompts: list[str]
    grid: list[list[float]]
    frechet: Distance
    right_action: list[int]
    flicker: list[float]
    against: str | None
    fidelity: dict[str, Mean]
    not_measured: dict[str, str]
    curve: dict[str, float] | None
    scales_of_v: dict[str, list[float]] | None = None


def read_real_measures(plan: Plan) -> Real:
    """Raises NoFile, and ValueError for what is damaged."""
    file = plan.out / REAL / MEASURED
    if not file.exists():
        raise NoFile(f"there is no {file}: make it with --only {REAL}")
    real = _read(file, Real)
    if not real.prompts or not all(x.right_action and x.flicker for x in real.rows.values()):
        raise _broken(f"{file} is of no clips or prompts")
    return real


def read_measured(plan: Plan, row: str, seed: int, real: Real) -> Measured:
    """Raises NoFile, and ValueError for what is damaged, of another row or seed, or of other clips than the study's."""
    file, measures = plan.row(row, seed) / MEASURED, plan.study.measures
    found, clips = _read(file, Measured), min(measures.loss_clips, real.clips)
    if (found.row, found.seed) != (row, seed):
        raise _broken(f"{file} is of the row {found.row}, seed {found.seed}")
    if [len(x) for x in found.grid] != clips * [len(measures.sigmas)]:
        raise _broken(f"{file} has other losses than those of {clips} clips at {len(measures.sigmas)} noise levels")
    if found.prompts != real.prompts or not len(found.right_action) == len(found.flicker) == len(real.prompts):
        raise _broken(f"{file} is of other videos than the {len(real.prompts)} that real clips' prompts ask for")
    if not _is_likely(found) or found.frechet.clips != len(real.prompts):
        raise _broken(f"{file} holds losses, shares, distances or steps that can't be")
    if found.against != (None if plan.against(row) == row else plan.against(row)):
        raise _broken(f"{file} is compared with the row {found.against}")
    errors = found.scales_of_v or {}
    tile, channel = errors.get("tile", []), errors.get("channel", [])
    if row == BASE and not (len(tile) == len(channel) > 0 and min(*tile, *channel) > 0):
        raise _broken(f"{file} lacks the errors of both scales of V")
    return found


def _is_likely(found: Measured) -> bool:
    curve = found.curve or {}
    return (
        min(map(min, found.grid)) > 0
        and min(curve.values(), default=1.0) > 0
        and all(step.isdecimal() for step in curve)
        and {*found.right_action} <= {0, 1}
        and 0 < found.density <= 1
        and found.frechet.distance >= 0
    )


def _read(file: Path, kind: type[Kind]) -> Kind:
    try:
        return parse(kind, read_bytes(file), str(file))
    except NoFile:
        raise
    except ValueError as error:
        raise _broken(str(error)) from None


def _broken(what: str) -> ValueError:
    return ValueError(f"{what}: delete it, and the same command makes it again")
