"""Files that appear whole or not at all: written beside their place, then renamed; and paths from home."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Where to write what is to be `path`, which takes its place at the end. A failure leaves path as it was.

    Always the same name, so that the next try writes over what a kill left behind.
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """In UTF-8, and in a folder that is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def at_home(path: str | Path) -> Path:
    """A path whose ~ is the user's home, or another user's; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
