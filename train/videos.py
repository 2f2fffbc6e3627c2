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
from torch import Tensor

from .boxes import Box
from .frames import cover, cut, render, upright_size

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

BT709, VIDEO_RANGE = 1, 1  # as in ITU-T H.273
# without the second, the same pixels gave another file once in some sixty times
X264 = {"crf": "18", "x264-params": "cpu-independent=1"}


class ClipError(ValueError):
    """A video file that can't be used; the message names it and says why."""


@dataclass(frozen=True)
class Probe:
    """A video's rows and columns of pixels when upright, average frames a second, seconds, and its codec's name."""

    width: int
    height: int
    fps: float
    seconds: float
    codec: str


@contextmanager
def open_video(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Raises ClipError, also for what goes wrong while the file is open."""
    try:
        with av.open(str(path.absolute())) as container:  # "http:/..." alone would be fetched
            stream = container.streams.best("video")
            if stream is None:
                raise ClipError(f"{path}: has no video stream")
            if stream.codec_context is None:
                raise ClipError(f"{path}: can't be decoded (no decoder for its codec)")
            stream.thread_type = "AUTO"
            yield container, stream
    except FileNotFoundError:
        raise ClipError(f"{path}: no such file") from None
    except (av.FFmpegError, OSError) as error:
        raise ClipError(f"{path}: can't be decoded ({error.strerror or error})") from None


def probe(path: Path) -> Probe:
    """What a video is, by its header and its first frame. Raises ClipError."""
    with open_video(path) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise ClipError(f"{path}: has no frame")
        height, width = upright_size(frame)
        fps, seconds, codec = _rate(container, stream), _header_seconds(container, stream), stream.codec_context.name
    return Probe(width, height, fps, seconds or _packet_seconds(path), codec)


def clip_seconds(path: Path) -> float:
    """How long a video is, by its header if that says so, after decoding its first frame. Raises ClipError."""
    return probe(path).seconds


def read_clip(
    path: Path, frames: int, fps: float, height: int, width: int, start: float = 0.0, box: Box | None = None
) -> UInt8[Tensor, "3 f h w"]:
    """`frames` frames at `fps`, from `start` seconds on, scaled to cover height x width and cropped to its centre.

    Each is the frame on show at its time, upright. Of each only what is in the box counts, where one is given.
    Raises ClipError when the file can't be read or ends too soon.
    """
    with open_video(path) as (container, stream):
        pictures = []
        for frame in _frames_on_show(container, stream, start, fps):
            pictures.append(cover(cut(frame, box) if box else frame, height, width))
            if len(pictures) == frames:
                return torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2).contiguous()
        seconds = _header_seconds(container, stream) or 0.0
    ending = f"{path}: ends after {len(pictures)} frames at {fps:g} fps from second {start:.2f}, expected {frames}"
    cut_short = seconds > start + (frames - 1) / fps + 1e-6
    raise ClipError(f"{ending}; it is cut short: its header says {seconds:.2f} s" if cut_short else ending)


def sample_frames(path: Path, fps: float, height: int) -> Iterator[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
    """(seconds after the first frame, RGB) of about `fps` frames a second of a whole video, none of them twice.

    Frames are upright, of that height and an even width. A video that breaks off ends there. Raises ClipError when the
    file can't be read.
    """
    with open_video(path) as (container, stream):
        wanted = 0
        for time, frame in _timed_frames(container, stream, 0.0):
            if time * fps >= wanted - 1e-6:
                wanted = floor(time * fps + 1e-6) + 1
                rows, columns = upright_size(frame)
                yield time, np.ascontiguousarray(render(frame, height, max(2, round(columns * height / rows / 2) * 2)))


def _frames_on_show(
    container: av.container.InputContainer, stream: av.VideoStream, start: float, fps: float
) -> Iterator[av.VideoFrame]:
    """The frames on show at start, start + 1/fps, ... in seconds after the first frame, until the last frame's end."""
    shown, count, end = None, 0, 0.0
    for time, frame in _timed_frames(container, stream, start):
        while shown is not None and start + count / fps < time - 1e-6:
            yield shown
            count += 1
        shown, end = frame, time + 1 / _rate(container, stream)
    while shown is not None and start + count / fps < end - 1e-6:
        yield shown
        count += 1


def _timed_frames(
    container: av.container.InputContainer, stream: av.VideoStream, start: float
) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds after the first frame, frame) from one on show before or at `start` on, until the video breaks off."""
    rate, timed = _rate(container, stream), _is_timed(container, stream)
    origin = float(stream.start_time * stream.time_base) if timed else 0.0
    frames = _decode_from(container, stream, start) if timed and start > 0 else container.decode(stream)
    time, broken_at_once = -1 / rate, start == 0
    try:
        for frame in frames:
            time = frame.time - origin if timed and frame.time is not None else time + 1 / rate
            broken_at_once = False
            yield time, frame
    except av.error.InvalidDataError:
        if broken_at_once:
            raise


def _decode_from(
    container: av.container.InputContainer, stream: av.VideoStream, start: float
) -> Iterator[av.VideoFrame]:
    """Some containers find the key frame that is decoded before `start`, but shown after it: then look further back."""
    moment = float(stream.start_time * stream.time_base) + start
    for back in (0.0, 1.0, 10.0, start + 1.0):
        container.seek(int((moment - back) / stream.time_base), stream=stream)
        frames = container.decode(stream)
        first = next(frames, None)
        if first is not None and (first.time or 0.0) <= moment + 1e-6:
            yield first
            break
    yield from frames


def _is_timed(container: av.container.InputContainer, stream: av.VideoStream) -> bool:
    """Raw streams have no timestamps; AVI's are wrong where frames are stored out of order, MPEG's few after a seek."""
    return stream.start_time is not None and container.format.name not in ("avi", "mpeg")


def _rate(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Frames a second. The average rate of a stream without timestamps is made up, the guess is from its header."""
    rates = [stream.average_rate, stream.guessed_rate]
    return float(next(filter(None, rates if _is_timed(container, stream) else reversed(rates)), 25))


def _header_seconds(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def _packet_seconds(path: Path) -> float:
    """How long a video is by the times of all its packets, or by their number where they have none."""
    with open_video(path) as (container, stream):
        packets = [(packet.pts, packet.duration or 0) for packet in container.demux(stream) if packet.size]
        times = [(pts, pts + duration) for pts, duration in packets if pts is not None]
        if not times:
            return len(packets) / _rate(container, stream)
        starts, ends = zip(*times, strict=True)
        return float((max(ends) - min(starts)) * stream.time_base)


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
