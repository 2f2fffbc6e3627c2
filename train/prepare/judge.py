"""Measure each clip, decide which are kept, and say why the others are not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fps_flex.checks import require

from ..common.atomic import write_json
from ..common.boxes import WHOLE, Box
from ..common.videos import ClipError, sample_frames
from ..common.work import for_each
from .analysis import color_spread, find_borders, find_near, motion, perceptual_hash
from .records import Clip, Source, is_lasting, read_clips, why_unreadable
from .scorers import Scorer
from .subtitles import find_subtitles

if TYPE_CHECKING:
    from jaxtyping import UInt8

SAMPLE_FPS = 8
SAMPLE_HEIGHT = 240
SLOWER = 0.98  # than the wanted rate: 23.976 for 24 is as good
MISSING = 0.5  # seconds that a clip may go on after the last frame, which is on show for a while


@dataclass(frozen=True)
class Limits:
    """What a clip must keep to. Motion's bounds are the paper's numbers; their unit, and the others, are ours.

    Args:
        min_side: pixels of the shorter side, after cropping.
        min_spread: mean distance of pixels from the median colour, in levels of 255; below, a clip is monochrome.
        min_motion: mean optical flow, in percent of the longer side per 1/16 s; below, a clip is static.
        max_motion: likewise; above, it shakes or moves too fast.
        min_picture: share of the height that must be left when subtitles are cropped away.
        min_distance: share of differing bits of two clips' hashes; below, the later one is a near-duplicate.
        min_fps: frames a second of a video that is slower than the wanted rate; below, it stutters: at Wan's 16 each
            frame would be shown more than twice, and motion be judged by fewer frames than it needs. 0: no limit.

    Raises ValueError for a limit below 0, a share above 1, and when no motion would be left.
    """

    min_side: int = 480
    min_spread: float = 3.0
    min_motion: float = 0.05
    max_motion: float = 2.0
    min_picture: float = 0.7
    min_distance: float = 0.15
    min_fps: float = 8.0

    def __post_init__(self) -> None:
        for limit in fields(self):
            most = 1 if limit.name in ("min_picture", "min_distance") else None
            require(f"limits.{limit.name}", getattr(self, limit.name), least=0, most=most)
        if self.min_motion > self.max_motion:
            raise ValueError(f"limits.min_motion is {self.min_motion}, expected at most max_motion, {self.max_motion}")


def measure(
    folder: Path, sources: list[Source], clips: dict[str, list[Clip]], scorers: list[Scorer], work: Path, skip: bool
) -> list[Clip]:
    """All clips with their boxes, scores and hashes; each video is decoded once.

    skip: leaves clips that were not measured before as they are.
    """
    file = {key: work / "filter" / f"{key}.json" for key in clips}
    by_key = {source.key: source for source in sources}

    def read(key: str) -> list[Clip] | None:
        """What was measured before, if of the same clips."""
        scored = read_clips(file[key]) or []
        return scored if [clip.name for clip in scored] == [clip.name for clip in clips[key]] else None

    def work_on(key: str) -> None:
        measured = measure_video(folder / by_key[key].video, clips[key], scorers)
        write_json(file[key], [asdict(clip) for clip in measured])

    loaded = {key: read(key) for key in clips}
    if not skip:
        for_each("filter", list(clips), lambda key: is_lasting(loaded[key]), work_on)
        loaded |= {key: read(key) for key in clips if not is_lasting(loaded[key])}
    return [clip for key in clips for clip in (loaded[key] or clips[key])]


def measure_video(path: Path, clips: list[Clip], scorers: list[Scorer]) -> Iterator[Clip]:
    """The clips of one video, in the order of their times."""
    waiting = list(clips)
    frames: list[tuple[float, np.ndarray]] = []
    last, step = 0.0, 0.0
    try:
        for time, frame in sample_frames(path, SAMPLE_FPS, SAMPLE_HEIGHT):
            while waiting and time >= waiting[0].end - 1e-6:
                yield _measure_clip(waiting.pop(0), frames, scorers)
                frames = []
            if waiting and time >= waiting[0].start - 1e-6:
                frames.append((time, frame))
            last, step = time, time - last
    except ClipError as error:
        reason = why_unreadable(error, path)
        yield from (replace(clip, reasons=tuple(dict.fromkeys((*clip.reasons, reason)))) for clip in waiting)
        return
    for clip in waiting:
        if clip.end - last > max(MISSING, 1.5 * step):
            yield replace(clip, reasons=(*clip.reasons, f"unreadable: the video breaks off at {last:.2f} s"))
        else:
            yield _measure_clip(clip, frames, scorers)
            frames = []


def _measure_clip(clip: Clip, frames: list[tuple[float, np.ndarray]], scorers: list[Scorer]) -> Clip:
    """frames: with their times in seconds."""
    if len(frames) < 2:
        return replace(clip, reasons=(*clip.reasons, "unreadable: fewer than two frames where the clip should be"))
    pictures = np.stack([picture for _, picture in frames])
    fps = (len(frames) - 1) / (frames[-1][0] - frames[0][0])
    box, notes = find_borders(pictures), []
    if box != WHOLE:
        notes.append(f"borders cropped to {box.width:.0%} x {box.height:.0%}")
        pictures = _crop(pictures, box)
    scores = {"spread": color_spread(pictures), "motion": motion(pictures, fps)}
    subtitles = find_subtitles(pictures)
    if subtitles:
        part = _beside(subtitles)
        scores["without_subtitles"] = part.height
        notes.append(f"subtitles cropped, {part.height:.0%} of the height left")
        pictures, box = _crop(pictures, part), _inside(box, part)
    scores |= {scorer.name: scorer(pictures) for scorer in scorers}
    scores = {name: round(float(value), 4) for name, value in scores.items()}
    bits = "".join(f"{int(x):016x}" for x in perceptual_hash(pictures))
    return replace(clip, scores=scores, box=box, notes=tuple(notes), hash=bits)


def _crop(frames: UInt8[np.ndarray, "f h w 3"], box: Box) -> UInt8[np.ndarray, "f h w 3"]:
    height, width = frames.shape[1:3]
    rows = slice(round(box.top * height), round(box.bottom * height))
    return frames[:, rows, round(box.left * width) : round(box.right * width)]


def _beside(band: Box) -> Box:
    """The larger part of the picture above or below a band."""
    return Box(0.0, band.top, 0.0, 1.0) if band.top > 1 - band.bottom else Box(band.bottom, 1.0, 0.0, 1.0)


def _inside(outer: Box, part: Box) -> Box:
    """A box in fractions of another, in fractions of the whole."""
    top, left = outer.top + part.top * outer.height, outer.left + part.left * outer.width
    return Box(top, top + part.height * outer.height, left, left + part.width * outer.width)


def judge(clips: list[Clip], sources: list[Source], limits: Limits, scorers: list[Scorer], fps: float) -> list[Clip]:
    """The clips with all reasons against them, and a note where frames are repeated to reach `fps`.

    Of near-duplicates the first one stays.
    """
    by_key = {source.key: source for source in sources}
    judged = []
    for clip in clips:
        source, notes = by_key[clip.key], clip.notes
        faults = list(_find_faults(clip, (source.width, source.height), limits, scorers))
        if source.fps < SLOWER * fps:
            notes = (*notes, f"frames repeated: {source.fps:.4g} a second, {fps:g} wanted")
            if clip.scores and source.fps < limits.min_fps:
                faults.append(f"slow: {source.fps:.4g} frames a second, expected at least {min(limits.min_fps, fps):g}")
        judged.append(replace(clip, notes=notes, reasons=(*clip.reasons, *faults)))
    return _drop_duplicates(judged, limits.min_distance)


def _find_faults(clip: Clip, frame: tuple[int, int], limits: Limits, scorers: list[Scorer]) -> Iterator[str]:
    if not clip.scores:
        return
    width, height = round(frame[0] * clip.box.width), round(frame[1] * clip.box.height)
    if min(width, height) < limits.min_side:
        yield f"small: {width}x{height}, expected a shorter side of {limits.min_side} pixels"
    spread, moved = clip.scores["spread"], clip.scores["motion"]
    if spread < limits.min_spread:
        yield f"monochrome: spread {spread:.2f}, expected at least {limits.min_spread}"
    elif moved < limits.min_motion:
        yield f"static: motion {moved:.3f}, expected at least {limits.min_motion}"
    if moved > limits.max_motion:
        yield f"fast: motion {moved:.2f}, expected at most {limits.max_motion}"
    left = clip.scores.get("without_subtitles", 1.0)
    if left < limits.min_picture:
        yield f"subtitles: {left:.0%} of the height would be left, expected {limits.min_picture:.0%}"
    for scorer in scorers:
        if clip.scores[scorer.name] < scorer.minimum:
            yield f"{scorer.name}: {clip.scores[scorer.name]:.2f}, expected at least {scorer.minimum}"


def _drop_duplicates(clips: list[Clip], min_distance: float) -> list[Clip]:
    """Only clips of different videos are compared, and no monochrome ones: those look alike and are dropped already."""
    compared = [i for i, clip in enumerate(clips) if clip.hash and "monochrome" not in " ".join(clip.reasons)]
    hashes = np.array([[int(clips[i].hash[k : k + 16], 16) for k in range(0, 64, 16)] for i in compared], np.uint64)
    videos = np.unique([clips[i].video for i in compared], return_inverse=True)[1]
    original = np.zeros(len(compared), bool)
    judged = list(clips)
    for place, near in enumerate(find_near(hashes.reshape(-1, 4), min_distance)):
        others = np.flatnonzero(near & original[:place] & (videos[:place] != videos[place]))
        if len(others):
            clip, first = clips[compared[place]], clips[compared[others[0]]]
            reason = f"near-duplicate of {first.video} at {first.start:.2f} s"
            judged[compared[place]] = replace(clip, reasons=(*clip.reasons, reason))
        original[place] = not len(others)
    return judged
