"""Read and write video files with PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from .boxes import Box
from .faults import ClipError, Fault
from .frames import cover, cut, render, upright_size
from .streams import frame_rate, is_timed, listed_length, measure, open_video, pixel_aspect, timed_frames

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

SAME_SHAPE = 0.02  # relative: the aspect ratios of one picture at several sizes lie closer together
BT709, VIDEO_RANGE = 1, 1  # as in ITU-T H.273
# without the second, the same pixels gave another file once in some sixty times
X264 = {"x264-params": "cpu-independent=1"}


@dataclass(frozen=True)
class Probe:
    """A video's rows and columns of pixels when upright, average frames a second, seconds, and its codec's name."""

    width: int
    height: int
    fps: float
    seconds: float
    codec: str


def probe(path: Path) -> Probe:
    """What a video is, by its first frame and its times. Raises ClipError."""
    with open_video(path) as (container, stream):
        stream.thread_type = "NONE"  # for one frame, starting threads takes longer than decoding
        _, frame = next(timed_frames(container, stream), (0.0, None))
        if frame is None:
            raise Fault("has no frame")
        height, width = upright_size(frame, pixel_aspect(stream))
        codec, length = stream.codec_context.name, listed_length(container, stream)
    seconds, fps = length or measure(path)
    return Probe(width, height, fps, seconds, codec)


def clip_seconds(path: Path) -> float:
    """How long a video is, after decoding its first frame. Raises ClipError."""
    return probe(path).seconds


def read_clip(
    path: Path, frames: int, fps: float, height: int, width: int, start: float = 0.0, box: Box | None = None
) -> UInt8[Tensor, "3 f h w"]:
    """`frames` frames at `fps`, from `start` seconds on, scaled to cover height x width and cropped to its centre.

    Each is the frame on show at its time, upright. Of each only what is in the box counts, where one is given.
    Raises ClipError when the file can't be read, ends too soon or is damaged there.
    """
    with open_video(path) as (container, stream):
        pictures = []
        for frame in _frames_on_show(container, stream, start, fps):
            if frame.is_corrupt:
                raise Fault(f"is damaged at second {start + len(pictures) / fps:.2f}")
            aspect = pixel_aspect(stream)
            frame, aspect = (cut(frame, box, aspect), 1.0) if box else (frame, aspect)
            pictures.append(cover(frame, height, width, aspect))
            if len(pictures) == frames:
                return torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2).contiguous()
    ending = f"{path}: ends after {len(pictures)} frames at {fps:g} fps from second {start:.2f}, expected {frames}"
    seconds = probe(path).seconds
    cut_short = seconds > start + (frames - 1) / fps + 1e-6
    raise ClipError(f"{ending}; it is cut short: its header says {seconds:.2f} s" if cut_short else ending)


def in_range(video: UInt8[Tensor, "*b 3 f h w"] | Float[Tensor, "*b 3 f h w"]) -> Float[Tensor, "*b 3 f h w"]:
    """Pixels in -1 to 1, of the bytes that files hold; others are so already."""
    return video.float() / 127.5 - 1 if video.dtype == torch.uint8 else video


def sample_frames(path: Path, fps: float | None, height: int) -> Iterator[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
    """(seconds after the first frame, RGB) of about `fps` frames a second of a whole video, none of them twice.

    None: of every frame. Frames are upright, of that height and an even width. A video that breaks off ends there.
    Raises ClipError when the file can't be read, and where its frames change their shape.
    """
    with open_video(path) as (container, stream):
        wanted, ratio = 0, None
        for time, frame in timed_frames(container, stream):
            if fps is None or time * fps >= wanted - 1e-6:
                wanted = 0 if fps is None else floor(time * fps + 1e-6) + 1
                rows, columns = upright_size(frame, pixel_aspect(stream))
                ratio = ratio or columns / rows
                if abs(columns / rows / ratio - 1) > SAME_SHAPE:
                    raise Fault(f"its frames change their shape at second {time:.2f}, to {columns}x{rows}")
                yield time, np.ascontiguousarray(render(frame, height, max(2, round(ratio * height / 2) * 2)))


def _frames_on_show(
    container: av.container.InputContainer, stream: av.VideoStream, start: float, fps: float
) -> Iterator[av.VideoFrame]:
    """The frames on show at start, start + 1/fps, ... in seconds after the first frame, until the last frame's end."""
    shown, count, end = None, 0, 0.0
    for time, frame in timed_frames(container, stream, start):
        while shown is not None and start + count / fps < time - 1e-6:
            yield shown
            count += 1
        shown, end = frame, time + _lasts(container, stream, frame)
    while shown is not None and start + count / fps < end - 1e-6:
        yield shown
        count += 1


def _lasts(container: av.container.InputContainer, stream: av.VideoStream, frame: av.VideoFrame) -> float:
    """Seconds that a frame is on show when none follows."""
    duration = float(frame.duration * frame.time_base) if is_timed(container, stream) and frame.duration else 0.0
    return duration or 1 / frame_rate(container, stream)


def write_video(path: Path, video: Float[Tensor, "3 f h w"], fps: float, lossless: bool = False) -> None:
    """As `encode_video`; the file appears whole or not at all. Raises OSError where it can't be written."""
    with unfinished(path) as temporary:
        encode_video(temporary, video, fps, lossless)
        temporary.replace(path)


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Where a video is written before it takes its place; what is there at the end, or after a failure, is removed."""
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def encode_video(path: Path, video: Float[Tensor, "3 f h w"], fps: float, lossless: bool = False) -> None:
    """H.264 mp4 of pixels in -1 to 1. The same pixels give the same bytes. Raises OSError where it can't be written.

    Browsers play it, height and width must be even, and its colours are BT.709's and say so. lossless: what is decoded
    is each pixel's RGB of eight bits, in 40 to 80 times the bytes, and many players, browsers among them, can't show
    it (High 4:4:4 Predictive, GBR).
    """
    pictures = ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().numpy()
    pixels, quality = ("rgb24", {"qp": "0"}) if lossless else ("yuv420p", {"crf": "18"})
    encode_pictures(path, pictures, fps, pixels, quality)


def encode_pictures(
    path: Path,
    pictures: UInt8[np.ndarray, "f h w 3"],
    fps: float,
    pixels: str,
    quality: dict[str, str],
    threads: int = 0,
) -> None:
    """H.264 mp4. pixels: rgb24, or YUV of BT.709. quality: options of x264. threads: 0 for as many as it likes.

    Raises OSError where it can't be written.
    """
    converter = VideoReformatter()  # one of all frames: making one takes longer than converting
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        codec = "libx264rgb" if pixels == "rgb24" else "libx264"
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=X264 | quality)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], pixels
        stream.codec_context.thread_count = threads
        if pixels != "rgb24":
            _tag(stream.codec_context)
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if pixels != "rgb24":
                frame = converter.reformat(frame, format=pixels, dst_colorspace="ITU709", dst_color_range="MPEG")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _tag(codec: av.VideoCodecContext) -> None:
    codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range = BT709, BT709, BT709, VIDEO_RANGE
