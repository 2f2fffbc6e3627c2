"""Scores as they were written: by this command, by the official package, or in a leaderboard's zip."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from .suite import DIMENSIONS, SEEDS


@dataclass(frozen=True)
class Result:
    """A dimension's score, official and thus 0 to 1 for all of them; None where there is none.

    videos: of each video, by file name, as the official package gives it: imaging_quality's are 0 to 100.
    complete: all videos were scored that the run's plan, or for the official package's files the full suite, has for
    the dimension. filtered: by the static filter. note: what a reader has to know of it.
    """

    dimension: str
    score: float | None
    videos: dict[str, float] = field(default_factory=dict)
    complete: bool = False
    missing: tuple[str, ...] = ()
    filtered: bool | None = None
    scorer: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    def per_video(self) -> dict[str, float]:
        """By file name, all in the score's own unit."""
        scale = 0.01 if self.dimension == "imaging_quality" else 1.0
        return {name: scale * value for name, value in self.videos.items()}


@dataclass(frozen=True)
class Results:
    """By dimension, in the official order. problems: what couldn't be used, and why."""

    scores: dict[str, Result]
    problems: tuple[str, ...] = ()


def read_results(path: Path) -> Results:
    """path: a run's folder, a folder of the official package's results, one such file, or a zip of them.

    What can't be read is named and left out. Raises ValueError where there is nothing at all.
    """
    found: dict[str, tuple[str, Result]] = {}
    problems, files = [], 0
    for name, data in _read_files(path):
        files += 1
        try:
            results = _parse(json.loads(data))
        except ValueError as error:
            problems.append(f"{name} can't be read, and is left out: {error}")
            continue
        for result in results:
            other = found.get(result.dimension)
            if result.dimension not in DIMENSIONS:
                problems.append(f"{name} scores {result.dimension}, which is no dimension of VBench")
            elif other and other[1].score != result.score:
                problems.append(f"{name} and {other[0]} both score {result.dimension}, differently: it is left out")
                found[result.dimension] = (name, Result(result.dimension, None, note="two files score it differently"))
            elif not other:
                found[result.dimension] = (name, result)
    if not files:
        raise ValueError(f"{path} holds no scores: expected a run's folder, *_eval_results.json, or a zip of them")
    return Results({name: found[name][1] for name in DIMENSIONS if name in found}, tuple(problems))


def _read_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each file of scores."""
    try:
        if path.is_dir():
            ours = sorted((path / "scores").glob("*.json")) or sorted(
                file for file in path.glob("*.json") if file.stem in DIMENSIONS
            )
            for file in ours or sorted(path.rglob("*_eval_results.json")):
                yield str(file), file.read_bytes()
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                for name in sorted(packed.namelist()):
                    if name.endswith(".json") and not PurePath(name).name.startswith((".", "__")):
                        yield f"{path}:{name}", packed.read(name)
        else:
            yield str(path), path.read_bytes()
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: scores can't be read ({error})") from None


def _parse(said: Any) -> list[Result]:
    """Raises ValueError for what is in neither format."""
    if isinstance(said, list):
        return []  # the official package's *_full_info.json
    if not isinstance(said, dict):
        raise ValueError(f"expected scores of dimensions, found {said!r:.40}")
    if "dimension" in said:
        return [_parse_ours(said)]
    return [_parse_official(name.replace(" ", "_"), value) for name, value in said.items()]


def _parse_ours(said: dict[str, Any]) -> Result:
    name = said["dimension"]
    try:
        score, note = _to_score(said["score"])
        return Result(
            name,
            score,
            _to_values(said["videos"].items()),
            bool(said["complete"]) and score is not None,
            tuple(said.get("missing") or ()),
            said.get("filtered"),
            said.get("scorer") or {},
            "; ".join(filter(None, (note, said.get("note")))),
        )
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"not in the format of a dimension's scores ({error!r})") from None


def _parse_official(name: str, value: Any) -> Result:
    """[overall, [{video_path, video_results}]], or the overall score alone."""
    overall, videos = (
        (value[0], value[1] if len(value) > 1 else []) if isinstance(value, list) and value else (value, [])
    )
    score, note = _to_score(overall)
    try:
        pairs = [(PurePath(str(video["video_path"])).name, video["video_results"]) for video in videos]
    except (KeyError, TypeError):
        raise ValueError(f"{name} is not a list of an overall score and its videos") from None
    expected = DIMENSIONS[name].prompts * SEEDS if name in DIMENSIONS else 0
    count = len({file for file, _ in pairs})
    notes = [note]
    if not pairs:
        notes.append("given without its videos, so whether it is complete can't be told")
    elif count < expected and name == "color":
        notes.append(f"{count} of {expected} videos: the others were not scored, or the object wasn't found in them")
    elif count < expected:
        notes.append(f"only {count} of {expected} videos")
    complete = score is not None and (count >= expected or not pairs or name == "color")
    return Result(name, score, _to_values(pairs), complete, note="; ".join(filter(None, notes)))


def _to_score(value: Any) -> tuple[float | None, str]:
    """(score, why there is none). Scores are cosines and shares: what is beyond -1 to 1 is none."""
    if value is None:
        return None, ""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None, f"its score is {value!r:.20}, not a number"
    if abs(value) > 1:
        return None, f"its score is {value}, expected at most 1"
    return float(value), ""


def _to_values(pairs: Any) -> dict[str, float]:
    """Numbers, and yes or no as 1 or 0."""
    return {
        str(file): float(value)
        for file, value in pairs
        if isinstance(value, (bool, int, float)) and math.isfinite(value)
    }
