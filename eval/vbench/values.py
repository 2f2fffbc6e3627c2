"""What can be a score: the one door that each number of VBench's goes through, whoever wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from fps_flex.checks import is_real, show

from .suite import DIMENSIONS

Key, T = TypeVar("Key"), TypeVar("T")
YES_OR_NO = ("dynamic_degree", "human_action", "static_filter")  # of these the package writes true and false
COSINES = (
    "subject_consistency", "background_consistency", "appearance_style", "temporal_style", "overall_consistency",
)  # fmt: skip
ROUNDING = 2**-9  # how far beyond 1 a cosine of features in half precision, as on a GPU, may come out
AGREE = 5.1e-5  # half of the fourth digit, to which scores are published; the package's own sums differ by 1e-12


@dataclass(frozen=True)
class Result:
    """A dimension's score as it is kept in scores/{dimension}.json.

    score: official, and thus at most 1 for all of them; None where there is none. videos: of each video that counts, by
    file name, as the official package gives it: imaging_quality's are 0 to 100. weights: of the videos in the mean,
    where they differ or did. complete: all videos were scored that the run's plan, or for the official package's files
    the full suite, has for the dimension. missing: those absent or unusable; errors says of the latter why. filtered:
    whether flicker's videos went through the static filter, None elsewhere. note: what a reader has to know of it.
    digest: of what the videos were. left_out: videos that officially count for nothing. last: values of the videos'
    last frames, where the score is their mean.
    """

    dimension: str
    score: float | None = None
    videos: dict[str, float] = field(default_factory=dict)
    complete: bool = False
    missing: tuple[str, ...] = ()
    errors: dict[str, str] = field(default_factory=dict)
    filtered: bool | None = None
    scorer: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    digest: str = ""
    weights: dict[str, float] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    last: dict[str, float] = field(default_factory=dict)

    def per_video(self) -> dict[str, float]:
        """By file name, all in the score's own unit."""
        unit = DIMENSIONS[self.dimension].unit
        return {name: value / unit for name, value in self.videos.items()}


def to_value(dimension: str, value: Any) -> float:
    """A video's, in the unit that the package gives it in; yes is 1.

    Shares are let through where it is yes or no, since VBench-Long has them of a long video's clips. Raises ValueError
    for what is no number, or one that can't come out.
    """
    if isinstance(value, bool) and dimension in YES_OR_NO:
        return float(value)
    return _to_number(dimension, value, DIMENSIONS[dimension].unit if dimension in DIMENSIONS else 1.0)


def to_score(dimension: str, value: Any) -> float:
    """The overall one. Raises ValueError likewise."""
    try:
        return _to_number(dimension, value, 1.0)
    except ValueError as error:
        raise ValueError(f"its score is {error}") from None


def to_weight(value: Any) -> float:
    if not is_real(value) or value <= 0:
        raise ValueError(f"{show(value)}, expected a number of frames")
    return float(value)


def _to_number(dimension: str, value: Any, unit: float) -> float:
    least = DIMENSIONS[dimension].least if dimension in DIMENSIONS else 0.0
    beyond = ROUNDING if dimension in COSINES else 1e-6
    if not is_real(value):
        raise ValueError(f"{show(value)}, not a number")
    if value < (least - beyond) * unit:
        raise ValueError(f"{show(value)}, expected at least {least * unit:g}")
    if value > (1 + beyond) * unit:
        raise ValueError(f"{show(value)}, expected at most {unit:g}")
    return float(value)


def find_prompt(name: str) -> str:
    """Of a video's file name; what tells apart the videos of one prompt is dropped."""
    return re.sub(r"-\d+\.\w+$", "", name)


def group(pairs: Iterable[tuple[Key, T]]) -> dict[Key, list[T]]:
    """The values of each key, both in the order in which they come."""
    groups: dict[Key, list[T]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def by_prompt(values: Mapping[str, T]) -> dict[str, list[T]]:
    """Of videos by file name."""
    return group((find_prompt(name), value) for name, value in values.items())


def mean(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """weights: by the names of the values; empty where all weigh the same."""
    if not weights:
        return sum(values.values()) / len(values)
    return sum(weights[name] * value for name, value in values.items()) / sum(weights[name] for name in values)


def agrees(result: Result) -> bool:
    """Whether a score is the mean of the videos that are known, so that these say how certain it is."""
    videos = result.per_video()
    return result.score is not None and bool(videos) and abs(mean(videos, result.weights) - result.score) <= AGREE


def check_score(result: Result) -> Result:
    """That a score is the mean of its videos, in one of the ways in which the package takes it.

    On one GPU frames weigh alike in the dimensions that are `framed`, on several GPUs most have the plain mean over
    videos, and appearance_style that of each video's last frame. weights, last: empty where they aren't known.
    subject_consistency's weights never are: then the score can be anything between its least and its best video, if
    these differ in length.

    Returns it with the weights or last frames of the mean that it is alone, and in its note what a reader has to know.
    Raises ValueError where it is none.
    """
    about, score, videos = DIMENSIONS[result.dimension], result.score, result.per_video()
    bare, plain = replace(result, weights={}, last={}), mean(videos, {}) if videos else score
    if abs(plain - score) <= AGREE:
        return bare
    if result.weights and agrees(result):
        return replace(bare, weights=result.weights)
    if result.last and abs(mean(result.last, {}) - score) <= AGREE:
        note = f"the mean of its videos' last frames, as several GPUs give it: that of whole videos is {plain:.4f}"
        return replace(bare, last=result.last, note=add_note(result.note, note))
    slack = AGREE / about.unit
    if about.framed and not result.weights and min(videos.values()) - slack <= score <= max(videos.values()) + slack:
        note = f"the mean of its videos is {plain:.4f}: these must differ in length, since frames weigh alike"
        return replace(bare, note=add_note(result.note, note))
    raise ValueError(f"its score is {score:.6g}, but the mean of its videos is {plain:.6g}")


def add_note(*notes: str) -> str:
    """Each once, without those that say nothing."""
    return "; ".join(dict.fromkeys(filter(None, notes)))
