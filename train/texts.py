"""Captions in plain text: a file beside each video, or a list of videos and one of prompts."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from .common.caches import cache_file
from .entries import Row, check_text
from .left_out import LeftOut, tell_left_out
from .listing import is_image, is_video, list_files

logger = logging.getLogger(__name__)

BESIDE = (".txt", ".caption", ".TXT")
PROMPTS = ("prompts.txt", "prompt.txt", "captions.txt")


def read_text(path: Path) -> str:
    """Its lines end in \\n. Raises ValueError for a file that can't be read and for what isn't UTF-8."""
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    return _end_lines(read_utf8(path))


def _end_lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_utf8(path: Path) -> str:
    """As it is, less a byte-order mark. Raises ValueError for what can't be read, isn't UTF-8 or holds a NUL."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror})") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path}: is UTF-16 (Excel's Unicode text), expected UTF-8: save it as that")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: isn't UTF-8 at byte {error.start}") from None
    if "\0" in text:
        line = _end_lines(text[: text.index("\0")]).count("\n") + 1
        raise ValueError(f"{path}, line {line}: holds a NUL character, expected UTF-8 text")
    return text


def read_texts(folder: Path) -> list[Row]:
    """The captions beside videos and images, in the order of their paths; a video without one is left out, named.

    An image beside a video of its name is its thumbnail.
    """
    files = set(list_files(folder))
    videos = sorted(file for file in files if is_video(file))
    stems = {os.path.splitext(video)[0] for video in videos}
    images = sorted(file for file in files if is_image(file) and os.path.splitext(file)[0] not in stems)
    captions = {clip: caption for clip in (*videos, *images) if (caption := _beside(clip, files))}
    left = [LeftOut(folder / video, "has no .txt beside it") for video in videos if video not in captions]
    rows = []
    for clip in sorted(captions):
        try:
            check_text(clip, "its name")
            rows.append(Row(clip, read_text(folder / captions[clip]).strip()))
        except ValueError as error:
            left.append(LeftOut(folder / clip, f"can't be used ({error})"))
    if captions:
        tell_left_out(logger, left, len(left) + len(rows), folder, cache_file(folder, ".no-caption.txt"))
    if captions and not rows:
        raise ValueError(f"none of the {len(left)} clips in {folder} has a caption that can be read: {left[-1]}")
    return rows


def _beside(clip: str, files: set[str]) -> str | None:
    stem = os.path.splitext(clip)[0]
    return next((name for suffix in BESIDE for name in (stem + suffix, clip + suffix) if name in files), None)


def find_prompts(folder: Path) -> Path | None:
    return next((path for name in PROMPTS if (path := folder / name).is_file()), None)


def read_lists(videos: Path, prompts: Path) -> list[Row]:
    """Line by line, a list of videos and one of prompts. Raises ValueError when there aren't as many."""
    names, captions = ([line.strip() for line in read_text(file).split("\n")] for file in (videos, prompts))
    while names and not names[-1]:
        names.pop()
    while len(captions) > len(names) and not captions[-1]:
        captions.pop()
    if "" in names:
        raise ValueError(f"{videos}, line {names.index('') + 1}: is empty, expected a video")
    if not names or len(names) != len(captions):
        raise ValueError(
            f"{videos} has {len(names)} lines and {prompts.name} has {len(captions)}: expected a prompt for each video"
        )
    return [Row(name, caption) for name, caption in zip(names, captions, strict=True)]
