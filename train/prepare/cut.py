"""Cut videos where the scene changes, and scenes into clips of the wanted length."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ..common.atomic import digest_content, write_json
from ..common.videos import ClipError
from ..common.work import for_each
from .records import Clip, Source, is_lasting, read_clips, why_unreadable
from .scenes import find_scenes


def cut(folder: Path, sources: list[Source], seconds: float, work: Path, skip: bool) -> dict[str, list[Clip]]:
    """The clips of each usable source, by its key. seconds: that a clip lasts, its last frame included.

    skip: takes a video that was not cut before for a single scene.
    """
    usable = [source for source in sources if source.reason is None]
    file = {source.key: work / "cut" / f"{source.key}.json" for source in usable}
    loaded = {key: read_clips(path) for key, path in file.items()}
    if not skip:
        for_each(
            "cut",
            usable,
            lambda source: is_lasting(loaded[source.key]),
            lambda source: write_json(
                file[source.key], [asdict(clip) for clip in cut_video(folder / source.video, source, seconds)]
            ),
        )
        loaded |= {key: read_clips(path) for key, path in file.items() if not is_lasting(loaded[key])}
    return {source.key: loaded[source.key] or cut_one(source, [], seconds) for source in usable}


def cut_video(path: Path, source: Source, seconds: float) -> list[Clip]:
    """One that can't be read to its end is one clip that says so."""
    try:
        return cut_one(source, find_scenes(path), seconds)
    except ClipError as error:
        return [_describe(source, 0.0, source.seconds, (why_unreadable(error, path),))]


def cut_one(source: Source, scenes: list[tuple[float, float]], seconds: float) -> list[Clip]:
    """As many clips of a scene as fit, one after the other; a scene that is too short is one clip that says so."""
    clips = []
    for start, end in scenes or [(0.0, source.seconds)]:
        fitting = int((end - start + 0.5 / source.fps) / seconds)
        pieces = [(start + i * seconds, start + (i + 1) * seconds) for i in range(fitting)] or [(start, end)]
        short = f"short: the scene lasts {end - start:.2f} s, expected {seconds:.2f} s"
        clips += [_describe(source, *piece, reasons=() if fitting else (short,)) for piece in pieces]
    return clips


def _describe(source: Source, start: float, end: float, reasons: tuple[str, ...]) -> Clip:
    """The name changes with the video's content and the caption, so that nothing encoded before is taken for it."""
    tag = digest_content(source.digest + source.prompt)[:8]
    name = f"{source.key}-{tag}-{round(1000 * start):08}"
    start, end = round(start, 4), round(end, 4)
    return Clip(name, source.key, source.digest, source.video, source.prompt, start, end, reasons=reasons)
