"""What the metrics say of each frame of each row's videos, kept so that the same files are measured once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.common.atomic import digest_content, digest_file, write_text
from train.common.faults import ClipError
from train.common.work import find_device, progress_bar

from ..reading import read_json
from .pairs import Row, Video, look_at, nothing_left
from .similarity import Metric, compare, find_metrics

Frames = dict[str, list[float]]  # {metric: a number a frame}
MARK = '{"candidate"'  # that a file of scores begins with
SHORT = 120  # bytes of a name that stay beside a hash where the whole would be too long for a file system
MOST = 255 - len("..json.part")


@dataclass(frozen=True)
class Scores:
    """of: {row: {video: numbers}} of the videos that all rows could be measured on.

    left_out: why other videos are not among them. not_measured: why metrics are not.
    """

    of: dict[str, dict[str, Frames]]
    videos: list[Video]
    left_out: dict[str, str]
    not_measured: dict[str, str]


def measure(out: Path, rows: list[Row], videos: list[Video]) -> Scores:
    """Every row against the first, by all metrics that the smallest video allows.

    What was measured of the same files before is read from out/scores.
    Raises ValueError as `look_at`, and where no video can be measured.
    """
    looks, left_out = look_at(rows, videos)
    metrics, not_measured = find_metrics(*map(min, zip(*(look.size for look in looks.values()), strict=True)))
    measured: dict[Video, list[Frames]] = {}
    with progress_bar() as progress:
        for video in progress.track([*looks], description="measuring"):
            try:
                measured[video] = [_measure(out, row, rows[0], video, metrics) for row in rows[1:]]
            except ClipError as error:
                left_out[video.name] = str(error)
    if not measured:
        raise nothing_left(left_out)
    of = {row.name: {video.name: frames[i] for video, frames in measured.items()} for i, row in enumerate(rows[1:])}
    return Scores(of, [*measured], left_out, not_measured)


def _measure(out: Path, row: Row, reference: Row, video: Video, metrics: dict[str, Metric]) -> Frames:
    """Raises ClipError for what can't be decoded, and numbers that aren't finite."""
    ours, theirs, file = row.file(video), reference.file(video), find_file(out, row, video)
    key = {"candidate": digest_file(ours), "reference": digest_file(theirs), "metrics": list(metrics)}
    frames = _read(file, key)
    if frames is None:
        frames = compare(ours, theirs, metrics, find_device())
        write_text(file, json.dumps({**key, "frames": frames, "sha256": _digest(frames)}, allow_nan=False) + "\n")
    return frames


def list_folders(out: Path, rows: list[Row]) -> list[Path]:
    """Where the scores of rows are kept."""
    return [out / "scores" / row.name for row in rows[1:]]


def find_file(out: Path, row: Row, video: Video) -> Path:
    """Where a video's scores are kept."""
    name = video.name.encode()
    short = f"{name[:SHORT].decode(errors='ignore')}-{digest_content(name)[:16]}"
    return out / "scores" / row.name / f"{video.name if len(name) <= MOST else short}.json"


def _digest(frames: Frames | None) -> str:
    return digest_content(json.dumps(frames))


def _read(file: Path, key: dict[str, Any]) -> Frames | None:
    """What was measured before; None where that is missing, broken, written over or of other files."""
    try:
        entry = read_json(file, dict[str, Any])
    except ValueError:
        return None
    frames = entry.get("frames")
    return frames if entry == {**key, "frames": frames, "sha256": _digest(frames)} else None
