"""A folder of captioned clips as a data set."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .common.caches import cache_file
from .common.ranks import speaks
from .common.videos import ClipError, read_clip
from .findings import Finding, look_at
from .left_out import LeftOut, tell_left_out
from .listing import is_image
from .order import Pick, as_pick, generator_of
from .sources import read_rows

logger = logging.getLogger(__name__)

SLOWER = 0.99  # 23.976 fps does for 24


@dataclass(frozen=True, slots=True)
class Clip:
    """video: a path in the folder. spare: seconds by which a cut of the wanted length may begin later than the clip.

    source: what the captions say it was cut from. place: of its file, the same for two names of one file. split: what
    the captions say it is for, train or val.
    """

    video: str
    prompt: str
    spare: float
    source: str = ""
    place: tuple[int, int] | None = None
    split: str = ""


def scan_folder(folder: Path, frames: int, fps: float) -> list[Clip]:
    """The clips that a folder has captions of and that can be used; a video that has several is as many clips.

    Each is opened once, and never again while it stays the same. A clip that is missing, unreadable or shorter than
    `frames` at `fps` is left out, named and counted. Raises ValueError for missing or malformed captions (see
    read_rows), and when no clip is left.
    """
    rows = read_rows(folder)
    found = look_at(folder, [row.video for row in rows])
    clips, left, slow = [], [], 0
    for row in rows:
        look, finding = found[row.video]
        still = is_image(row.video)
        if reason := _unfit(still, finding, frames, fps):
            left.append(LeftOut(folder / row.video, reason))
        else:
            spare = 0.0 if still else max(0.0, finding.seconds - frames / fps)
            clips.append(Clip(row.video, row.prompt, spare, row.source, look.place, row.split))
            slow += not still and finding.fps < SLOWER * fps
    tell_left_out(logger, left, len(rows), folder, cache_file(folder, ".left-out.txt"))
    if not clips:
        raise ValueError(f"none of the {len(rows)} clips in {folder} can be used; the first: {left[0]}")
    if slow and speaks():
        logger.warning("%d of the clips in %s have fewer than %g frames a second: some are repeated", slow, folder, fps)
    return clips


def _unfit(still: bool, finding: Finding, frames: int, fps: float) -> str | None:
    """Why a clip can't be used; None where it can. still: an image."""
    needed = (frames - 1) / fps
    if finding.reason is not None:
        return finding.reason
    if still and frames > 1:
        return f"is an image, which is a clip of one frame, expected {frames}"
    if finding.seconds < needed:
        return f"lasts {finding.seconds:.2f} s, expected at least {needed:.2f} s ({frames} frames at {fps:g} fps)"
    return None


class VideoFolder(Dataset):
    """Clips cut to one length, rate and size.

    A clip that breaks when it is read is left out from then on, named and counted, and the next one takes its place;
    the processes that load clips tell each other.
    A pass over the clips cuts each somewhere in it, validation cuts at the start.
    Items: video [3, frames, height, width] in bytes, prompt, name, source, index, pass. Raises ValueError when no
    clip is left.
    """

    def __init__(self, folder: Path, clips: list[Clip], frames: int, fps: float, height: int, width: int) -> None:
        self.folder, self.clips = folder, clips
        self.frames, self.fps, self.height, self.width = frames, fps, height, width
        self.number = {video: i for i, video in enumerate(dict.fromkeys(clip.video for clip in clips))}
        self.broken = torch.zeros(len(self.number), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.clips)

    def names(self) -> list[str]:
        """What tells these clips from others."""
        return [clip.video for clip in self.clips]

    def __getitem__(self, key: int | Pick) -> dict[str, Any]:
        index, pass_ = as_pick(key)
        generator = torch.rand((), generator=generator_of(index, pass_)).item() if pass_ >= 0 else 0.0
        if index >= len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        for step in range(len(self)):
            clip = self.clips[(index + step) % len(self)]
            if not self.broken[self.number[clip.video]]:
                try:
                    return {
                        "video": self._read(clip, generator),
                        "prompt": clip.prompt,
                        "name": clip.video,
                        "source": str(self.folder / clip.video),
                        "index": index,
                        "pass": pass_,
                    }
                except ClipError as error:
                    self._leave_out(clip, error)
        raise ValueError(f"no clip in {self.folder} can be read: all {len(self)} broke")

    def _read(self, clip: Clip, generator: float) -> Tensor:
        where = self.folder / clip.video
        return read_clip(where, self.frames, self.fps, self.height, self.width, generator * clip.spare)

    def _leave_out(self, clip: Clip, error: ClipError) -> None:
        number = self.number[clip.video]
        told = bool(self.broken[number])
        self.broken[number] = True
        if not told:
            logger.warning("left out a clip that broke (%d so far): %s", int(self.broken.sum()), error)
