"""What is found when clips are looked at, kept so that no later start opens a clip that hasn't changed.

In the user's cache folder is a file for each folder of clips. Processes of a machine take turns: one looks, the others
read what it found.
"""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import av
from rich.console import Console
from rich.progress import Progress

from .common.atomic import beside
from .common.caches import cache_file
from .common.faults import is_passing
from .common.ranks import speaks
from .common.videos import ClipError, probe

logger = logging.getLogger(__name__)

VERSION = [1, av.__version__]  # changes when the same clip would be found otherwise
SAVE_EVERY = 20.0  # seconds
TOGETHER = 256  # clips between two looks at the clock
NO_FILE = "no such file"


@dataclass(frozen=True, slots=True)
class Finding:
    """Seconds and frames a second of a clip, or the reason why it can't be used."""

    seconds: float = 0.0
    fps: float = 0.0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """A file as it is now. place: device and inode, alike for two names of one file. missing: why there is none."""

    size: int = 0
    modified: int = 0
    place: tuple[int, int] | None = None
    missing: str | None = None


Kept = dict[str, tuple[int, int, Finding]]  # size and time of change in ns, when it was looked at


def look_at(folder: Path, videos: list[str]) -> dict[str, tuple[Look, Finding]]:
    """What is found of each video; those are opened that weren't before, or have changed since."""
    looks = {video: _look(folder, video) for video in videos}
    file = cache_file(folder)
    kept, passing = _read(file), {}
    if any(_unknown(kept, video, look) for video, look in looks.items()):
        with _turn(folder, file) as file:
            kept = _read(file)  # another may have looked meanwhile
            kept = {video: of for video, of in kept.items() if video in looks or os.path.exists(folder / video)}
            todo = {video: look for video, look in looks.items() if _unknown(kept, video, look)}
            passing = _open_all(folder, todo, kept, file)

    def find(video: str, look: Look) -> Finding:
        if look.missing:
            return Finding(reason=look.missing)
        return passing[video] if video in passing else kept[video][2]

    return {video: (look, find(video, look)) for video, look in looks.items()}


def _look(folder: Path, video: str) -> Look:
    try:
        status = os.stat(os.path.join(folder, video))
    except (FileNotFoundError, NotADirectoryError):
        return Look(missing=NO_FILE)
    except OSError as error:
        return Look(missing=f"can't be read ({error.strerror})")
    if not stat.S_ISREG(status.st_mode):
        return Look(missing="is no file" if not stat.S_ISDIR(status.st_mode) else "is a folder")
    return Look(status.st_size, status.st_mtime_ns, (status.st_dev, status.st_ino))


def _unknown(kept: Kept, video: str, look: Look) -> bool:
    return not look.missing and (video not in kept or kept[video][:2] != (look.size, look.modified))


def _open_all(folder: Path, looks: dict[str, Look], kept: Kept, file: Path | None) -> dict[str, Finding]:
    """Adds to what is kept, and saves it now and then. Returns what may be otherwise at the next start."""
    passing: dict[str, Finding] = {}
    videos, saved = list(looks), time.monotonic()
    bar = Progress(console=Console(stderr=True), transient=True, disable=not videos)
    try:
        with bar, ThreadPoolExecutor(min(16, len(os.sched_getaffinity(0)))) as pool:
            task = bar.add_task("looking at the clips", total=len(videos))
            for i in range(0, len(videos), TOGETHER):
                part = videos[i : i + TOGETHER]
                for video, (finding, lasting) in zip(part, pool.map(lambda x: _open(folder / x), part), strict=True):
                    if lasting:
                        kept[video] = (looks[video].size, looks[video].modified, finding)
                    else:
                        passing[video] = finding
                bar.advance(task, len(part))
                if time.monotonic() - saved > SAVE_EVERY:
                    file, saved = _save(folder, file, kept), time.monotonic()
    finally:
        if videos:
            _save(folder, file, kept)
    return passing


def _open(path: Path) -> tuple[Finding, bool]:
    """And whether that lasts as long as the file is the same: a want of rights, memory or a network doesn't."""
    try:
        found = probe(path)
    except ClipError as error:
        return Finding(reason=str(error).removeprefix(f"{path}: ")), not is_passing(error)
    return Finding(found.seconds, found.fps), True


def _read(file: Path | None) -> Kept:
    """Nothing where there is nothing, or nothing to be made sense of."""
    try:
        with file.open(encoding="utf-8") if file else io.StringIO("{}") as lines:
            if json.loads(next(lines, "")).get("version") != VERSION:
                return {}
            entries = map(json.loads, lines)  # one in memory, beside what is made of it
            return {
                video: (int(size), int(modified), Finding(float(seconds), float(fps), reason))
                for video, size, modified, seconds, fps, reason in entries
            }
    except OSError:  # there is none, or saving says what is wrong
        return {}
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        if speaks():
            logger.warning("%s is broken: the clips are looked at again", file)
        return {}


def _save(folder: Path, file: Path | None, kept: Kept) -> Path | None:
    """The file, or None where it can't be written."""
    try:
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            with beside(file) as temporary, temporary.open("w", encoding="utf-8") as lines:
                lines.write(json.dumps({"version": VERSION, "folder": str(folder.resolve())}) + "\n")
                for video, (size, modified, found) in kept.items():
                    lines.write(json.dumps((video, size, modified, found.seconds, found.fps, found.reason)) + "\n")
        return file
    except OSError as error:
        return _tell_unkept(folder, file, error)


@contextmanager
def _turn(folder: Path, file: Path | None) -> Iterator[Path | None]:
    """One process of the machine at a time. Yields the file, or None where nothing can be written beside it."""
    with ExitStack() as stack:
        try:
            if file:
                file.parent.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(file.with_suffix(".lock").open("a"))
                with suppress(OSError):  # some network drives have no locks: then each looks for itself
                    fcntl.lockf(lock, fcntl.LOCK_EX)
        except OSError as error:
            file = _tell_unkept(folder, file, error)
        yield file


def _tell_unkept(folder: Path, file: Path, error: OSError) -> None:
    if speaks():
        logger.warning(
            "what is found of the clips in %s can't be kept in %s (%s), so each start looks at them all; "
            "XDG_CACHE_HOME names another folder than ~/.cache",
            folder,
            file.parent,
            error.strerror,
        )
