"""Upright RGB pictures of decoded frames."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import av
import numpy as np
from av.sidedata.sidedata import Type

from .boxes import Box
from .colours import to_rgb

if TYPE_CHECKING:
    from jaxtyping import UInt8


def _know_all_side_data() -> None:
    """PyAV raises for a frame with side data of a kind that it doesn't know, such as a camera's EXIF: so name them."""
    for value in range(MOST_KINDS):
        if value not in Type._value2member_map_:
            kind = object.__new__(Type)
            kind._name_, kind._value_ = f"UNKNOWN_{value}", value
            Type._value2member_map_[value] = kind


MOST_KINDS = 128  # FFmpeg has some 32
_know_all_side_data()


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Whether rows and columns change places, and whether rows and columns run backwards after that."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    # a stored pixel's x, y go to x * xx + y * yx, x * xy + y * yy
    xx, xy, _, yx, yy = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    turned = abs(xy) > abs(xx)
    return (True, xy < 0, yx < 0) if turned else (False, yy < 0, xx < 0)


def upright_size(frame: av.VideoFrame, pixel_aspect: float = 1.0) -> tuple[int, int]:
    """Rows and columns of square pixels. pixel_aspect: a stored pixel's width over its height."""
    rows, columns = frame.height, max(1, round(frame.width * pixel_aspect))
    return (columns, rows) if _orientation(frame)[0] else (rows, columns)


def render(frame: av.VideoFrame, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """The upright picture, scaled. Raises Fault for colours that can't be converted."""
    turned, rows_back, columns_back = _orientation(frame)
    columns, rows = (height, width) if turned else (width, height)
    picture = to_rgb(frame, rows, columns)
    picture = picture.transpose(1, 0, 2) if turned else picture
    return picture[:: -1 if rows_back else 1, :: -1 if columns_back else 1]


def cut(frame: av.VideoFrame, box: Box, pixel_aspect: float = 1.0) -> av.VideoFrame:
    """What is in the box of the upright picture, at least one pixel; its pixels are square."""
    height, width = upright_size(frame, pixel_aspect)
    top, left = min(round(box.top * height), height - 1), min(round(box.left * width), width - 1)
    bottom, right = max(round(box.bottom * height), top + 1), max(round(box.right * width), left + 1)
    picture = render(frame, height, width)[top:bottom, left:right]
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")


def cover(frame: av.VideoFrame, height: int, width: int, pixel_aspect: float = 1.0) -> UInt8[np.ndarray, "h w 3"]:
    """The upright picture scaled to cover height x width, and cropped to its centre."""
    rows, columns = upright_size(frame, pixel_aspect)
    scale = max(height / rows, width / columns)
    rows, columns = ceil(rows * scale - 1e-6), ceil(columns * scale - 1e-6)
    top, left = (rows - height) // 2, (columns - width) // 2
    return render(frame, rows, columns)[top : top + height, left : left + width]
