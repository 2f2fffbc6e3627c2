"""Which files of a folder are clips."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

VIDEO_SUFFIXES = {
    ".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".flv", ".wmv", ".3gp",
    ".ogv", ".mxf", ".gif",
}  # fmt: skip
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def list_files(folder: Path) -> Iterator[str]:
    """Paths in the folder of all files below it but hidden ones. Linked folders are followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    tops = [str(folder)]
    for top in tops:
        for place, folders, names in os.walk(top):
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            tops += [path for name in folders if os.path.islink(path := os.path.join(place, name))]
            inside = os.path.relpath(place, folder).replace(os.sep, "/")
            yield from (name if inside == "." else f"{inside}/{name}" for name in names if not name.startswith("."))
