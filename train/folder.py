"""A folder of clips with metadata.csv as a data set."""

from __future__ import annotations

import csv
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from .videos import ClipError, clip_seconds, read_clip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """video: a path in the folder. spare: seconds by which a cut of the wanted length may begin later than the clip."""

    video: str
    prompt: str
    spare: float


def scan_folder(folder: Path, frames: int, fps: float) -> list[Clip]:
    """The clips that a folder's metadata.csv names and that can be used: each is opened once.

    A clip that is missing, unreadable or shorter than `frames` at `fps` is left out, named and counted.
    Raises ValueError for a missing or malformed metadata.csv, and when no clip is left.
    """
    rows = read_metadata(folder)
    needed = (frames - 1) / fps
    clips, reasons = [], []
    for video, prompt in track(rows, "looking at the clips", console=Console(stderr=True), transient=True):
        try:
            seconds = clip_seconds(folder / video)
            if seconds < needed:
                raise ClipError(
                    f"{folder / video}: lasts {seconds:.2f} s, expected at least {needed:.2f} s "
                    f"({frames} frames at {fps:g} fps)"
                )
            clips.append(Clip(video, prompt, max(0.0, seconds - needed - 1 / fps)))
        except ClipError as error:
            reasons.append(str(error))
            logger.warning("left out a clip: %s", error)
    if not clips:
        raise ValueError(f"none of the {len(rows)} clips in {folder} can be used; the first: {reasons[0]}")
    if reasons:
        logger.warning("left out %d of the %d clips in %s", len(reasons), len(rows), folder)
    return clips


def read_metadata(folder: Path) -> list[tuple[str, str]]:
    """(video, prompt) of each row of a folder's metadata.csv.

    Raises ValueError when the folder, the file, a column or every row is missing, or a row has no video.
    """
    path = folder / "metadata.csv"
    if not path.is_file():
        raise ValueError(f"no {path}: expected a CSV file with the columns video,prompt")
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        columns = table.fieldnames or []
        missing = [name for name in ("video", "prompt") if name not in columns]
        if missing:
            raise ValueError(
                f"{path} lacks the column {' and '.join(missing)}: it has {','.join(columns) or 'none'}, "
                "expected video,prompt"
            )
        rows = [(row["video"], row["prompt"] or "") for row in table]
    if not rows:
        raise ValueError(f"{path} names no clip: expected a row video,prompt for each")
    empty = [line for line, (video, _) in enumerate(rows, start=2) if not video]
    if empty:
        raise ValueError(f"{path}, row {empty[0]}: the column video is empty")
    return rows


class VideoFolder(Dataset):
    """Clips cut to one length, rate and size.

    A clip that breaks when it is read is left out from then on, named and counted, and the next one takes its place.
    random_start: cut anywhere in a longer clip, not at its start.
    Items: video [3, frames, height, width] in -1 to 1, prompt, name. Raises ValueError when no clip is left.
    """

    def __init__(
        self, folder: Path, clips: list[Clip], frames: int, fps: float, height: int, width: int, random_start: bool
    ) -> None:
        self.folder, self.clips, self.random_start = folder, clips, random_start
        self.frames, self.fps, self.height, self.width = frames, fps, height, width
        self.broken: set[str] = set()

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        if index >= len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        for step in range(len(self)):
            clip = self.clips[(index + step) % len(self)]
            if clip.video not in self.broken:
                try:
                    return {"video": self._read(clip), "prompt": clip.prompt, "name": clip.video}
                except ClipError as error:
                    self._leave_out(clip, error)
        raise ValueError(f"no clip in {self.folder} can be read: all {len(self)} broke")

    def _read(self, clip: Clip) -> Tensor:
        start = clip.spare * torch.rand(()).item() if self.random_start else 0.0
        pixels = read_clip(self.folder / clip.video, self.frames, self.fps, self.height, self.width, start)
        return pixels.float() / 127.5 - 1

    def _leave_out(self, clip: Clip, error: ClipError) -> None:
        self.broken.add(clip.video)
        worker = get_worker_info()
        where = f" in loader process {worker.id}" if worker else ""
        logger.warning("left out a clip that broke (%d so far%s): %s", len(self.broken), where, error)
