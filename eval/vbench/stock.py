"""The videos that are there to be scored, and what is wrong with those that can't be."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from train.common.videos import ClipError

from . import flicker
from .cache import hash_file
from .suite import Plan, Planned

log = logging.getLogger("fps_flex")


@dataclass(frozen=True)
class Stock:
    """The videos that are there: sha256 by name; what is wrong with those that can't be scored; unplanned files."""

    hashes: dict[str, str]
    problems: dict[str, str]
    stray: list[str]


def inspect_videos(folder: Path, wanted: Iterable[Planned], plan: Plan) -> Stock:
    """Look at every video wanted; one of a single frame can't be scored, since the official code gives it nonsense."""
    hashes, problems = {}, {}
    present = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
    names = [video.name for video in wanted if video.name in present]
    with progress_bar() as progress:
        for name in progress.track(names, description="looking at videos"):
            try:
                frames = flicker.count_frames(folder / name)
                if frames < 2:
                    problems[name] = "has one frame, expected at least two"
                else:
                    hashes[name] = hash_file(folder / name)
            except (ClipError, OSError) as error:
                problems[name] = str(error).removeprefix(f"{folder / name}: ")
    planned = {video.name for video in plan.videos}
    stray = sorted(name for name in present - planned if Path(name).suffix.lower() in (".mp4", ".gif", ".png", ".jpg"))
    return Stock(hashes, problems, stray)


def say_stock(stock: Stock) -> None:
    for name, reason in stock.problems.items():
        log.warning("%s: %s", name, reason)
    if stock.problems:
        log.warning("videos that can't be scored: %s", len(stock.problems))
    if stock.stray:
        some = ", ".join(stock.stray[:3]) + (", ..." if len(stock.stray) > 3 else "")
        log.warning("videos that are not in the plan, and are left alone: %s (%s)", len(stock.stray), some)


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), console=Console(stderr=True), transient=True,
    )  # fmt: skip
