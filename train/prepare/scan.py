"""Find the videos of a folder and look at each: what it is, and whether it can be used at all."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict
from pathlib import Path

from ..listing import is_image
from ..sources import read_captions
from ..videos import ClipError, probe
from .records import Source, for_each, place, read_json, wait_for_all, write_json

logger = logging.getLogger(__name__)


def scan(folder: Path, work: Path) -> list[Source]:
    """Every video for each of its captions, in their order; those that can't be used say why.

    What an earlier run made of a video or caption that has changed since is forgotten.
    Raises ValueError when the folder has no captions.
    """
    found = name_captions(read_captions(folder))
    file = {key: work / "scan" / f"{key}.json" for key in found}
    if place()[0] == 0:
        for key, (video, prompt) in found.items():
            if file[key].is_file() and not _is_unchanged(Source(**read_json(file[key])), folder / video, prompt):
                for stage in ("scan", "cut", "filter"):
                    (work / stage / f"{key}.json").unlink(missing_ok=True)
    wait_for_all()
    for_each(
        "scan",
        list(found),
        lambda key: file[key].is_file(),
        lambda key: write_json(file[key], asdict(look_at(folder, key, *found[key]))),
    )
    return [Source(**read_json(file[key])) for key in found]


def name_captions(captions: list[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Video and caption by key. The first caption of a video has the video's, others have their own beside it.

    The same caption of the same video again is told of and counts once.
    """
    found: dict[str, tuple[str, str]] = {}
    for video, prompt in captions:
        key = make_key(video)
        if key in found and found[key] != (video, prompt):
            key += f"-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"
        found.setdefault(key, (video, prompt))
    if len(found) < len(captions) and place()[0] == 0:
        again = len(captions) - len(found)
        logger.warning("%d captions say the same of the same video as others: each counts once", again)
    return found


def make_key(video: str) -> str:
    return hashlib.sha256(video.encode()).hexdigest()[:16]


def _is_unchanged(source: Source, path: Path, prompt: str) -> bool:
    return source.prompt == prompt and source.modified == _modified(path)


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def look_at(folder: Path, key: str, video: str, prompt: str) -> Source:
    path = folder / video
    modified = _modified(path)
    if is_image(video):
        return Source(key, video, prompt, modified, reason="is an image, expected a video")
    try:
        found = probe(path)
    except ClipError as error:
        return Source(key, video, prompt, modified, reason=str(error).removeprefix(f"{path}: "))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Source(
        key, video, prompt, modified, digest, found.width, found.height, found.fps, found.seconds, found.codec
    )
