"""The captions of a folder of clips, in the formats that fine-tuners of Wan have."""

from __future__ import annotations

import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg"}
VIDEO_KEYS = ("video", "path", "file_name", "video_path", "file")
CAPTION_KEYS = ("prompt", "caption", "cap", "text")
FORMATS = "metadata.csv with the columns video,prompt, metadata.jsonl, videos2caption.json or a .txt beside each video"


def read_captions(folder: Path) -> list[tuple[str, str]]:
    """(video, prompt) of each clip of a folder, by the first there is of the FORMATS.

    A video is a path in the folder, or an absolute one. The order is the file's own; that of videos with a .txt each
    is their paths'. Raises ValueError for no folder, none of the formats, no clip, and a malformed file.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: expected a folder of clips with {FORMATS}")
    if (folder / "metadata.csv").is_file():
        return _read_csv(folder / "metadata.csv")
    if lines := _find_jsonl(folder):
        return _read_jsonl(lines)
    if (folder / "videos2caption.json").is_file():
        return _read_json(folder / "videos2caption.json")
    return _read_texts(folder)


def _read_csv(path: Path) -> list[tuple[str, str]]:
    table = csv.DictReader(io.StringIO(_read(path)))
    try:
        columns = table.fieldnames or []
        missing = [name for name in ("video", "prompt") if name not in columns]
        if missing:
            raise ValueError(
                f"{path} lacks the column {' and '.join(missing)}: it has {','.join(columns) or 'none'}, "
                "expected video,prompt"
            )
        rows = [(row["video"], row["prompt"] or "") for row in table]
    except csv.Error as error:
        raise ValueError(f"{path}, after line {table.line_num}: malformed CSV ({error})") from None
    if not rows:
        raise ValueError(f"{path} names no clip: expected a row video,prompt for each")
    empty = [line for line, (video, _) in enumerate(rows, start=2) if not video]
    if empty:
        raise ValueError(f"{path}, row {empty[0]}: the column video is empty")
    return rows


def _find_jsonl(folder: Path) -> Path | None:
    """metadata.jsonl, or the only JSONL file there is. Raises ValueError when it isn't clear which."""
    if (folder / "metadata.jsonl").is_file():
        return folder / "metadata.jsonl"
    files = sorted(path for path in folder.glob("*.jsonl") if path.is_file() and not path.name.startswith("."))
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise ValueError(f"{folder} has {len(files)} JSONL files ({names}): expected one, or metadata.jsonl")
    return files[0] if files else None


def _read_jsonl(path: Path) -> list[tuple[str, str]]:
    rows = []
    # splitlines() would also split at separators that JSON allows in a string
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: malformed JSON ({error.msg} at column {error.colno})") from None
            rows.append(_pick_row(entry, VIDEO_KEYS, CAPTION_KEYS, where))
    if not rows:
        raise ValueError(f"{path} names no clip: expected a line with a JSON object for each")
    return rows


def _read_json(path: Path) -> list[tuple[str, str]]:
    """FastVideo's list of {path, cap}, with the paths in the folder or in its videos/."""
    try:
        entries = json.loads(_read(path))
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}"
        raise ValueError(f"{where}: malformed JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} names no clip: expected a list with {{path, cap}} for each")
    rows = [_pick_row(entry, ("path",), ("cap",), f"{path}, entry {i}") for i, entry in enumerate(entries, start=1)]
    return [(_look_in_videos(path.parent, video), prompt) for video, prompt in rows]


def _look_in_videos(folder: Path, video: str) -> str:
    inside = Path("videos", video)
    return inside.as_posix() if not (folder / video).exists() and (folder / inside).exists() else video


def _pick_row(entry: Any, video_keys: tuple[str, ...], caption_keys: tuple[str, ...], where: str) -> tuple[str, str]:
    """Raises ValueError when the entry is no object, or has no video or no caption."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: is a {type(entry).__name__}, expected a JSON object")
    video = _pick(entry, video_keys, "video", where)
    if not video:
        raise ValueError(f"{where}: the video is empty")
    return video, _pick(entry, caption_keys, "caption", where)


def _pick(entry: dict[str, Any], keys: tuple[str, ...], what: str, where: str) -> str:
    """The first of the keys that the entry has, of a list its first item. Raises ValueError when it is no text."""
    key = next((key for key in keys if key in entry), None)
    if key is None:
        raise ValueError(f"{where}: has no {what}: its keys are {', '.join(entry)}, expected {' or '.join(keys)}")
    value = entry[key][0] if isinstance(entry[key], list) and entry[key] else entry[key]
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key} is {json.dumps(value)}, expected text")
    return value


def _read_texts(folder: Path) -> list[tuple[str, str]]:
    """A video without its .txt is left out, named and counted. Raises ValueError when no video has one."""
    files = [path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    paths = [path.relative_to(folder) for path in files]
    videos = sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    captioned = [video for video in videos if (folder / video).with_suffix(".txt").is_file()]
    if not captioned:
        raise ValueError(f"no captions in {folder}: expected {FORMATS}")
    for video in sorted(set(videos) - set(captioned)):
        logger.warning("left out a clip: %s has no .txt beside it", folder / video)
    if len(captioned) < len(videos):
        logger.warning("left out %d of the %d clips in %s", len(videos) - len(captioned), len(videos), folder)
    return [(video, _read((folder / video).with_suffix(".txt")).strip()) for video in captioned]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: isn't UTF-8 at byte {error.start}") from None
