"""Which clips are held out for validation: whole source videos, so that val/loss can't be of scenes trained on.

Those that the captions say are for validation, where they say it of any; else some by chance. Clips share a source when
they are of one file, when the captions file says so, and else by their names (see origins).
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Hashable

import torch

from .common.ranks import speaks
from .folder import Clip
from .origins import Origin, find_origin

logger = logging.getLogger(__name__)

COLLECTION = 200  # more numbered names than that are a collection of videos, not pieces of one


def hold_out(clips: list[Clip], most: int, seed: int) -> tuple[list[Clip], list[Clip]]:
    """(held out, to train on): about a fifth, at most `most` and at least one; a clip that is alone is both.

    The sources are gone through by chance, and those that fit are held out. Where none fits, as much as does of the
    smallest: the rest of it is in neither. Where the captions say which, at most `most` of those; others
    of them are in neither. Raises ValueError where the captions leave none to train on.
    """
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = [clips[i] for i in order]
    room = min(most, max(1, len(clips) // 5))
    parts: dict[Hashable, list[Clip]] = defaultdict(list)
    sources = find_sources(
        [clip.video for clip in shuffled],
        [clip.source for clip in shuffled],
        [clip.place or clip.video for clip in shuffled],
    )
    if any(clip.split == "val" for clip in clips):
        return _as_told(shuffled, sources, most)
    for clip, source in zip(shuffled, sources, strict=True):
        parts[source].append(clip)
    if len(parts) == 1:
        if speaks():
            what = "all clips are of one source video" if len(clips) > 1 else "there is one clip"
            logger.warning("%s: val/loss will be of scenes that are trained on", what)
        return shuffled[:room], shuffled[room:] or shuffled
    held_out = _choose(parts, room)
    kept = [clip for clip, source in zip(shuffled, sources, strict=True) if source not in held_out]
    return [clip for source in held_out for clip in parts[source]][:room], kept


def _as_told(clips: list[Clip], sources: list[Hashable], most: int) -> tuple[list[Clip], list[Clip]]:
    held_out, train = ([clip for clip in clips if (clip.split == "val") is held] for held in (True, False))
    if not train:
        raise ValueError(f"all {len(clips)} clips are of the split val: expected some of train")
    sides: dict[Hashable, set[bool]] = defaultdict(set)
    for clip, source in zip(clips, sources, strict=True):
        sides[source].add(clip.split == "val")
    both = sum(len(side) > 1 for side in sides.values())
    if both and speaks():
        logger.warning("sources on both sides of the captions' split: %d; val/loss will be of scenes trained on", both)
    if len(held_out) > most and speaks():
        logger.warning("of the %d clips of the split val %d are validated with (data.val_clips)", len(held_out), most)
    return held_out[:most], train


def _choose(parts: dict[Hashable, list[Clip]], room: int) -> dict[Hashable, None]:
    """The sources to hold out, in order, so that at most `room` of their clips are."""
    chosen: dict[Hashable, None] = {}
    left = room
    for source, clips in parts.items():
        if len(clips) <= left:
            chosen[source] = None
            left -= len(clips)
    if chosen:
        return chosen
    smallest = min(parts, key=lambda source: len(parts[source]))
    if speaks():
        logger.warning(
            "every source video has more clips than are to be held out (%d): of the %d clips of the source of %s the "
            "other %d are left out, of training as well",
            room, len(parts[smallest]), parts[smallest][0].video, len(parts[smallest]) - room,
        )  # fmt: skip
    return {smallest: None}


def find_sources(videos: list[str], told_sources: list[str], files: list[Hashable]) -> list[Hashable]:
    """What each clip was cut from; equal for clips of one source.

    told_sources: by the captions file, where it does. files: equal for two names of one file.
    """
    says = len(set(told_sources)) < len(set(videos))  # where each has a value of its own, it isn't their source's
    origins = [find_origin(video) for video in videos]
    pieces = Counter(origin.video for origin in origins if origin.cut)
    named = [_by_name(origin, pieces) for origin in origins]
    sources = [("said", told) if says and told else name for told, name in zip(told_sources, named, strict=True)]
    return _join(files, sources)


def _join(files: list[Hashable], sources: list[Hashable]) -> list[Hashable]:
    """The sources, with those made one that a file is of under its several names."""
    first: dict[Hashable, Hashable] = {}
    same: dict[Hashable, Hashable] = {}

    def find(source: Hashable) -> Hashable:
        while source in same:
            source = same[source]
        return source

    for file, source in zip(files, sources, strict=True):
        a, b = find(first.setdefault(file, source)), find(source)
        if a != b:
            same[b] = a
    return [find(source) for source in sources]


def _by_name(origin: Origin, pieces: Counter[str]) -> Hashable:
    """Also of an uncut video, beside which there are pieces of it."""
    count = pieces[origin.video]
    if count and (origin.cut == "surely" or count <= COLLECTION):
        return ("name", origin.video)
    return ("file", origin.itself)
