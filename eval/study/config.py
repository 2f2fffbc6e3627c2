"""What a study is: its configuration, where its results lie, and what tells it from another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from yaml import YAMLError

from fps_flex import FPSAttention, Regime
from fps_flex.checks import require, show
from fps_flex.quant import Granularity
from fps_flex.schedule import Window
from train.common.console import load_yaml
from train.texts import read_utf8

from ..generate.jobs import Clip
from ..reading import NoFile, read_json

SHAPES, DOOM = "shapes", "doom"  # clips that are drawn; anything else is a folder of clips
BASE, PROPOSED = "base", "proposed"  # the row of the pretrained weights; the attention that the study finds
HIGH = 0.7  # noise level from which up the loss says whether a model sees the whole frame
MEASURED = "measures.json"
STAGES = ("data", "codec", "pretrain", "export", "base", "real", "search", "propose", "train", "measure")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a row: of folders and files too, and a word of --only


@dataclass(frozen=True)
class Data:
    """source: doom, shapes (moving ones), or a folder of captioned clips. clips: to train on. val_clips: held out.

    levels_held_out, workers: of train.doom.
    """

    source: str
    clips: int
    val_clips: int
    seed: int = 0
    levels_held_out: int = 8
    workers: int = 8

    def __post_init__(self) -> None:
        require("data.clips", self.clips, least=1)
        require("data.val_clips", self.val_clips, least=1)


@dataclass(frozen=True)
class LinearFit:
    """box: frames, rows and columns of pixels that become `channels` numbers. clips: that it is fitted on. scaling: of
    each channel alone (unit), or of all alike (one).
    """

    box: tuple[int, int, int]
    channels: int
    clips: int
    scaling: Literal["unit", "one"] = "unit"


@dataclass(frozen=True)
class Row:
    """attention: `proposed` for what the study finds; None is that of the weights.

    weights: the row whose weights it has, without training; None trains, from the base, with `options` of train.fit.
    """

    attention: FPSAttention | Literal["proposed"] | None = None
    weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Search:
    """What eval.sensitivity tries on the base. attention: whose tile and engine it takes. budget: the most mean density
    of the schedule that is proposed.
    """

    attention: FPSAttention
    prompts: int
    every: int
    budget: float
    windows: list[Window]
    granularities: list[Granularity]

    def __post_init__(self) -> None:
        require("search.prompts", self.prompts, least=1)
        require("search.every", self.every, least=1)
        require("search.budget", self.budget, above=0, most=1)
        for window, granularity in product(self.windows, self.granularities):
            Regime(window, granularity)


@dataclass(frozen=True)
class Measures:
    """videos: that each row makes of held-out clips' captions, in `steps` steps of Euler. loss_clips, sigmas: of the
    grid of losses. classifier_clips, classifier_steps: from which actions are learnt. shown: videos in contact sheets.
    """

    videos: int
    steps: int
    guidance: float
    loss_clips: int
    sigmas: tuple[float, ...]
    classifier_clips: int
    classifier_steps: int
    shown: int = 3

    def __post_init__(self) -> None:
        for name in ("videos", "steps", "loss_clips", "classifier_clips", "classifier_steps", "shown"):
            require(f"measures.{name}", getattr(self, name), least=2 if name == "videos" else 1)
        if not all(0 < x < 1 for x in self.sigmas) or max(self.sigmas, default=0) < HIGH:
            raise ValueError(f"measures.sigmas is {show(self.sigmas)}, expected numbers in (0, 1), one from {HIGH} up")


@dataclass(frozen=True)
class Study:
    """What is compared with what, and how it is measured.

    Args:
        pretraining: configurations of train.fit, of the dense base that all rows start from: runs one after the other,
            each from the averaged weights of the one before. The last is of `clip`; those before may say of their own.
        finetuning: options of train.fit that trained rows have in place of the pretraining's.
        clip: frames, height, width and fps of all clips.
        data: where clips come from.
        rows: by name; the verdicts know dense, joint-free, joint and uniform.
        search: what eval.sensitivity tries on the base.
        measures: what is measured of each row.
        codec: how train.codec fits a linear one; none keeps the pretraining's own.

    Raises ValueError for rows that don't fit each other.
    """

    pretraining: list[str]
    finetuning: dict[str, Any]
    clip: Clip
    data: Data
    rows: dict[str, Row]
    search: Search
    measures: Measures
    codec: LinearFit | None = None

    def __post_init__(self) -> None:
        if not self.pretraining:
            raise ValueError("pretraining is empty, expected a configuration of train.fit, or several")
        for name, row in self.rows.items():
            if not NAME.fullmatch(name) or "-seed" in name or name in STAGES:
                raise ValueError(
                    f"rows has {show(name)}, expected a name of letters, digits, '.', '_' and '-', without '-seed', "
                    f"that is no stage ({', '.join(STAGES)})"
                )
            free = row.weights is not None
            if name == BASE or (free and row.weights not in [BASE, *self.trained]):
                raise ValueError(f"rows.{name} has weights {row.weights}, expected {BASE} or those of a trained row")
            if free and not isinstance(row.attention, FPSAttention):
                raise ValueError(f"rows.{name} isn't trained, and has no attention of its own: give it one")
            if free and row.options:
                raise ValueError(f"rows.{name} isn't trained, and has options of training: leave them out")

    @property
    def trained(self) -> list[str]:
        """Names of the rows that are."""
        return [name for name, row in self.rows.items() if row.weights is None]


@dataclass(frozen=True)
class Plan:
    """A study and its folder."""

    study: Study
    out: Path

    @property
    def rows(self) -> dict[str, Row]:
        """With the pretrained weights as they are."""
        return {BASE: Row(weights=BASE), **self.study.rows}

    @property
    def folder(self) -> str | None:
        """Of the clips; None where they are drawn on demand."""
        source = self.study.data.source
        return None if source == SHAPES else str(self.out / "data" if source == DOOM else Path(source).resolve())

    def against(self, name: str) -> str:
        """The row with whose videos another's are compared: of the same weights, or of a trained row the base."""
        return self.rows[name].weights or BASE

    def run(self, name: str, seed: int) -> Path:
        """Of train.fit."""
        return self.pretraining_runs[-1] if name == BASE else self.out / "runs" / f"{name}-seed{seed}"

    @property
    def pretraining_runs(self) -> list[Path]:
        """One for each configuration; the last makes the base."""
        count = len(self.study.pretraining)
        return [self.out / "runs" / (BASE if i == count else f"{BASE}-{i}") for i in range(1, count + 1)]

    def row(self, name: str, seed: int) -> Path:
        """Of what is measured; rows of the base's weights have one seed."""
        return self.out / "rows" / f"{name}-seed{0 if self.rows[name].weights == BASE else seed}"

    def checkpoint(self, name: str, seed: int) -> Path:
        weights = self.rows[name].weights or name
        return self.out / "base.ckpt" if weights == BASE else self.run(weights, seed) / "checkpoints/last.ckpt"

    def describe(self) -> dict[str, Any]:
        """All that decides what a study measures, as plain data."""
        study = plain(self.study)
        study["data"].pop("workers")
        return {**study, "pretraining": [read_yaml(file) for file in self.study.pretraining]}

    def describe_base(self) -> dict[str, Any]:
        """The part of it that the pretrained weights follow from."""
        parts = ("clip", "data", "codec", "pretraining")
        return {name: value for name, value in self.describe().items() if name in parts}


def plain(value: Any) -> Any:
    """Of a dataclass, so that it can be read again: `layers` that are none can't be, and empty `options` take long."""
    return asdict(value, dict_factory=lambda pairs: {n: x for n, x in pairs if n not in ("layers", "options") or x})


def read_made(path: Path, *names: str) -> dict[str, Any]:
    """What a study wrote. Raises NoFile, and ValueError for what is damaged, or lacks one of these names."""
    try:
        made = read_json(path)
        lacking = [name for name in names if not isinstance(made, dict) or name not in made]
        if not lacking:
            return made
    except NoFile:
        raise
    except ValueError as error:
        raise ValueError(f"{error}; delete it, and the same command makes it again") from None
    raise ValueError(f"{path} lacks {', '.join(lacking)}: delete it, and the same command makes it again")


def read_yaml(path: str) -> dict[str, Any]:
    """A configuration of train.fit. Raises ValueError for what can't be read, or is none."""
    try:
        data = load_yaml(read_utf8(Path(path)))
    except YAMLError as error:
        raise ValueError(f"{path} is no YAML ({show(str(error))})") from None
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise ValueError(f"{path} is no configuration of train.fit: it lacks model")
    return data


def first_difference(before: Any, now: Any) -> str | None:
    """Of two nested dicts, in words; None where nothing differs."""
    old, new = dict(_flatten(before)), dict(_flatten(now))
    other = next((name for name in (*new, *old) if old.get(name) != new.get(name)), None)
    return other and f"{other} was {show(old.get(other))}, is {show(new.get(other))}"


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """By dotted names, lists as JSON has them."""
    if isinstance(value, dict):  # what holds nothing is as good as not there
        for key, item in value.items():
            yield from _flatten(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)) and value:
        for i, item in enumerate(value):
            yield from _flatten(item, f"{name}[{i}]")
    else:
        yield name, list(value) if isinstance(value, tuple) else value
