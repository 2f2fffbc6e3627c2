"""A folder of captioned clips as a data set."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from .order import Pick, as_pick, chance_of
from .sources import read_captions
from .videos import ClipError, clip_seconds, read_clip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """video: a path in the folder. spare: seconds by which a cut of the wanted length may begin later than the clip."""

    video: str
    prompt: str
    spare: float


def scan_folder(folder: Path, frames: int, fps: float) -> list[Clip]:
    """The clips that a folder has captions of and that can be used: each is opened once.

    A clip that is missing, unreadable or shorter than `frames` at `fps` is left out, named and counted.
    Raises ValueError for missing or malformed captions (see read_captions), and when no clip is left.
    """
    rows = read_captions(folder)
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


class VideoFolder(Dataset):
    """Clips cut to one length, rate and size.

    A clip that breaks when it is read is left out from then on, named and counted, and the next one takes its place.
    A pass over the clips cuts each somewhere in it, validation cuts at the start.
    Items: video [3, frames, height, width] in -1 to 1, prompt, name, source, index, pass. Raises ValueError when no
    clip is left.
    """

    def __init__(self, folder: Path, clips: list[Clip], frames: int, fps: float, height: int, width: int) -> None:
        self.folder, self.clips = folder, clips
        self.frames, self.fps, self.height, self.width = frames, fps, height, width
        self.broken: set[str] = set()

    def __len__(self) -> int:
        return len(self.clips)

    def names(self) -> list[str]:
        """What tells these clips from others."""
        return [clip.video for clip in self.clips]

    def __getitem__(self, key: int | Pick) -> dict[str, Any]:
        index, pass_ = as_pick(key)
        chance = torch.rand((), generator=chance_of(index, pass_)).item() if pass_ >= 0 else 0.0
        if index >= len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        for step in range(len(self)):
            clip = self.clips[(index + step) % len(self)]
            if clip.video not in self.broken:
                try:
                    return {
                        "video": self._read(clip, chance),
                        "prompt": clip.prompt,
                        "name": clip.video,
                        "source": str(self.folder / clip.video),
                        "index": index,
                        "pass": pass_,
                    }
                except ClipError as error:
                    self._leave_out(clip, error)
        raise ValueError(f"no clip in {self.folder} can be read: all {len(self)} broke")

    def _read(self, clip: Clip, chance: float) -> Tensor:
        pixels = read_clip(
            self.folder / clip.video, self.frames, self.fps, self.height, self.width, chance * clip.spare
        )
        return pixels.float() / 127.5 - 1

    def _leave_out(self, clip: Clip, error: ClipError) -> None:
        self.broken.add(clip.video)
        worker = get_worker_info()
        where = f" in loader process {worker.id}" if worker else ""
        logger.warning("left out a clip that broke (%d so far%s): %s", len(self.broken), where, error)
