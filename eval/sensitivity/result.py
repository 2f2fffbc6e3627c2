"""What was measured, as JSON: a part per video and step, and all of them together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fps_flex import Regime, StepSchedule, TileLayout
from fps_flex.checks import as_triple
from train.common.atomic import write_text

from ..reading import NoFile, parse, read_bytes
from .candidates import Candidate, on_grid
from .errors import snr_db

FILE = "sensitivity.json"
PRODUCER = "fps-flex eval.sensitivity"
DIGITS = 6

Nested = list[Any]  # numbers in lists of lists


@dataclass(frozen=True)
class Part:
    """One video's step. sigma: its noise level. attention_*: [candidate, layer, head]. velocity_*: [candidate].

    one_layer: relative MSE of the velocity where the probe candidate is in one layer alone, for each layer.
    """

    step: int
    sigma: float
    attention_mse: list[list[list[float]]]
    attention_cosine: list[list[list[float]]]
    velocity_mse: list[float]
    velocity_cosine: list[float]
    one_layer: list[float] | None = None


def read_part(path: Path) -> Part:
    """Raises NoFile, and ValueError for what is cut or no part."""
    return parse(Part, read_bytes(path), str(path))


@dataclass(frozen=True)
class Errors:
    """Means over videos, each nested as [step, candidate, ...]; snr_db is that of the mean, None without noise."""

    relative_mse: Nested
    cosine: Nested
    snr_db: Nested


@dataclass(frozen=True)
class Sensitivity:
    """All that was measured of a model on one grid, and what it was measured with.

    identity: of the model and its settings; parts that say another are not mixed with it. base: the attention in which
    candidates take the schedule's place. levels: sigma at each of the sampler's steps. steps: those that were measured,
    from 0. candidates: as `Candidate.describe` has them. attention: [step, candidate, layer, head]. velocity: of the
    whole model [step, candidate]; by_video: its relative MSE [video, step, candidate]. one_layer: relative MSE of the
    velocity where candidate `probe` is in one layer alone [step, layer].
    """

    producer: str
    machine: dict[str, Any]
    identity: dict[str, Any]
    grid: list[int]
    base: dict[str, Any]
    shift: float
    levels: list[float]
    steps: list[int]
    videos: list[dict[str, Any]]
    candidates: list[dict[str, Any]]
    attention: Errors
    velocity: Errors
    by_video: Nested
    probe: int | None = None
    one_layer: Nested | None = None

    @property
    def layout(self) -> TileLayout:
        return TileLayout(as_triple("grid", self.grid), as_triple("tile", self.base["tile"]), self.base["block"])

    def list_candidates(self) -> list[Candidate]:
        return [on_grid(Regime(tuple(x["window"]), x["granularity"]), self.layout, x["codes"]) for x in self.candidates]

    def progress(self) -> np.ndarray:
        """Of denoising, at each of the sampler's steps [steps]."""
        import torch

        return StepSchedule((), (Regime(),), self.shift).progress(torch.tensor(self.levels)).numpy()

    @property
    def attention_mse(self) -> np.ndarray:
        """[step, candidate, layer, head]"""
        return np.array(self.attention.relative_mse)

    @property
    def velocity_mse(self) -> np.ndarray:
        """[step, candidate]"""
        return np.array(self.velocity.relative_mse)


def gather(parts: list[list[Part]], **facts: Any) -> Sensitivity:
    """parts: [video, step]. facts: the fields that parts don't hold."""

    def mean(pick: Callable[[Part], Any]) -> np.ndarray:
        return np.mean([[pick(part) for part in video] for video in parts], axis=0)

    attention = _errors(mean(lambda part: part.attention_mse), mean(lambda part: part.attention_cosine))
    velocity = _errors(mean(lambda part: part.velocity_mse), mean(lambda part: part.velocity_cosine))
    by_video = [[part.velocity_mse for part in video] for video in parts]
    one_layer = None if facts["probe"] is None else mean(lambda part: part.one_layer).tolist()
    return Sensitivity(
        PRODUCER, attention=attention, velocity=velocity, by_video=by_video, one_layer=one_layer, **facts
    )


def _errors(mse: np.ndarray, cosine: np.ndarray) -> Errors:
    return Errors(mse.tolist(), cosine.tolist(), np.vectorize(snr_db, otypes=[object])(mse).tolist())


def dump(record: Any) -> str:
    """JSON of a dataclass without line breaks, of which its lists would take millions; numbers to six digits."""
    rounded = json.loads(json.dumps(asdict(record)), parse_float=lambda number: float(f"{float(number):.{DIGITS}g}"))
    return json.dumps(rounded, ensure_ascii=False) + "\n"


def write(folder: Path, measured: Sensitivity) -> None:
    write_text(folder / FILE, dump(measured))


def read(folder: Path) -> Sensitivity:
    """Raises ValueError where there is none, and for what is cut, changed or of another command."""
    path = folder / FILE
    try:
        measured = parse(Sensitivity, read_bytes(path), str(path))
    except NoFile:
        raise ValueError(f"there is no {FILE} in {folder}: measure one with python -m eval.sensitivity") from None
    try:
        _check(measured)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no whole measurement of eval.sensitivity ({error}): measure again") from None
    return measured


def _check(measured: Sensitivity) -> None:
    """Raises what is wrong with the numbers' shapes, and with candidates that aren't what they say on this grid."""
    if measured.producer != PRODUCER:
        raise ValueError(f"its producer is {measured.producer}, expected {PRODUCER}")
    steps, count = len(measured.steps), len(measured.candidates)
    if measured.velocity_mse.shape != (steps, count) or measured.attention_mse.shape[:2] != (steps, count):
        raise ValueError(f"its errors aren't those of {steps} steps and {count} candidates")
    if not measured.by_video or np.array(measured.by_video).shape[1:] != (steps, count):
        raise ValueError(f"its errors by video aren't those of {steps} steps and {count} candidates")
    for said, candidate in zip(measured.candidates, measured.list_candidates(), strict=True):
        if said["tiles"] != list(candidate.tiles):
            raise ValueError(f"candidate {candidate} has {said['tiles']} tiles on another grid than {measured.grid}")
