"""Whole frames of interlaced ones."""

from __future__ import annotations

from collections.abc import Iterator

import av

from .faults import Fault

FLAGGED = {"h264", "mpeg1video", "mpeg2video", "prores", "vc1"}  # decoders that say of each frame what it is
FIRST_FIELD = {2: "tff", 3: "bff", 4: "bff", 5: "tff"}  # by the stream's field order: which field is shown first


def deinterlace(frames: Iterator[av.VideoFrame], codec: av.VideoCodecContext) -> Iterator[av.VideoFrame]:
    """The frames, those that are interlaced as FFmpeg's bwdif makes one frame of each: their times stay.

    A frame is interlaced when it says so, or when the stream does and its frames can't. Raises Fault for fields that
    are stored as frames.
    """
    first_field = FIRST_FIELD.get(codec.field_order) if codec.name not in FLAGGED else None
    graph, shape = None, None
    for frame in frames:
        if graph and shape != (frame.width, frame.height, frame.format.name):
            yield from _finish(graph)
            graph = None
        if graph is None and (first_field or frame.interlaced_frame):
            if codec.name == "hevc" and frame.interlaced_frame:
                raise Fault("it is interlaced HEVC, which holds fields, expected frames: deinterlace it first")
            graph, shape = _bwdif(frame, first_field), (frame.width, frame.height, frame.format.name)
        if graph is None:
            yield frame
        else:
            graph.push(frame)
            yield from _pull(graph)
    if graph:
        yield from _finish(graph)


def _bwdif(frame: av.VideoFrame, first_field: str | None) -> av.filter.Graph:
    graph = av.filter.Graph()
    size = {"width": frame.width, "height": frame.height, "format": frame.format.name}
    nodes = [graph.add_buffer(**size, time_base=frame.time_base)]
    if first_field:
        nodes.append(graph.add("setfield", mode=first_field))
    nodes += [graph.add("bwdif", mode="send_frame", deint="interlaced"), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    return graph


def _finish(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
    graph.push(None)
    yield from _pull(graph)


def _pull(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
