"""temporal_flickering without the official package: the one dimension that needs no model.

The score is (255 - mean over t of mean |f_t - f_{t+1}|) / 255. It depends on how pixels become RGB, so frames are
read as the OpenCV that VBench's pins allow (4.11) reads them: swscale, bicubic, BT.601 matrices whatever the file
says of its colours. Newer OpenCV heeds the file; on this project's BT.709 videos that alone moves the score by 0.003
in a noisy one. Frames of 8 bits come out bit for bit the same; of more, the two swscales round differently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from train.common.videos import ClipError, open_video

if TYPE_CHECKING:
    from jaxtyping import UInt8

VERSION = "1"  # of the numbers below: cached ones of another are made again


def score_flicker(path: Path) -> float:
    """Raises ClipError when the file can't be read or has fewer than two frames."""
    return temporal_flickering(read_frames(path), str(path))


def temporal_flickering(frames: Iterable[UInt8[np.ndarray, "h w 3"]], name: str = "the video") -> float:
    """0 to 1, 1 for a still. Raises ClipError for fewer than two frames, or frames of several sizes."""
    changes = []
    for frame, following in pairwise(frames):
        if frame.shape != following.shape:
            raise ClipError(f"{name}: changes its size from {frame.shape[1::-1]} to {following.shape[1::-1]}")
        changes.append(np.abs(frame.astype(np.int16) - following).mean())
    if not changes:
        raise ClipError(f"{name}: has fewer than two frames, so nothing can flicker")
    return float((255.0 - np.mean(changes)) / 255.0)


def read_frames(path: Path) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """BGR, every frame that can be decoded, as OpenCV 4.11 gives them. Raises ClipError."""
    with open_video(path) as (container, stream):
        for frame in container.decode(stream):
            yield frame.reformat(
                format="bgr24", src_colorspace="ITU601", dst_colorspace="ITU601", interpolation="BICUBIC"
            ).to_ndarray()


def bits(path: Path) -> int:
    """Of a colour component. Raises ClipError."""
    with open_video(path) as (_, stream):
        return max((part.bits for part in stream.codec_context.format.components), default=8)
