"""What an entry of a captions file says, under the names that people's tools give to its fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

VIDEO_KEYS = (
    "video", "path", "file_name", "video_path", "file", "filename", "video_file", "video_name", "file_path",
    "filepath", "clip", "clip_path", "media_path", "image", "image_path",
)  # fmt: skip
CAPTION_KEYS = ("prompt", "caption", "cap", "text", "captions", "description", "text_prompt")
SOURCE_KEYS = (
    "source", "source_video", "source_path", "source_id", "original_video", "video_id", "videoid", "youtube_id",
)  # fmt: skip
SPLITS = {"": "", "train": "train", "val": "val", "validation": "val", "test": "test"}


class Row(NamedTuple):
    """A caption of a video, which is a path in the folder or an absolute one.

    source: what the file says the video was cut from; empty where it doesn't say. split: what it says the video is
    for, train, val or test; likewise.
    """

    video: str
    prompt: str
    source: str = ""
    split: str = ""


def read_entry(entry: Any, where: str) -> Iterator[Row]:
    """A row for each caption of a video. where: names the entry to its user.

    Raises ValueError when the entry is no object, or lacks a video or a caption, or they are no text.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: is a {type(entry).__name__}, expected a JSON object")
    fields = name_fields(entry)
    video = _as_text(*_pick(fields, VIDEO_KEYS, "video", where), where)
    if not video:
        raise ValueError(f"{where}: the video is empty")
    key, captions = _pick(fields, CAPTION_KEYS, "caption", where)
    source, split = _as_source(fields, where), _as_split(fields, where)
    for caption in captions if isinstance(captions, list) and captions else [captions]:
        yield Row(video, _as_text(key, caption, where), source, split)


def name_fields(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry under plain names: `File Name` is file_name. Of two that become one, the first."""
    fields: dict[str, Any] = {}
    for key, value in entry.items():
        fields.setdefault(plain_name(key), value)
    return fields


def plain_name(key: str) -> str:
    return re.sub(r"[\s-]+", "_", key.strip().casefold())


def check_text(text: str, where: str) -> None:
    """Raises ValueError for what no file and no tokenizer takes."""
    if "\0" in text:
        raise ValueError(f"{where}: holds a NUL character, expected text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise ValueError(f"{where}: holds {half}, which is no character, at position {error.start}") from None


def _pick(fields: dict[str, Any], keys: tuple[str, ...], what: str, where: str) -> tuple[str, Any]:
    """The first of the keys that there is, and its value."""
    key = next((key for key in keys if key in fields), None)
    if key is None:
        raise ValueError(f"{where}: has no {what}: its keys are {', '.join(fields)}, expected {' or '.join(keys)}")
    return key, fields[key]


def _as_text(key: str, value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key} is {json.dumps(value)}, expected text")
    check_text(value, f"{where}: {key}")
    return value.strip()


def _as_source(fields: dict[str, Any], where: str) -> str:
    key = next((key for key in SOURCE_KEYS if fields.get(key) not in (None, "")), None)
    if key is None:
        return ""
    return _as_text(key, str(fields[key]) if type(fields[key]) is int else fields[key], where)


def _as_split(fields: dict[str, Any], where: str) -> str:
    value = fields.get("split") or ""
    if not isinstance(value, str) or value.strip().casefold() not in SPLITS:
        raise ValueError(
            f"{where}: split is {json.dumps(value)}, expected {', '.join(filter(None, SPLITS))} or nothing: name the "
            "column otherwise where it means something else"
        )
    return SPLITS[value.strip().casefold()]
