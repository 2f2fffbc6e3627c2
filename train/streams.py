"""The video stream of a file: which one it is, its frames with their times, and how long it lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.stream import Disposition

from .deinterlace import deinterlace
from .faults import ClipError, Fault

PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own leave the alpha out
JUMP = 1.0  # seconds back that are no longer a slip


@contextmanager
def open_video(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Raises ClipError, also for what goes wrong while the file is open."""
    try:
        with av.open(str(path.absolute())) as container:  # "http:/..." alone would be fetched
            stream = _choose_stream(container)
            if stream.codec_context is None:
                raise Fault("can't be decoded (no decoder for its codec)")
            stream.thread_type = "AUTO"
            yield container, stream
    except FileNotFoundError:
        raise ClipError(f"{path}: no such file") from None
    except Fault as fault:
        raise ClipError(f"{path}: {fault}") from None
    except (av.FFmpegError, OSError) as error:
        why = "it is encrypted" if _is_encrypted(path) else error.strerror or error
        raise ClipError(f"{path}: can't be decoded ({why})") from None


def _choose_stream(container: av.container.InputContainer) -> av.VideoStream:
    videos = [stream for stream in container.streams.video if not stream.disposition & PICTURES]
    if not videos:
        raise Fault("has no video stream" + (", only a cover picture" if container.streams.video else ""))
    best = container.streams.best("video")
    return best if best in videos else videos[0]


def _is_encrypted(path: Path) -> bool:
    try:
        with av.open(str(path.absolute())) as container:
            return next(container.demux(video=0)).has_sidedata("encryption_info")
    except (av.FFmpegError, OSError, IndexError, StopIteration):
        return False


def pixel_aspect(stream: av.VideoStream) -> float:
    """A pixel's width over its height when shown, as the container says, else the codec; 1 for what makes no sense."""
    for ratio in (stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio):
        if ratio and 0.1 <= ratio <= 10:
            return float(ratio)
    return 1.0


def timed_frames(
    container: av.container.InputContainer, stream: av.VideoStream, start: float = 0.0
) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds after the first frame, frame) from one on show before or at `start` on, until the video breaks off.

    Frames are progressive. One that isn't later than the one before is left out. Raises Fault when the times jump back.
    """
    rate, timed = frame_rate(container, stream), is_timed(container, stream)
    origin = float(stream.start_time * stream.time_base) if timed else 0.0
    frames = _decode_from(container, stream, start) if timed and start > 0 else _decode(container, stream)
    last, broken_at_once = None, start == 0
    try:
        for frame in deinterlace(frames, stream.codec_context):
            broken_at_once = False
            after = 0.0 if last is None else last + 1 / rate
            time = frame.time - origin if timed and frame.time is not None else after
            if last is not None and time < last - JUMP:
                raise Fault(f"its times jump back from second {last:.2f} to {time:.2f}, expected rising ones: remux it")
            if last is None or time > last:
                yield time, frame
                last = time
    except av.error.InvalidDataError:
        if broken_at_once:
            raise


def _decode(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    name = stream.codec_context.name
    if stream.metadata.get("alpha_mode") != "1" or name not in ALPHA_DECODERS:
        yield from container.decode(stream)
        return
    codec = av.CodecContext.create(ALPHA_DECODERS[name], "r")
    codec.extradata = stream.codec_context.extradata
    for packet in container.demux(stream):
        yield from codec.decode(packet if packet.size else None)


def _decode_from(
    container: av.container.InputContainer, stream: av.VideoStream, start: float
) -> Iterator[av.VideoFrame]:
    """Some containers find the key frame that is decoded before `start`, but shown after it: then look further back."""
    moment = float(stream.start_time * stream.time_base) + start
    for back in (0.0, 1.0, 10.0, start + 1.0):
        container.seek(int((moment - back) / stream.time_base), stream=stream)
        frames = _decode(container, stream)
        first = next(frames, None)
        if first is not None and (first.time or 0.0) <= moment + 1e-6:
            yield first
            break
    yield from frames


def is_timed(container: av.container.InputContainer, stream: av.VideoStream) -> bool:
    """Raw streams have no timestamps; AVI's are wrong where frames are stored out of order, MPEG's few after a seek."""
    return stream.start_time is not None and container.format.name not in ("avi", "mpeg")


def frame_rate(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Frames a second by the header, which may be wrong: see measure.

    The average rate of a stream without timestamps is made up, the guess is from its header.
    """
    rates = [stream.average_rate, stream.guessed_rate]
    return float(next(filter(None, rates if is_timed(container, stream) else reversed(rates)), 25))


def measure(path: Path) -> tuple[float, float]:
    """Seconds from the first frame to the last one's end, and frames a second. Raises ClipError.

    By the header where it lists every frame (MP4), else by the times of all packets, or their number where they have
    none: what other headers say may be the time of the end, or a guess.
    """
    with open_video(path) as (container, stream):
        rate = frame_rate(container, stream)
        told = float((stream.duration or 0) * stream.time_base)
        if container.format.name.startswith("mov") and stream.frames and abs(stream.frames / rate - told) < 1 / rate:
            return told, rate
        count, seconds = _measure_packets(container, stream)
        if not is_timed(container, stream) or not seconds:
            return count / rate, rate
        fields = 2 if stream.codec_context.field_order > 1 else 1  # of an interlaced frame, maybe in a packet each
        is_right = any(abs(count / seconds / rate / each - 1) < 0.01 for each in (1, fields))
        return seconds, rate if is_right else count / seconds


def _measure_packets(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[int, float]:
    """Their number, and seconds from the first one's start to the last one's end; 0 where none has a time."""
    count, start, last, length = 0, None, None, 0
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        count += 1
        if packet.pts is not None:
            start = packet.pts if start is None else min(start, packet.pts)
            if last is None or packet.pts > last:
                last, length = packet.pts, packet.duration or 0
    if start is None:
        return count, 0.0
    return count, float((last - start + (length or (last - start) / max(1, count - 1))) * stream.time_base)
