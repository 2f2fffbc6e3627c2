"""What is there of the videos that a run needs, and what is wrong with them."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fps_flex.checks import some
from train.common.atomic import digest_file
from train.common.videos import ClipError, open_video
from train.common.work import progress_bar

from ..generate.jobs import Clip
from ..reading import NoFile, read_json, write_json
from .plan import fold
from .suite import FLICKER, SEEDS, Plan

log = logging.getLogger("fps_flex")
SHOWN = 10  # of each kind of problem, in the terminal
ONE_FRAME = "has one frame, expected at least two"
PICTURES = (".mp4", ".gif", ".png", ".jpg")  # what the official package takes for videos


@dataclass(frozen=True)
class Seen:
    """A video file, decoded to its end.

    file: its folder, bytes and time of change when it was looked at. reason: why it can't be scored; the rest is what
    was found all the same.
    """

    file: list[Any]
    frames: int
    height: int
    width: int
    fps: float
    reason: str | None


@dataclass(frozen=True)
class Findings:
    """File names of a run's videos, those with something wrong with what it is.

    expected: all that the plan names. missing: of the five a prompt. missing_extra: of the further ones that only the
    static filter of temporal_flickering needs. wrong: of another length, size or rate. one_frame: scores that compare
    frames have no value for them. stray: what else lies there, with the name it may have been meant to have.
    """

    expected: int
    found: int
    missing: tuple[str, ...] = ()
    missing_extra: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    one_frame: tuple[str, ...] = ()
    stray: dict[str, str] = field(default_factory=dict)

    def faults(self) -> dict[str, dict[str, str]]:
        """The videos that can't count, and why where there is more to say, by the kind of fault."""
        return {
            "missing": dict.fromkeys(self.missing, ""),
            "unreadable": self.unreadable,
            "of another length, size or rate": self.wrong,
            "of one frame": dict.fromkeys(self.one_frame, ONE_FRAME),
        }

    @property
    def complete(self) -> bool:
        return not any(self.faults().values())


def check_videos(out: Path, plan: Plan) -> Findings:
    """Decode every planned video that is there. What hasn't changed since the last time isn't decoded again.

    Raises ValueError when there is no folder of videos.
    """
    folder = plan.find_videos(out)
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: generate the videos first, or name theirs with --videos")
    there = {entry.name: entry for entry in os.scandir(folder)}
    planned = {video.name: video for video in plan.videos}
    seen = see_all(folder, [name for name in planned if name in there and there[name].is_file()], out / "seen.json")
    whole = {name: video for name, video in seen.items() if video.reason is None}
    kinds = Counter((x.frames, x.height, x.width, x.fps) for x in whole.values()).most_common(1)
    expected = plan.clip or (kinds and Clip(*kinds[0][0]))  # of videos made elsewhere, what most of them are
    wrong = {name: _differs(video, expected) for name, video in whole.items()}
    absent = [video for name, video in planned.items() if name not in seen]
    missing = tuple(video.name for video in absent if video.index < SEEDS)
    return Findings(
        expected=len(planned),
        found=len(seen),
        missing=missing,
        missing_extra=len(absent) - len(missing),
        unreadable={name: x.reason for name, x in seen.items() if x.reason not in (None, ONE_FRAME)},
        wrong={name: why for name, why in wrong.items() if why},
        one_frame=tuple(name for name, x in seen.items() if x.reason == ONE_FRAME),
        stray=_explain_strays(sorted(there.keys() - seen.keys()), missing),
    )


def see(path: Path) -> Seen:
    """Decode a video to its end. One of a single frame can't be scored: the official code gives it nonsense."""
    file, frames, first, promised, fps, reason = _identify(path), 0, None, 0, 0.0, None
    try:
        with open_video(path) as (container, stream):
            stream.thread_type = "NONE"  # files are decoded side by side
            promised, fps = stream.frames, float(stream.average_rate or 0)
            for frame in container.decode(stream):
                first = first or frame
                frames += 1
        if frames < max(1, promised):
            reason = f"is cut short: {frames} of {promised} frames"
        elif frames == 1:
            reason = ONE_FRAME
    except ClipError as error:
        reason = str(error).removeprefix(f"{path}: ")
    return Seen(file, frames, first.height if first else 0, first.width if first else 0, fps, reason)


def find_usable(
    folder: Path, plan: Plan, dimensions: Collection[str], out: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """Of the dimensions' videos, sha256 of those that can be scored, and what is wrong with the others that are there.

    out: folder of the run, whose seen.json holds what was seen before. What isn't in the plan is said.
    """
    names = [video.name for video in plan.videos if {*video.dimensions} & {*dimensions}]
    seen = see_all(folder, [name for name in names if (folder / name).exists()], out / "seen.json")
    problems = {name: video.reason for name, video in seen.items() if video.reason is not None}
    for name, problem in problems.items():
        log.warning("%s: %s", name, problem)
    if problems:
        log.warning("videos that can't be scored: %s", len(problems))
    stray = sorted({x.name for x in folder.iterdir() if x.suffix.lower() in PICTURES} - {x.name for x in plan.videos})
    if stray:
        log.warning("videos that are not in the plan, and are left alone: %s (%s)", len(stray), some(stray))
    return {name: digest_file(folder / name) for name in seen if name not in problems}, problems


def see_all(folder: Path, names: list[str], cache: Path) -> dict[str, Seen]:
    known = read_seen(cache)
    todo = [name for name in names if name not in known or known[name].file != _identify(folder / name)]
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with progress_bar(bool(todo)) as progress:
            seen = pool.map(lambda name: see(folder / name), todo)
            for name, video in zip(progress.track(todo, description="looking at videos"), seen, strict=True):
                known[name] = video
    finally:  # also when interrupted
        pool.shutdown(cancel_futures=True)
        write_json(cache, {name: asdict(video) for name, video in known.items()})
    return {name: known[name] for name in names}


def _identify(path: Path) -> list[Any]:
    stat = path.stat()
    return [str(path.parent), stat.st_size, stat.st_mtime_ns]


def read_seen(path: Path) -> dict[str, Seen]:
    try:
        return read_json(path, dict[str, Seen])
    except NoFile:
        return {}
    except ValueError as error:
        log.warning("%s can't be used (%s): all videos are looked at again", path, error)
        return {}


def _differs(video: Seen, expected: Clip) -> str:
    """In which ways a video isn't as expected; empty when it is."""
    size, rate = f"{expected.height}x{expected.width}", abs(video.fps - expected.fps)
    parts = {
        f"{video.frames} frames, expected {expected.frames}": video.frames != expected.frames,
        f"{video.height}x{video.width}, expected {size}": f"{video.height}x{video.width}" != size,
        f"{video.fps:g} frames a second, expected {expected.fps:g}": rate > 0.01,
    }
    return "; ".join(part for part, differs in parts.items() if differs)


def _explain_strays(names: list[str], missing: Iterable[str]) -> dict[str, str]:
    meant = {_loosely(name): f"may be meant as {name!r}" for name in missing}
    unfinished = {name: "an unfinished video" for name in names if re.fullmatch(r"\..*\.part\.mp4", name)}
    return {name: unfinished.get(name) or meant.get(_loosely(name), "") for name in names}


def _loosely(name: str) -> str:
    """What is left of a name when case, spaces and punctuation don't count."""
    stem, _, number = fold(name).removesuffix(".mp4").rpartition("-")
    return re.sub(r"[\W_]", "", stem) + "-" + number


def describe_findings(findings: Findings, shown: int = SHOWN) -> list[str]:
    """What was found, in lines; nothing is left out, except that only so many of each kind are named."""
    lines = [f"{findings.found:,} of {findings.expected:,} videos are there"]
    if extra := findings.missing_extra:
        lines.append(f"{extra:,} further seeds of {FLICKER} are missing: they are for its static filter")
    for title, names in (*findings.faults().items(), ("not in the plan, not scored", findings.stray)):
        if names:
            lines.append(f"{len(names):,} {title}:")
            lines += [f"  {name}{f': {why}' if why else ''}" for name, why in list(names.items())[:shown]]
        if len(names) > shown:
            lines.append(f"  ... and {len(names) - shown:,} more")
    return lines
