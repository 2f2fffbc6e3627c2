"""Files that appear whole or not at all, and never in place of a user's own; and what tells one from another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import EISDIR
from functools import cache
from hashlib import file_digest, sha256
from os import strerror
from pathlib import Path
from shutil import rmtree
from typing import Any

BEGINNING = 4096  # bytes of a file by which its kind is told
ELSEWHERE = "move it away, or choose another --out"
MARK = "fps-flex"  # in what has no other beginning of its own, such as pictures


@contextmanager
def beside(path: Path, over_folder: bool = False) -> Iterator[Path]:
    """Where to write what is to be `path`, which takes its place at the end. A failure leaves path as it was.

    Always the same name, so that the next try writes over what a kill left behind. over_folder: also in a folder's
    place. Raises IsADirectoryError for one otherwise.
    """
    if path.is_dir() and not over_folder:
        raise IsADirectoryError(EISDIR, strerror(EISDIR), str(path))
    temporary = part_of(path)
    if temporary.is_dir():  # of a folder of that name that was killed
        remove(temporary)
    try:
        yield temporary
        put_in_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def part_of(path: Path) -> Path:
    """What a file or folder is called while it is written."""
    return path.with_name(f".{path.name}.part")


def put_in_place(temporary: Path, path: Path) -> None:
    """In place of what is there, file or folder. Where a folder is one of them, a kill between two renames leaves the
    old one under another name, from which `recover` brings it back.
    """
    if not (path.exists() and (path.is_dir() or temporary.is_dir())):
        temporary.replace(path)
        return
    old = _old(path)
    remove(old)
    path.rename(old)
    temporary.rename(path)
    remove(old)


def recover(path: Path) -> None:
    """Bring back what a kill in `put_in_place` left without its name; other processes may do the same."""
    if not path.exists():
        with suppress(FileNotFoundError):
            _old(path).rename(path)


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it, where there is one."""
    if path.is_dir() and not path.is_symlink():
        rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def write_text(path: Path, text: str) -> None:
    """In UTF-8, and in a folder that is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """A line of JSON each."""
    write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def check_ours(path: Path, mark: str = MARK, elsewhere: str = ELSEWHERE) -> None:
    """Raises ValueError where what a path holds isn't ours to replace: a folder, or a file of another's making.

    mark: what a file of ours holds in its first bytes. One that is empty holds nothing to lose. elsewhere: what to do.
    """
    try:
        with path.open("rb") as file:
            beginning = file.read(BEGINNING)
    except (FileNotFoundError, NotADirectoryError):  # the latter is told where its folder is made
        return
    except OSError as error:
        raise ValueError(f"{path} can't be replaced ({error.strerror}): {elsewhere}") from None
    if beginning.strip(b"\0") and mark.encode() not in beginning:
        raise ValueError(f"{path} was not written by this command: {elsewhere}")


def digest_content(content: str | bytes) -> str:
    """sha256 in hex, of text in UTF-8."""
    return sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def digest_file(path: Path) -> str | None:
    """sha256 of a file's bytes; None where there is no file. Raises OSError for one that can't be read."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return _digest(path, stat.st_size, stat.st_mtime_ns) if path.is_file() else None


@cache
def _digest(path: Path, size: int, modified: int) -> str:
    """size, modified: one that was written since is read again."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
