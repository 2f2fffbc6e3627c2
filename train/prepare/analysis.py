"""Judge a short clip by a sample of its frames: borders, a single colour, motion, and a hash of its looks.

Frames are RGB and already scaled down, to a height of about 180 to 270 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ..common.boxes import Box

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8, UInt64

NEAR_BLACK = 32  # a border's level is at most this
LIT = 14  # levels above the border's: more than compression leaves in a border
STRAY = 0.02  # part of a border's line that may be lit
EDGE = 0.02  # of the frame's side: over how many lines an edge may be blurred or ringing
WIDEST = 0.4  # of the frame's side: an upright picture in a wide frame has borders of 0.34


def find_borders(frames: UInt8[np.ndarray, "f h w 3"]) -> Box:
    """The picture inside black borders that every frame has; the whole frame when there is none.

    A border is near-black and flat, and ends at a straight sharp edge, so a dark scene isn't one.
    """
    brightest = frames.max(axis=0).max(axis=-1).astype(np.float32)
    height, width = brightest.shape
    left, right = _side_borders(brightest.T)
    top, bottom = _side_borders(brightest[:, left : width - right])
    left, right = _side_borders(brightest[top : height - bottom].T)  # shorter columns, without what top and bottom hid
    return Box(top / height, 1 - bottom / height, left / width, 1 - right / width)


def _side_borders(levels: Float[np.ndarray, "lines length"]) -> tuple[int, int]:
    """How many of the first and of the last lines are a border."""
    return _border(levels), _border(levels[::-1])


def _border(levels: Float[np.ndarray, "lines length"]) -> int:
    black = float(np.median(levels[0]))
    lit = (levels > black + LIT).mean(axis=1)
    outer, inner = int(np.argmax(lit > STRAY)), int(np.argmax(lit > 0.5))
    reach = max(2, round(EDGE * len(levels)))
    if black > NEAR_BLACK or not 0 < outer <= inner <= min(outer + reach, WIDEST * len(levels)):
        return 0
    flat = levels[: max(outer - reach, 1)].std() < LIT / 4
    rise = levels[inner + 1] - levels[max(inner - 3, 0)]
    return inner if flat and (rise > LIT).mean() > 0.5 else 0


def color_spread(frames: UInt8[np.ndarray, "f h w 3"]) -> float:
    """How far a frame's colours lie from its median colour, in levels of 255, averaged over the picture and the frames.

    Near 0 when each frame is about one flat colour, also in a fade; fine noise doesn't count.
    A picture in shades of grey spreads as far as one in colour.
    """
    spreads = []
    for frame in frames:
        small = cv2.resize(frame, (48, 48), interpolation=cv2.INTER_AREA).astype(np.float32)
        spreads.append(np.abs(small - np.median(small, axis=(0, 1))).mean())
    return float(np.mean(spreads))


FLOW_SIZE = 256  # the longer side, in pixels, of the frames that are compared
TEXTURE = 2.0  # levels a pixel: a weaker gradient says nothing of motion


def motion(frames: UInt8[np.ndarray, "f h w 3"], fps: float) -> float:
    """Mean optical flow where there is texture, in percent of the frame's longer side per 1/16 s.

    The unit is ours. fps: the sample's mean rate, of two frames or more; 8 and above measure well.
    0 for equal frames and for frames without texture.
    """
    scale = FLOW_SIZE / max(frames.shape[1:3])
    pictures = [cv2.resize(grey_of(frame), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for frame in frames]
    matcher = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    lengths = []
    for before, after in zip(pictures, pictures[1:], strict=False):
        textured = _texture(before) > TEXTURE
        length = np.linalg.norm(matcher.calc(before, after, None), axis=-1)
        lengths.append(length[textured].mean() if textured.any() else 0.0)
    return float(np.mean(lengths)) * 100 / FLOW_SIZE * fps / 16


def _texture(picture: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """The gradient's length in levels a pixel, averaged over 9 x 9 pixels."""
    across, down = (cv2.Sobel(picture, cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
    return cv2.boxFilter(np.hypot(across, down), -1, (9, 9))


def grey_of(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


HASHED_FRAMES, HASH_SIDE = 4, 8
HASH_BITS = HASHED_FRAMES * (HASH_SIDE**2 - 1)


def perceptual_hash(frames: UInt8[np.ndarray, "f h w 3"]) -> UInt64[np.ndarray, "4"]:
    """The DCT hashes of four frames spread over the clip: alike for the same clip at another bitrate or size."""
    spread = np.linspace(0, len(frames) - 1, HASHED_FRAMES).round().astype(int)
    return np.array([_frame_hash(frames[i]) for i in spread], dtype=np.uint64)


def _frame_hash(frame: UInt8[np.ndarray, "h w 3"]) -> int:
    small = cv2.resize(grey_of(frame), (4 * HASH_SIDE, 4 * HASH_SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:HASH_SIDE, :HASH_SIDE].ravel()[1:]  # all but the mean level
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def hash_distance(a: UInt64[np.ndarray, "... 4"], b: UInt64[np.ndarray, "... 4"]) -> Float[np.ndarray, "..."]:
    """The part of two hashes' bits that differ: 0 for the same looks, about 0.5 for unrelated clips."""
    return np.bitwise_count(a ^ b).sum(axis=-1) / HASH_BITS


BLOCK = 128  # hashes compared at a time


def find_near(hashes: UInt64[np.ndarray, "n 4"], min_distance: float) -> Iterator[Bool[np.ndarray, " i"]]:
    """Of each hash i in turn: which of those before it are nearer than `min_distance`.

    The matrix product of bits taken as 1 and -1 is 256 less twice the bits that differ: exact, and many times as fast
    as counting bits hash by hash.
    """
    signs = 2 * np.unpackbits(np.ascontiguousarray(hashes).view(np.uint8), axis=1).astype(np.float32) - 1
    least = 256 - 2 * HASH_BITS * min_distance
    for start in range(0, len(signs), BLOCK):
        alike = signs[start : start + BLOCK] @ signs[: start + BLOCK].T > least
        for row, near in enumerate(alike):
            yield near[: start + row]
