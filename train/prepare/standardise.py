"""Bring clips to a few common sizes and one rate."""

from __future__ import annotations

import csv
import io
import logging
from dataclasses import replace
from math import lcm, log
from pathlib import Path
from typing import TYPE_CHECKING

from fps_flex.wan.codecs import Codec

from ..common.atomic import write_json, write_text
from ..common.boxes import WHOLE
from ..common.videos import ClipError, read_clip, write_video
from ..common.work import for_each
from .records import Clip, Source, read_json

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from torch import Tensor

logger = logging.getLogger(__name__)

CLIPS = "clips"
PATCH = 2  # latents per side that Wan's transformer takes for one
MULTIPLE = 16  # pixels per side: the patch of Wan2.1's VAE, at least


def list_buckets(size: tuple[int, int, int], codec: Codec) -> list[tuple[int, int]]:
    """Rows and columns of five aspect ratios, from that of width : height to its upright twin, of at most its area.

    size: frames, rows and columns. Raises ValueError when the codec can't take a clip of these.
    """
    (frames, height, width), (_, rows, columns) = size, codec.latent_size(size)
    if rows % PATCH or columns % PATCH:
        raise ValueError(f"clips of {height}x{width} are {rows}x{columns} latents, expected multiples of {PATCH}")
    step = lcm(MULTIPLE, PATCH * (height // rows), PATCH * (width // columns))
    wide = width / height
    sizes = {(height, width), (width, height)}
    for ratio in (min(wide, 4 / 3), 1.0, max(1 / wide, 3 / 4)):
        rows = max(step, int((height * width / ratio) ** 0.5) // step * step)
        sizes.add((rows, max(step, int(rows * ratio) // step * step)))
    for bucket in sizes:
        codec.latent_size((frames, *bucket))
    return sorted(sizes)


def choose_sizes(clips: list[Clip], sources: list[Source], frames: int, buckets: list[tuple[int, int]]) -> list[Clip]:
    """The clips with the bucket of the nearest aspect ratio."""
    frame = {source.key: source.width / source.height for source in sources if source.height}

    def nearest(clip: Clip) -> tuple[int, int]:
        ratio = frame[clip.key] * clip.box.width / clip.box.height
        return min(buckets, key=lambda size: abs(log(size[1] / size[0] / ratio)))

    return [replace(clip, size=(frames, *nearest(clip))) for clip in clips]


def standardise(folder: Path, clips: list[Clip], fps: float, out: Path) -> None:
    """In out/clips an H.264 mp4 of each clip, and the metadata.csv that makes it a raw folder; one that breaks is left
    out."""
    (out / CLIPS).mkdir(parents=True, exist_ok=True)

    def work(clip: Clip) -> None:
        try:
            write_video(out / CLIPS / f"{clip.name}.mp4", read_pixels(folder, clip, fps).float() / 127.5 - 1, fps)
            write_json(_record(clip, out), clip.digest)
        except ClipError as error:
            logger.warning("left out a clip: %s", error)

    for_each("standardise", clips, lambda clip: find_mp4(clip, out) is not None, work)
    written = [clip for clip in clips if find_mp4(clip, out)]
    table = io.StringIO()
    csv.writer(table).writerows([("video", "prompt"), *((f"{clip.name}.mp4", clip.prompt) for clip in written)])
    write_text(out / CLIPS / "metadata.csv", table.getvalue())


def find_mp4(clip: Clip, out: Path) -> Path | None:
    """The mp4 of a clip as it is now: not of one that was cropped otherwise."""
    file, record = out / CLIPS / f"{clip.name}.mp4", _record(clip, out)
    return file if file.is_file() and record.is_file() and read_json(record) == clip.digest else None


def _record(clip: Clip, out: Path) -> Path:
    return out / "work" / "standardised" / f"{clip.name}.json"


def read_pixels(folder: Path, clip: Clip, fps: float) -> UInt8[Tensor, "3 f h w"]:
    """Straight from the source. Raises ClipError."""
    box = None if clip.box == WHOLE else clip.box
    return read_clip(folder / clip.video, clip.size[0], fps, *clip.size[1:], clip.start, box)
