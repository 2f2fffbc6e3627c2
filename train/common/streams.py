"""The video stream of a file: which one it is, its frames with their times, and how long it lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
from av.stream import Disposition
from torch.utils.data import get_worker_info

from .deinterlace import deinterlace
from .faults import ClipError, Fault

PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own leave the alpha out
DOLBY_VISION, UNSPECIFIED = {"dvh1", "dvhe", "dva1", "dvav"}, 2  # MP4's codec tags; a transfer of ITU-T H.273
JUMP = 1.0  # seconds back that are no longer a slip


@contextmanager
def open_video(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Raises ClipError, also for what goes wrong while the file is open."""
    try:
        with av.open(str(path.absolute())) as container:  # "http:/..." alone would be fetched
            stream = _choose_stream(container)
            _check_codec(stream.codec_context)
            stream.thread_type = "AUTO"
            if get_worker_info():  # one of many: a thread for each core of each takes longer than decoding
                stream.codec_context.thread_count = 1
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


def _check_codec(codec: av.VideoCodecContext | None) -> None:
    if codec is None:
        raise Fault("can't be decoded (no decoder for its codec)")
    if codec.codec_tag in DOLBY_VISION and codec.color_trc == UNSPECIFIED:
        raise Fault("its colours are Dolby Vision's own, expected HDR10, HLG or SDR: convert it")


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
    sought = timed and start > 0
    origin = _find_origin(container, stream) if sought else None
    frames = _decode_from(container, stream, start, origin) if sought else _decode(container, stream)
    last, broken_at_once = None, start == 0
    try:
        for frame in deinterlace(frames, stream.codec_context):
            broken_at_once = False
            time = 0.0 if last is None else last + 1 / rate
            if timed and frame.time is not None:
                origin = frame.time if origin is None else origin
                time = frame.time - origin
            if last is not None and time < last - JUMP:
                raise Fault(f"its times jump back from second {last:.2f} to {time:.2f}, expected rising ones: remux it")
            if last is None or time > last:
                yield time, frame
                last = time
    except av.error.InvalidDataError:
        if broken_at_once:
            raise


def _find_origin(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """When the first frame is shown: the first key frame, unless an edit leaves it out.

    A stream's own start may be that of frames that can't be decoded, or of the file's other streams.
    """
    first = next((packet for packet in container.demux(stream) if packet.is_keyframe and packet.size), None)
    pts = stream.start_time if first is None or first.is_discard or first.pts is None else first.pts
    return float(pts * stream.time_base)


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
    container: av.container.InputContainer, stream: av.VideoStream, start: float, origin: float
) -> Iterator[av.VideoFrame]:
    """Some containers find the key frame that is decoded before `start`, but shown after it: then look further back."""
    moment = origin + start
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
    """Frames a second by the header, which may be wrong.

    The average rate of a stream without timestamps is made up, the guess is from its header.
    """
    rates = [stream.average_rate, stream.guessed_rate]
    return float(next(filter(None, rates if is_timed(container, stream) else reversed(rates)), 25))


def listed_length(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[float, float] | None:
    """Seconds, and frames a second, by a header that lists every frame: MP4's, when they are evenly spaced.

    Other headers may say when the video ends, or what was hoped for; MP4's duration is that of decoding.
    """
    rate, seconds = frame_rate(container, stream), float((stream.duration or 0) * stream.time_base)
    is_whole = stream.frames and abs(stream.frames / rate - seconds) < 1 / rate  # not so with fragments and edits
    is_even = stream.base_rate and abs(stream.base_rate / rate - 1) < 0.01
    return (seconds, rate) if is_whole and is_even and container.format.name.startswith("mov") else None


def measure(path: Path) -> tuple[float, float]:
    """Seconds from the first frame to the last one's end, and frames a second, by all packets. Raises ClipError."""
    with open_video(path) as (container, stream):
        told = frame_rate(container, stream)
        count, start, last, length = _measure_packets(container, stream)
        if not is_timed(container, stream) or start is None:
            return count / told, told
        rate = float((count - 1) / (last - start)) if last > start else told
        fields = 2 if stream.codec_context.field_order > 1 else 1  # of an interlaced frame, maybe in a packet each
        is_right = any(abs(rate / told / each - 1) < 0.01 for each in (1, fields))
        return float(last - start) + (float(length) or 1 / told), told if is_right else rate


def _measure_packets(
    container: av.container.InputContainer, stream: av.VideoStream
) -> tuple[int, Fraction | None, Fraction | None, Fraction]:
    """Their number from the first key frame on, the first and the last time in seconds, and the last one's length."""
    count, first, last, length, begun, key = 0, None, None, 0, False, None
    for packet in container.demux(stream):
        if packet.is_keyframe and not begun:
            count, first, last, begun = 0, None, None, True
            key = None if packet.is_discard else packet.pts
        if not packet.size or packet.is_discard:
            continue
        if None not in (key, packet.pts) and packet.pts < key:
            continue  # shown before the key frame: needs what was before it, and can't be decoded
        count += 1
        if packet.pts is not None:
            first = packet.pts if first is None else min(first, packet.pts)
            if last is None or packet.pts > last:
                last, length = packet.pts, packet.duration or 0
    if first is None:
        return count, None, None, Fraction(0)
    return count, *(ticks * stream.time_base for ticks in (first, last, length))
