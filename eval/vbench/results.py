"""Scores as they were written: by this command, by the official package, or in a leaderboard's zip."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fps_flex.checks import show

from .reading import parse_json, plain, shape
from .source import File, Source, open_source
from .suite import DIMENSIONS, FLICKER, SEEDS
from .values import Result, check_score, to_score, to_value, to_weight

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
    problems = []
    for file, dimension, result in _read_all(source.files):
        if isinstance(result, ValueError):
            what = f": {dimension} is left out" if dimension else " can't be read, and is left out"
            problems.append(plain(f"{file}{what}: {result}"))
            if dimension in DIMENSIONS:
                scores[dimension] = Result(dimension, note=plain(str(result)))
        else:
            given.setdefault(dimension, []).append((file, result))
    if not given and not problems:
        raise ValueError(
            f"{source.path} holds no scores: expected a run's folder, *_eval_results.json, or a zip of them"
        )
    if not given:
        more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ValueError(f"{source.path} holds no scores that can be used: {problems[0]}{more}")
    for dimension, those in given.items():
        scores[dimension] = _unite(dimension, those, problems)
    return Results({name: scores[name] for name in DIMENSIONS if name in scores}, (*problems, *source.problems))


def _unite(dimension: str, given: list[tuple[str, Result]], problems: list[str]) -> Result:
    """The one that says most of what several files say of a dimension; none where they don't agree."""
    scored = [(file, result) for file, result in given if result.score is not None] or given[:1]
    file, best = max(scored, key=lambda one: bool(one[1].videos))
    for other, result in scored:
        if _contradict(best, result):
            problems.append(plain(f"{other} and {file} both score {dimension}, differently: it is left out"))
            return Result(dimension, note="two files score it differently")
    return best


def _contradict(one: Result, other: Result) -> bool:
    return one.score != other.score or bool(one.videos and other.videos and one.videos != other.videos)


def _read_all(files: Iterable[File]) -> Iterator[tuple[str, str, Result | ValueError]]:
    """(file, dimension, its result or why there is none); the dimension is empty where that is of a whole file."""
    for file in files:
        try:
            entry = parse_json("it", file.read())
            if isinstance(entry, list):
                continue  # the official package's *_full_info.json
            if not isinstance(entry, dict):
                raise ValueError(f"expected scores of dimensions, found {show(entry)}")
            items = [(entry["dimension"], entry)] if "dimension" in entry else _list_official(entry)
        except ValueError as error:
            yield file.shown, "", error
            continue
        for dimension, value in items:
            yield file.shown, str(dimension), _parse(dimension, value, ours=value is entry)


def _list_official(entries: dict[str, Any]) -> list[tuple[str, Any]]:
    """Raises ValueError for a dimension that is there with a space and with an underscore."""
    names = Counter(name.replace(" ", "_") for name in entries)
    twice = [name for name, times in names.items() if times > 1]
    if twice:
        raise ValueError(f"it has {', '.join(twice)} twice")
    return [(name.replace(" ", "_"), value) for name, value in entries.items()]


def _parse(dimension: Any, entry: Any, ours: bool) -> Result | ValueError:
    try:
        if not isinstance(dimension, str) or dimension not in DIMENSIONS:
            raise ValueError(f"it scores {dimension}, which is no dimension of VBench")
        return parse_ours(entry) if ours else _parse_official(dimension, entry)
    except ValueError as error:
        return error


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
    known = {name: to_weight(weight) for name, weight in result.weights.items()}
    last = _to_values(result.dimension, result.last.items())
    weights, last, note = check_score(result.dimension, score, videos, known, last)
    note = "; ".join(dict.fromkeys(filter(None, (result.note, note))))
    complete = result.complete and not result.missing and not result.errors
    return replace(result, score=score, videos=videos, complete=complete, weights=weights, last=last, note=note)


def _parse_official(dimension: str, entry: Any) -> Result:
    """[overall, [{video_path, video_results, ...}]], or the overall score alone."""
    overall, *more = entry if isinstance(entry, list) and entry else [entry]
    score, rows = to_score(dimension, overall), more[0] if more else []
    if (
        len(more) > 1
        or not isinstance(rows, list)
        or not all(isinstance(row, dict) and {*ROW} <= row.keys() for row in rows)
    ):
        raise ValueError("it is not a list of an overall score and its videos")
    videos = _to_values(dimension, [(_name_of(row), row["video_results"]) for row in rows])
    weights, last, note = check_score(dimension, score, videos, *_read_frames(dimension, rows))
    partial = any(row.get("incomplete") is True for row in rows)
    complete, lacking = _judge_count(dimension, len(videos))
    return Result(
        dimension,
        score,
        videos,
        complete and not partial,
        filtered=False if any(row.get("filtered") is False for row in rows) else None,
        weights=weights,
        last=last,
        note="; ".join(filter(None, ["it says of itself that it is incomplete" if partial else "", lacking, note])),
    )


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
