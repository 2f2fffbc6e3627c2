"""Draw captioned clips of a player in the free levels of Freedoom, as a folder that training reads.

python -m train.doom --out CLIPS --clips 9000
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from pathlib import Path
from shlex import quote

import torch

from fps_flex.checks import at_home, require

from ..common.atomic import write_lines
from ..common.console import cli_errors, run_command, writable
from ..common.lock import locked
from ..common.pictures import draw_contact_sheet
from ..common.videos import read_clip
from ..prepare.records import read_json
from .levels import list_levels, share_out
from .reels import REELS, Reel, plan_reels
from .settings import INSTALL, METADATA, Settings, begin
from .workers import film_all

SHEET = "sheet.png"
SHOWN = 12  # clips of the sheet


def main(
    out: str,
    clips: int,
    val_clips: int = 64,
    seed: int = 0,
    frames: int = 32,
    fps: float = 16.0,
    height: int = 128,
    width: int = 256,
    levels_held_out: int = 8,
    workers: int | None = None,
) -> None:
    """Draw clips, their captions (metadata.jsonl) and a contact sheet; a run that was stopped goes on where it was.

    Args:
        out: folder of the clips, which train.fit --data.folder and train.prepare --source read.
        clips: clips to train on.
        val_clips: clips for validation, in levels that are never trained on.
        seed: of all chance: the same options draw the same bytes.
        frames: frames of a clip.
        fps: frames a second.
        height: rows of pixels, an even number.
        width: columns of pixels, an even number.
        levels_held_out: levels of the 68 that are kept for validation.
        workers: processes that draw; as many as there are processors, unless told.
    """
    settings = Settings(clips, val_clips, seed, frames, fps, height, width, levels_held_out)
    workers = _count_processors() if workers is None else workers
    require("--workers", workers, least=1, most=1024)
    reels = plan(settings)
    folder = at_home(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out is {folder}, a file, expected a folder")
    with writable(folder):
        begin(folder, settings)
        with locked(folder, "--out"):
            draw(folder, settings, reels, workers)


def plan(settings: Settings) -> list[Reel]:
    """Raises ValueError where the game isn't installed, or has too few levels."""
    try:
        import vizdoom
    except ImportError:
        raise ValueError(INSTALL) from None
    levels = list_levels(Path(vizdoom.__file__).parent)
    require("--levels_held_out", settings.levels_held_out, most=len(levels) - 1)
    return plan_reels(settings, share_out(levels, settings.levels_held_out, settings.seed))


def draw(out: Path, settings: Settings, reels: list[Reel], workers: int) -> None:
    finished = (out / METADATA).is_file()
    todo = [reel for reel in reels if not (reel.has_videos(out) if finished else reel.is_done(out))]
    for folder in ("train", "val", REELS):
        (out / folder).mkdir(exist_ok=True)
    begun = time.monotonic()
    film_all(todo, settings, out, workers)
    if finished:  # but for clips that were deleted since
        shutil.rmtree(out / REELS)
        return print(f"{out} is finished: {_next(out, settings)}")
    seconds = time.monotonic() - begun
    records = [read_json(reel.record(out)) for reel in reels]
    rows = [row for record in records for row in record["clips"]]
    _draw_sheet(out, rows, settings)
    write_lines(out / METADATA, rows)
    shutil.rmtree(out / REELS)
    failed = sum((Counter(record["failed"]) for record in records), Counter[str]())
    print(describe(out, settings, reels, failed, sum(record["replaced"] for record in records)))
    drawn, processes = sum(len(reel.actions) for reel in todo), min(workers, len(todo))
    print(
        f"{drawn} clips in {seconds:.0f} s: {drawn * settings.frames / seconds:.0f} frames/s in {processes} processes"
    )


def describe(out: Path, settings: Settings, reels: list[Reel], failed: Counter[str], replaced: int) -> str:
    """What a finished folder holds. failed: takes, by why. replaced: clips of another action than planned."""
    levels = {split: len({reel.level.name for reel in reels if reel.split == split}) for split in ("train", "val")}
    again = ", ".join(f"{count} {why}" for why, count in failed.most_common())
    lines = [
        f"{settings.clips} clips of {levels['train']} levels to train on, "
        f"{settings.val_clips} of {levels['val']} other levels for validation",
        f"taken again: {sum(failed.values())}{f' ({again})' if again else ''}",
        f"clips of another action than planned, for which a level has no room or no door: {replaced}",
        f"look at {out / SHEET}; then: {_next(out, settings)}",
    ]
    return "\n".join(lines)


def _next(out: Path, settings: Settings) -> str:
    return f"python -m train.fit --data.folder {quote(str(out))} --data.val_clips {settings.val_clips}"


def _draw_sheet(out: Path, rows: list[dict[str, str]], settings: Settings) -> None:
    """A row a clip, of each action where there are enough."""
    one = {row["action"]: row for row in reversed(rows)}
    shown = [*one.values(), *(row for row in rows if row not in one.values())][:SHOWN]
    size = settings.frames, settings.fps, settings.height, settings.width
    videos = torch.stack([read_clip(out / row["video"], *size) for row in shown])
    draw_contact_sheet(out / SHEET, videos / 127.5 - 1, [row["caption"] for row in shown])


def _count_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command(args: list[str] | None = None) -> None:
    """args: the command line, without the command; by default this process's own."""
    with cli_errors("stopped; the same command goes on where it was"):
        run_command(
            main,
            args,
            as_positional=False,
            description=__doc__.splitlines()[0],
            prog="python -m train.doom",
        )
