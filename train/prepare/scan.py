"""Find the videos of a folder and look at each: what it is, and whether it can be used at all."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

from ..sources import read_captions
from ..videos import ClipError, probe
from .records import Source, for_each, read_json, write_json


def scan(folder: Path, work: Path) -> list[Source]:
    """Every video that has a caption, in their order; those that can't be used say why.

    Raises ValueError when the folder has no captions.
    """
    captions = {make_key(video): (video, prompt) for video, prompt in read_captions(folder)}
    file = {key: work / "scan" / f"{key}.json" for key in captions}
    for_each(
        "scan",
        list(captions),
        lambda key: file[key].is_file(),
        lambda key: write_json(file[key], asdict(look_at(folder, key, *captions[key]))),
    )
    return [Source(**read_json(file[key])) for key in captions]


def make_key(video: str) -> str:
    return hashlib.sha256(video.encode()).hexdigest()[:16]


def look_at(folder: Path, key: str, video: str, prompt: str) -> Source:
    path = folder / video
    try:
        found = probe(path)
    except ClipError as error:
        return Source(key, video, prompt, reason=str(error).removeprefix(f"{path}: "))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Source(key, video, prompt, digest, found.width, found.height, found.fps, found.seconds, found.codec)
