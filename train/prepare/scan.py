"""Find the videos of a folder and look at each: what it is, and whether it can be used at all."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

from ..common.atomic import digest_content, digest_file, write_json
from ..common.faults import is_passing
from ..common.ranks import speaks
from ..common.videos import ClipError, probe
from ..common.work import for_each
from ..entries import Row
from ..listing import is_image
from .records import Source, read_source

NEVER = -1

logger = logging.getLogger(__name__)


def scan(folder: Path, found: dict[str, Row], work: Path) -> list[Source]:
    """Every video for each of its captions, in their order; those that can't be used say why. found: as name_captions.

    One whose size and time are those of an earlier run isn't opened again. What that run made of a video or caption
    that has changed since is forgotten; of one that was only moved or touched it is kept.
    """
    file = {key: work / "scan" / f"{key}.json" for key in found}
    known = {key: read_source(file[key]) for key in found if file[key].is_file()}

    def is_stale(key: str) -> bool:
        row = found[key]
        return key not in known or _said(known[key]) != (row.prompt, *stamp(folder / row.video))

    stale = {key for key in found if is_stale(key)}

    def look(key: str) -> None:
        now = look_at(folder, key, found[key].video, found[key].prompt)
        if key in known and (now.prompt, now.digest) != (known[key].prompt, known[key].digest):
            for stage in ("cut", "filter"):
                (work / stage / f"{key}.json").unlink(missing_ok=True)
        write_json(file[key], asdict(now))

    for_each("scan", list(found), lambda key: key not in stale, look)
    return [read_source(file[key]) if key in stale else known[key] for key in found]


def name_captions(rows: list[Row]) -> dict[str, Row]:
    """Captions by key. The first caption of a video has the video's, others have their own beside it.

    The same caption of the same video again is told of and counts once.
    """
    found: dict[str, Row] = {}
    for row in rows:
        key = make_key(row.video)
        if key in found and found[key].prompt != row.prompt:
            key += f"-{digest_content(row.prompt)[:8]}"
        found.setdefault(key, row)
    if len(found) < len(rows) and speaks():
        again = len(rows) - len(found)
        logger.warning("%d captions say the same of the same video as others: each counts once", again)
    return found


def make_key(video: str) -> str:
    return digest_content(video)[:16]


def _said(source: Source) -> tuple[str, int, int]:
    return source.prompt, source.modified, source.bytes


def stamp(path: Path) -> tuple[int, int]:
    """When a file was modified, in ns, and its size; zeros where there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return (found.st_mtime_ns, found.st_size) if path.is_file() else (0, 0)


def look_at(folder: Path, key: str, video: str, prompt: str) -> Source:
    """Raises nothing: what can't be used has a reason."""
    path = folder / video
    modified, size = stamp(path)
    if is_image(video):
        return Source(key, video, prompt, modified, size, reason="is an image, expected a video")
    try:
        found = probe(path)
        digest = digest_file(path)
        if digest is None:
            raise OSError(f"{path}: no such file any more")
    except (ClipError, OSError) as error:
        if isinstance(error, OSError) or is_passing(error):
            modified, size = NEVER, NEVER  # so that the next start looks again
        return Source(key, video, prompt, modified, size, reason=str(error).removeprefix(f"{path}: "))
    return Source(
        key, video, prompt, modified, size, digest, found.width, found.height, found.fps, found.seconds, found.codec
    )
