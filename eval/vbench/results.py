"""Scores as they were written: by this command, by the official package, or in a leaderboard's zip."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fps_flex.checks import show

from ..reading import parse_json, plain, shape
from .source import Source, open_source
from .suite import DIMENSIONS, FLICKER, SEEDS
from .values import Result, add_note, check_score, to_score, to_value, to_weight

EXPECTED = "a run's folder, *_eval_results.json, or a zip of them"
ROW = ("video_path", "video_results")  # what the official package says of a video, at the least
MAY_LACK = {  # dimensions of which the official package scores fewer videos than there are, and why
    "color": "the others were not scored, or the object wasn't found in them",
    FLICKER: "the others were not scored, or the static filter kept fewer than five of a prompt",
}


@dataclass(frozen=True)
class Results:
    """By dimension, in the official order. problems: what couldn't be used, and why."""

    scores: dict[str, Result]
    problems: tuple[str, ...] = ()


def read_results(path: Path | Source) -> Results:
    """path: a run's folder or its scores/, a folder of the official package's results, one such file, or a zip of them.

    What can't be used is named and left out. Raises ValueError where that leaves nothing at all.
    """
    source = path if isinstance(path, Source) else open_source(path)
    given: dict[str, list[tuple[str, Result]]] = {}
    scores: dict[str, Result] = {}
    problems: list[str] = []
    for file in source.files:
        try:
            entries = _list_entries(parse_json("it", file.read()))
        except ValueError as error:
            problems.append(plain(f"{file.shown} can't be read, and is left out: {error}"))
            continue
        for dimension, read in entries:
            try:
                if dimension not in DIMENSIONS:
                    raise ValueError(f"it scores {dimension}, which is no dimension of VBench")
                result = read()
                given.setdefault(dimension, []).append((file.shown, result))
            except ValueError as error:
                problems.append(plain(f"{file.shown}: {dimension} is left out: {error}"))
                scores[dimension] = Result(dimension, note=plain(str(error)))
    if not given:
        more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
        why = f" that can be used: {problems[0]}{more}" if problems else f": expected {EXPECTED}"
        raise ValueError(f"{source.path} holds no scores{why}")
    scores |= {dimension: _unite(dimension, those, problems) for dimension, those in given.items()}
    return Results({name: scores[name] for name in DIMENSIONS if name in scores}, (*problems, *source.problems))


def _unite(dimension: str, given: list[tuple[str, Result]], problems: list[str]) -> Result:
    """The one that says most of what several files say of a dimension; none where they don't agree."""
    scored = [(file, result) for file, result in given if result.score is not None] or given[:1]
    file, best = max(scored, key=lambda one: bool(one[1].videos))
    for other, result in scored:
        if best.score != result.score or (best.videos and result.videos and best.videos != result.videos):
            problems.append(plain(f"{other} and {file} both score {dimension}, differently: it is left out"))
            return Result(dimension, note="two files score it differently")
    return best


def _list_entries(said: Any) -> list[tuple[str, Callable[[], Result]]]:
    """(dimension, what reads its result) of a file. Raises ValueError for what holds none."""
    if isinstance(said, list):
        return []  # the official package's *_full_info.json
    if not isinstance(said, dict):
        raise ValueError(f"expected scores of dimensions, found {show(said)}")
    if "dimension" in said:
        return [(str(said["dimension"]), partial(parse_ours, said))]
    names = [name.replace(" ", "_") for name in said]
    if twice := ", ".join(name for name, times in Counter(names).items() if times > 1):
        raise ValueError(f"it has {twice} twice")
    return [(name, partial(_parse_official, name, one)) for name, one in zip(names, said.values(), strict=True)]


def parse_ours(entry: dict[str, Any]) -> Result:
    """Raises ValueError for what isn't in the format, and for scores that can't be."""
    lacking = [name for name in ("score", "videos", "complete") if name not in entry]
    if lacking or not isinstance(entry["videos"], dict):
        raise ValueError(f"it lacks {', '.join(lacking)}" if lacking else f"its videos are {show(entry['videos'])}")
    result = shape("it", Result, {**entry, "videos": {}})
    if result.dimension not in DIMENSIONS:
        raise ValueError(f"{show(result.dimension)} is no dimension of VBench")
    if result.score is None:
        return replace(result, complete=False)
    score, videos = to_score(result.dimension, result.score), _to_values(result.dimension, entry["videos"].items())
    if result.weights and result.weights.keys() != videos.keys():
        raise ValueError("its weights are of other videos than its values")
    weights = {name: to_weight(weight) for name, weight in result.weights.items()}
    last = _to_values(result.dimension, result.last.items())
    complete = result.complete and not result.missing and not result.errors
    return check_score(replace(result, score=score, videos=videos, complete=complete, weights=weights, last=last))


def _parse_official(dimension: str, entry: Any) -> Result:
    """[overall, [{video_path, video_results, ...}]], or the overall score alone."""
    overall, *more = entry if isinstance(entry, list) and entry else [entry]
    score, rows = to_score(dimension, overall), more[0] if more else []
    are_rows = isinstance(rows, list) and all(isinstance(row, dict) and {*ROW} <= row.keys() for row in rows)
    if len(more) > 1 or not are_rows:
        raise ValueError("it is not a list of an overall score and its videos")
    videos = _to_values(dimension, [(_name_of(row), row["video_results"]) for row in rows])
    weights, last = _read_frames(dimension, rows)
    complete, note = _judge_count(dimension, len(videos))
    if any(row.get("incomplete") is True for row in rows):
        complete, note = False, add_note("it says of itself that it is incomplete", note)
    filtered = False if any(row.get("filtered") is False for row in rows) else None
    return check_score(Result(dimension, score, videos, complete, (), {}, filtered, {}, note, "", weights, (), last))


def _judge_count(dimension: str, videos: int) -> tuple[bool, str]:
    """Whether so many videos can be all that the full suite has, and what a reader has to know of it."""
    expected = DIMENSIONS[dimension].prompts * SEEDS
    if not videos:
        return True, "given without its videos, so whether it is complete can't be told"
    if videos >= expected:
        return True, ""
    if dimension not in MAY_LACK:
        return False, f"only {videos} of {expected} videos"
    return True, f"{videos} of {expected} videos: {MAY_LACK[dimension]}"


def _name_of(row: dict[str, Any]) -> str:
    """A video's file name; its path may be of Windows."""
    name = re.split(r"[/\\]", row["video_path"])[-1] if isinstance(row["video_path"], str) else ""
    if not name:
        raise ValueError(f"a video_path is {show(row['video_path'])}, expected a file's")
    return name


def _to_values(dimension: str, pairs: Iterable[tuple[str, Any]]) -> dict[str, float]:
    """By file name. Raises ValueError for what can't be a value, and a video that is there twice."""
    values: dict[str, float] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"it has the video {show(name)} twice")
        try:
            values[name] = to_value(dimension, value)
        except ValueError as error:
            raise ValueError(f"its video {show(name)} has the value {error}") from None
    return values


def _read_frames(dimension: str, rows: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """How many frames each video weighs by, and the value of its last; each empty where not all rows have it."""
    weights, last = {}, {}
    for row in rows if DIMENSIONS[dimension].framed else ():
        frames = row.get("frame_results")
        count = row.get("cnt_per_video", row.get("frame_count", len(frames) if isinstance(frames, list) else None))
        if count is not None:
            weights[_name_of(row)] = to_weight(count)
        if "cur_sim" in row:
            last[_name_of(row)] = to_value(dimension, row["cur_sim"])
    return (weights if len(weights) == len(rows) else {}, last if len(last) == len(rows) else {})
