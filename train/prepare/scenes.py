"""Where the scene changes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from ..common.videos import probe, sample_frames

SIDE = 256  # pixels of the longer side of the frames that are compared
TICKS = 1_000_000  # a second, of the times that the detector is given


def find_scenes(path: Path) -> list[tuple[float, float]]:
    """Start and end of each scene in seconds after the first frame, by PySceneDetect's content detector.

    It sees the frames as training does, at their times. A video that breaks off ends there. Raises ClipError.
    """
    from scenedetect import ContentDetector
    from scenedetect.common import FrameTimecode, Timecode

    found = probe(path)
    detector, starts, time = ContentDetector(), [0.0], 0.0
    height = max(1, round(found.height * min(1.0, SIDE / max(found.height, found.width))))
    for time, frame in sample_frames(path, None, height):
        at = FrameTimecode(Timecode(pts=round(time * TICKS), time_base=Fraction(1, TICKS)), fps=found.fps)
        starts += [cut.seconds for cut in detector.process_frame(at, np.ascontiguousarray(frame[..., ::-1]))]
    end = min(found.seconds, time + 1.5 / found.fps)
    return list(zip(starts, [*starts[1:], end], strict=True))
