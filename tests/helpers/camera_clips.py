"""Video files as cameras, browsers and editors leave them, made on the spot."""

from fractions import Fraction

import av
import numpy as np


def write(path, frames, codec="libx264", rate=8, aspect=None, muxer=None, tags=None, **options):
    """A video of frames that are in the encoder's format already, one each 1/rate s. tags: of the encoder."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(rate), options=options)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, frames[0].format.name
        if aspect:
            stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        for i, frame in enumerate(frames):
            frame.pts, frame.time_base = i, 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frame_of(picture, pix_fmt="yuv420p", matrix="ITU601", bounds="MPEG"):
    """A frame of an RGB picture in another format, whose tags say nothing."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    if not av.VideoFormat(pix_fmt).is_rgb:
        frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=bounds)
        frame.colorspace, frame.color_range = 2, 0
    return frame.reformat(format=pix_fmt)


def flat(color, height=64, width=96):
    return np.full((height, width, 3), color, np.uint8)


def greys(count, **size):
    """Frame i is a flat grey of level 20 + 4 i."""
    return [frame_of(flat(20 + 4 * i, **size)) for i in range(count)]


def flagged(frames, first):
    """The frames, marked as interlaced with this field first (tff, bff)."""
    graph = av.filter.Graph()
    buffer = graph.add_buffer(
        width=frames[0].width, height=frames[0].height, format=frames[0].format.name, time_base=Fraction(1, 25)
    )
    graph.link_nodes(buffer, graph.add("setfield", mode=first), graph.add("buffersink")).configure()
    marked = []
    for i, frame in enumerate(frames):
        frame.pts, frame.time_base = i, Fraction(1, 25)
        graph.push(frame)
        marked.append(graph.pull())
    return marked


def shift(source, path, seconds, audio=0.0, skipped=0, **muxer):
    """The same packets but the first few, all later by `seconds`; audio: seconds of silence from 0 on beside them."""
    with av.open(str(source)) as old, av.open(str(path), "w", options=muxer) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        sound = new.add_stream("mp3" if path.suffix in (".avi", ".flv") else "libopus", rate=48000) if audio else None
        for packet in list(old.demux(video=0))[skipped:-1]:
            late = round(seconds / packet.time_base)
            packet.pts = (packet.pts if packet.pts is not None else packet.dts) + late
            packet.dts = packet.dts + late if packet.dts is not None else None
            packet.stream = stream
            new.mux(packet)
        if sound:
            silence(new, sound, audio)
    return path


def silence(container, stream, seconds):
    for i in range(round(seconds * 48000 / 960)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 960 * i, Fraction(1, 48000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
