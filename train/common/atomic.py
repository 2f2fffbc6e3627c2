"""Files that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Where to write what is to be `path`, which takes its place at the end. A failure leaves path as it was.

    Always the same name, so that the next try writes over what a kill left behind.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
