"""Upright RGB pictures of decoded frames."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import av
import numpy as np

from .boxes import Box

if TYPE_CHECKING:
    from jaxtyping import UInt8


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Whether rows and columns change places, and whether rows and columns run backwards after that."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    # a stored pixel's x, y go to x * xx + y * yx, x * xy + y * yy
    xx, xy, _, yx, yy = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    turned = abs(xy) > abs(xx)
    return (True, xy < 0, yx < 0) if turned else (False, yy < 0, xx < 0)


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """Rows and columns of pixels."""
    return (frame.width, frame.height) if _orientation(frame)[0] else (frame.height, frame.width)


def render(frame: av.VideoFrame, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """The upright picture, scaled."""
    turned, rows_back, columns_back = _orientation(frame)
    columns, rows = (height, width) if turned else (width, height)
    method = "AREA" if rows < frame.height or columns < frame.width else "BICUBIC"
    picture = frame.reformat(columns, rows, "rgb24", interpolation=method).to_ndarray()
    picture = picture.transpose(1, 0, 2) if turned else picture
    return picture[:: -1 if rows_back else 1, :: -1 if columns_back else 1]


def cut(frame: av.VideoFrame, box: Box) -> av.VideoFrame:
    """What is in the box of the upright picture, at least one pixel."""
    height, width = upright_size(frame)
    top, left = min(round(box.top * height), height - 1), min(round(box.left * width), width - 1)
    bottom, right = max(round(box.bottom * height), top + 1), max(round(box.right * width), left + 1)
    picture = render(frame, height, width)[top:bottom, left:right]
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")


def cover(frame: av.VideoFrame, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """The upright picture scaled to cover height x width, and cropped to its centre."""
    rows, columns = upright_size(frame)
    scale = max(height / rows, width / columns)
    rows, columns = ceil(rows * scale - 1e-6), ceil(columns * scale - 1e-6)
    top, left = (rows - height) // 2, (columns - width) // 2
    return render(frame, rows, columns)[top : top + height, left : left + width]
