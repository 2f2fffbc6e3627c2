"""Whose a file is: nothing of the user's is written over, deleted, or hidden by what a command wrote before."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from train.common.atomic import digest_file

from ..reading import NoFile, parse, read_bytes, write_json

WRITTEN = ".vbench-written.json"  # beside the files: sha256 by name; null where a kill may have left anything


def parse_written(data: bytes) -> dict[str, str | None]:
    """Nothing where it is damaged: then no file is known to be ours."""
    try:
        return parse(dict[str, str | None], data)
    except ValueError:
        return {}


def read_written(folder: Path) -> dict[str, str | None]:
    try:
        return parse_written(read_bytes(folder / WRITTEN))
    except NoFile:
        return {}


def is_ours(path: Path, name: str, written: Mapping[str, str | None]) -> bool:
    """Whether `path` may be written as `name`: there is nothing yet, or what a command wrote there."""
    if not os.path.lexists(path):
        return True
    return name in written and path.is_file() and written[name] in (None, digest_file(path))


@contextmanager
def writing(folder: Path, names: Iterable[str]) -> Iterator[None]:
    """Around the writing of files in a folder.

    Raises ValueError before anything is written, where one of them is there and isn't as a command left it.
    """
    names, written = [*names], read_written(folder)
    for name in names:
        if (folder / name).is_dir():
            raise ValueError(f"{folder / name} is a folder, expected a file to write")
        if not is_ours(folder / name, name, written):
            raise ValueError(f"{folder / name} isn't as this command wrote it, and would be lost: move it away")
    write_json(folder / WRITTEN, {**written, **dict.fromkeys(names)})
    try:
        yield
    finally:
        sums = {name: digest_file(folder / name) for name in names if (folder / name).is_file()}
        rest = {name: known for name, known in written.items() if name not in names}
        write_json(folder / WRITTEN, {**rest, **sums})
