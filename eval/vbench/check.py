"""What is there of the videos that a run needs, and what is wrong with them."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from train.common.atomic import digest_file
from train.common.videos import ClipError, open_video
from train.common.work import progress_bar

from ..generate.models import Clip
from .plan import fold
from .reading import NoFile, first_of, parse_json, read_json, shape, write_json
from .suite import FLICKER, SEEDS, Plan

log = logging.getLogger("fps_flex")
SHOWN = 10  # of each kind of problem, in the terminal
PICTURES = (".mp4", ".gif", ".png", ".jpg")  # what the official package takes for videos


@dataclass(frozen=True)
class Seen:
    """A video file, decoded to its end. reason: why it can't be; then the rest is what was found before."""

    frames: int = 0
    height: int = 0
    width: int = 0
    fps: float = 0.0
    reason: str | None = None


@dataclass(frozen=True)
class Looked:
    """What was seen. file: the folder, bytes and time of change of what was looked at."""

    file: list[Any]
    seen: Seen


@dataclass(frozen=True)
class Stock:
    """The videos that can be scored: sha256 by name; and what is wrong with the others that are there."""

    hashes: dict[str, str]
    problems: dict[str, str]


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

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unreadable or self.wrong or self.one_frame)


def check_videos(out: Path, plan: Plan) -> Findings:
    """Decode every planned video that is there. What hasn't changed since the last time isn't decoded again.

    Raises ValueError when there is no folder of videos.
    """
    folder = plan.find_videos(out)
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: generate the videos first, or name theirs with --videos")
    there = {entry.name: entry for entry in os.scandir(folder)}
    planned = {video.name: video for video in plan.videos}
    seen = _see_all(folder, [name for name in planned if name in there and there[name].is_file()], out / "seen.json")
    expected = plan.clip or _most_common(seen)
    readable = {name: video for name, video in seen.items() if video.reason is None}
    wrong = {name: _differs(video, expected) for name, video in readable.items() if video.frames > 1}
    absent = [video for name, video in planned.items() if name not in seen]
    missing = tuple(video.name for video in absent if video.index < SEEDS)
    return Findings(
        expected=len(planned),
        found=len(seen),
        missing=missing,
        missing_extra=len(absent) - len(missing),
        unreadable={name: video.reason for name, video in seen.items() if video.reason is not None},
        wrong={name: reason for name, reason in wrong.items() if reason},
        one_frame=tuple(name for name, video in readable.items() if video.frames == 1),
        stray=_explain_strays(sorted(there.keys() - seen.keys()), set(missing)),
    )


def see(path: Path) -> Seen:
    """Decode a video to its end."""
    frames, first, promised, fps = 0, None, 0, 0.0
    try:
        with open_video(path) as (container, stream):
            stream.thread_type = "NONE"  # files are decoded side by side
            promised, fps = stream.frames, float(stream.average_rate or 0)
            for frame in container.decode(stream):
                first = first or frame
                frames += 1
        reason = None if frames >= max(1, promised) else f"{path.name}: is cut short: {frames} of {promised} frames"
    except ClipError as error:
        reason = str(error)
    reason = reason and reason.removeprefix(f"{path}: ").removeprefix(f"{path.name}: ")
    return Seen(frames, first.height if first else 0, first.width if first else 0, fps, reason)


def find_usable(folder: Path, names: Iterable[str], out: Path) -> Stock:
    """Of the videos named, what can be scored; one of a single frame can't, since the official code gives it nonsense.

    out: folder of the run, whose seen.json holds what was seen before.
    """
    hashes, problems = {}, {}
    seen = _see_all(folder, [name for name in names if os.path.lexists(folder / name)], out / "seen.json")
    for name, video in seen.items():
        if video.reason is not None or video.frames < 2:
            problems[name] = video.reason or "has one frame, expected at least two"
            log.warning("%s: %s", name, problems[name])
        else:
            hashes[name] = digest_file(folder / name)
    if problems:
        log.warning("videos that can't be scored: %s", len(problems))
    return Stock(hashes, problems)


def warn_of_strays(folder: Path, plan: Plan) -> None:
    stray = sorted({x.name for x in folder.iterdir() if x.suffix.lower() in PICTURES} - {x.name for x in plan.videos})
    if stray:
        log.warning("videos that are not in the plan, and are left alone: %s (%s)", len(stray), first_of(stray))


def _see_all(folder: Path, names: list[str], cache: Path) -> dict[str, Seen]:
    known = _read_seen(cache)
    stats = {name: (folder / name).stat() for name in names}
    keys = {name: [str(folder), stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    seen = {name: known[name].seen for name in names if name in known and known[name].file == keys[name]}
    todo = [name for name in names if name not in seen]
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with progress_bar(bool(todo)) as progress:
            bar = progress.add_task("looking at videos", total=len(todo))
            for name, video in zip(todo, pool.map(lambda name: see(folder / name), todo), strict=True):
                seen[name] = video
                progress.advance(bar)
    finally:  # also when interrupted
        pool.shutdown(cancel_futures=True)
        looked = known | {name: Looked(keys[name], video) for name, video in seen.items()}
        write_json(cache, {name: asdict(one) for name, one in looked.items()})
    return {name: seen[name] for name in names}


def _read_seen(path: Path) -> dict[str, Looked]:
    try:
        return shape("it", dict[str, Looked], read_json(path))
    except NoFile:
        return {}
    except ValueError as error:
        log.warning("%s can't be used (%s): all videos are looked at again", path, error)
        return {}


def _most_common(seen: dict[str, Seen]) -> Clip | None:
    """Of videos made elsewhere, what most of them are is what all should be."""
    kinds = Counter((x.frames, x.height, x.width, x.fps) for x in seen.values() if x.reason is None and x.frames > 1)
    return Clip(*kinds.most_common(1)[0][0]) if kinds else None


def _differs(video: Seen, expected: Clip | None) -> str:
    """In which ways a video isn't as expected; empty when it is."""
    if expected is None:
        return ""
    parts = []
    if video.frames != expected.frames:
        parts.append(f"{video.frames} frames, expected {expected.frames}")
    if (video.height, video.width) != (expected.height, expected.width):
        parts.append(f"{video.height}x{video.width}, expected {expected.height}x{expected.width}")
    if abs(video.fps - expected.fps) > 0.01:
        parts.append(f"{video.fps:g} frames a second, expected {expected.fps:g}")
    return "; ".join(parts)


def _explain_strays(names: list[str], missing: set[str]) -> dict[str, str]:
    meant = {_loosely(name): name for name in missing}
    strays = {}
    for name in names:
        if re.fullmatch(r"\..*\.part\.mp4", name):
            strays[name] = "an unfinished video"
        else:
            like = meant.get(_loosely(name))
            strays[name] = f"may be meant as {like!r}" if like else ""
    return strays


def _loosely(name: str) -> str:
    """What is left of a name when case, spaces and punctuation don't count."""
    stem, _, number = fold(name).removesuffix(".mp4").rpartition("-")
    return re.sub(r"[\W_]", "", stem) + "-" + number


def write_findings(path: Path, findings: Findings) -> None:
    write_json(path, asdict(findings))


def describe_findings(findings: Findings, shown: int = SHOWN) -> list[str]:
    """What was found, in lines; nothing is left out, except that only so many of each kind are named."""
    lines = [f"{findings.found:,} of {findings.expected:,} videos are there"]
    if findings.missing_extra:
        lines.append(
            f"{findings.missing_extra:,} further seeds of {FLICKER} are missing: they are for its static filter"
        )
    for title, names in (
        ("missing", dict.fromkeys(findings.missing, "")),
        ("unreadable", findings.unreadable),
        ("of another length, size or rate", findings.wrong),
        ("of one frame, which have no score where frames are compared", dict.fromkeys(findings.one_frame, "")),
        ("not in the plan, not scored", findings.stray),
    ):
        if names:
            lines.append(f"{len(names):,} {title}:")
            lines += [f"  {name}{f': {why}' if why else ''}" for name, why in list(names.items())[:shown]]
        if len(names) > shown:
            lines.append(f"  ... and {len(names) - shown:,} more")
    return lines


def parse_findings(data: bytes) -> Findings:
    """Raises ValueError for what isn't what `write_findings` writes."""
    return shape("it", Findings, parse_json("it", data))
