"""Read and write video files with PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

BT709, VIDEO_RANGE = 1, 1  # as in ITU-T H.273
# without the second, the same pixels gave another file once in some sixty times
X264 = {"crf": "18", "x264-params": "cpu-independent=1"}


class ClipError(ValueError):
    """A video file that can't be used; the message names it and says why."""


@contextmanager
def open_video(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Raises ClipError, also for what goes wrong while the file is open."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ClipError(f"{path}: has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except FileNotFoundError:
        raise ClipError(f"{path}: no such file") from None
    except (av.FFmpegError, OSError) as error:
        raise ClipError(f"{path}: can't be decoded ({error.strerror or error})") from None


def clip_seconds(path: Path) -> float:
    """How long a video is, by its header, after decoding its first frame. Raises ClipError."""
    with open_video(path) as (container, stream):
        if next(container.decode(stream), None) is None:
            raise ClipError(f"{path}: has no frame")
        if stream.duration is not None:
            return float(stream.duration * stream.time_base)
        return (container.duration or 0) / av.time_base


def read_clip(
    path: Path, frames: int, fps: float, height: int, width: int, start: float = 0.0
) -> UInt8[Tensor, "3 f h w"]:
    """`frames` frames at `fps`, from `start` seconds on, scaled to cover height x width and cropped to its centre.

    Each is the frame on show at its time. Raises ClipError when the file can't be read or ends too soon.
    """
    with open_video(path) as (container, stream):
        pictures = []
        for frame in _frames_on_show(container, stream, start, fps):
            pictures.append(_cover(frame, height, width))
            if len(pictures) == frames:
                return torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2).contiguous()
    raise ClipError(
        f"{path}: ends after {len(pictures)} frames at {fps:g} fps from second {start:.2f}, expected {frames}"
    )


def _frames_on_show(
    container: av.container.InputContainer, stream: av.VideoStream, start: float, fps: float
) -> Iterator[av.VideoFrame]:
    """The frames on show at start, start + 1/fps, ... in seconds after the first frame, until the last frame's end."""
    origin = float((stream.start_time or 0) * stream.time_base)
    container.seek(int((origin + start) / stream.time_base), stream=stream)
    shown, count = None, 0
    for frame in container.decode(stream):
        time = frame.time - origin
        while shown is not None and start + count / fps < time - 1e-6:
            yield shown
            count += 1
        shown = frame
    if shown is not None:
        end = shown.time - origin + 1 / float(stream.average_rate or fps)
        while start + count / fps < end - 1e-6:
            yield shown
            count += 1


def _cover(frame: av.VideoFrame, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    scale = max(height / frame.height, width / frame.width)
    rows, cols = ceil(frame.height * scale - 1e-6), ceil(frame.width * scale - 1e-6)
    picture = frame.reformat(cols, rows, "rgb24", interpolation="AREA" if scale < 1 else "BICUBIC").to_ndarray()
    top, left = (rows - height) // 2, (cols - width) // 2
    return picture[top : top + height, left : left + width]


def write_video(path: Path, video: Float[Tensor, "3 f h w"], fps: float) -> None:
    """H.264 mp4 of pixels in -1 to 1, that browsers play; height and width must be even.

    Its colours are BT.709's and say so. The same pixels give the same bytes. The file appears whole or not at all.
    """
    pictures = ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().numpy()
    aside = path.with_name(f".{path.stem}.part{path.suffix}")
    with av.open(str(aside), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=X264)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        codec = stream.codec_context
        codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range = BT709, BT709, BT709, VIDEO_RANGE
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    aside.replace(path)
