"""Find subtitles: lines of text that stay in the lower or upper third of a clip."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from ..common.boxes import Box
from .analysis import grey_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, UInt8


STEADY = 3  # frames in a row for which a caption stays as it is, while what moves behind it goes
CONTRASTS = (60, 100, 140)  # levels between a stroke and what is around it; the higher part text from busy pictures
LINE_HEIGHTS = (0.02, 0.1)  # of the frame's height: the least and the greatest
PRESENT = 0.25  # part of the clip for which subtitles show
MARGIN = 0.01  # of the frame's height


def find_subtitles(frames: UInt8[np.ndarray, "f h w 3"]) -> Box | None:
    """The band with the lines of text burnt into the upper or the lower third, whichever shows text for longer.

    Text that moves, a word of a few letters and writing in the middle third go unseen.
    Steady writing in the scene itself counts where it is set like subtitles.
    """
    height, width = frames.shape[1:3]
    grey = np.stack([grey_of(frame) for frame in frames])
    square = np.ones((height // 24 | 1, height // 24 | 1), np.uint8)  # hides every stroke of letters
    text = np.zeros((max(1, len(grey) - STEADY + 1), height, width), bool)
    for polarity in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
        strokes = np.stack([cv2.morphologyEx(picture, polarity, square) for picture in grey])
        for i, shown in enumerate(text):
            for line in _text_lines(strokes[i : i + STEADY].min(axis=0), grey[i]):
                shown[line.top : line.bottom, line.left : line.right] = True
    upper, lower = text[:, : height // 2], text[:, height // 2 :]
    low = _presence(lower) >= _presence(upper)
    if _presence(lower if low else upper) < PRESENT:
        return None
    text[:, : height // 2] &= not low
    text[:, height // 2 :] &= low
    return _band(text)


def _presence(text: Bool[np.ndarray, "f h w"]) -> float:
    """The part of the time for which the row that has text most often has it."""
    return float(text.any(axis=2).mean(axis=0).max())


def _band(text: Bool[np.ndarray, "f h w"]) -> Box:
    """The rows and columns that often have text, with a small margin."""
    height, width = text.shape[1:]
    filled = text.mean(axis=(0, 2))
    rows = np.flatnonzero(filled > filled.max() / 3)
    shown = text[:, rows].any(axis=1).mean(axis=0)
    cols = np.flatnonzero(shown > shown.max() / 4)
    margin = MARGIN * height
    top, bottom = max(rows[0] - margin, 0), min(rows[-1] + 1 + margin, height)
    left, right = max(cols[0] - 2 * margin, 0), min(cols[-1] + 1 + 2 * margin, width)
    return Box(float(top / height), float(bottom / height), float(left / width), float(right / width))


class _Line(NamedTuple):
    """A line of text, in pixels of the frame."""

    top: int
    bottom: int
    left: int
    right: int


def _text_lines(contrast: UInt8[np.ndarray, "h w"], grey: UInt8[np.ndarray, "h w"]) -> list[_Line]:
    """The lines of text among strokes that differ from what is around them by `contrast` levels."""
    height = len(contrast)
    word_gap, dots = np.ones((1, height // 24), np.uint8), np.ones((3, 1), np.uint8)
    lines = []
    for least in CONTRASTS:
        strokes = contrast > least
        joined = cv2.dilate(cv2.morphologyEx(strokes.astype(np.uint8), cv2.MORPH_CLOSE, word_gap), dots)
        for left, top, columns, rows, _ in cv2.connectedComponentsWithStats(joined)[2][1:].tolist():
            line = _Line(top + 1, top + rows - 1, left, left + columns)
            if _has_line_shape(line, height) and _is_text(line, strokes, grey):
                lines.append(line)
    return lines


def _has_line_shape(line: _Line, height: int) -> bool:
    tall, centre = line.bottom - line.top, (line.top + line.bottom) / 2 / height
    least, greatest = LINE_HEIGHTS
    outside = not 1 / 3 < centre < 2 / 3 and tall / 2 < line.top and line.bottom < height - tall / 2
    return outside and least * height <= tall <= greatest * height and line.right - line.left >= 4 * tall


def _is_text(line: _Line, strokes: Bool[np.ndarray, "h w"], grey: UInt8[np.ndarray, "h w"]) -> bool:
    """Whether a line's strokes are of one colour, as dense and as winding as letters, with next to none around them."""
    top, bottom, left, right = line
    letters, tall = strokes[top:bottom, left:right], bottom - top
    space = max(2, tall // 3)
    above, below = strokes[max(top - 1 - space, 0) : max(top - 1, 0)], strokes[bottom + 1 : bottom + 1 + space]
    around = max((rows[:, left:right].mean() for rows in (above, below) if len(rows)), default=0.0)
    inked = letters.any(axis=0)
    across, down = _runs(letters).mean() * tall / (right - left), _runs(letters.T)[inked].mean()
    return bool(
        0.15 < letters.mean() < 0.65
        and around < 0.35 * letters.mean()
        and inked.mean() > 0.5
        and 0.7 < across < 3  # strokes that a row meets in a stretch as long as the line is tall
        and 1.08 < down < 2.6  # strokes that a column meets: bars have one
        and grey[top:bottom, left:right][letters].std() < 45
    )


def _runs(mask: Bool[np.ndarray, "lines length"]) -> Int[np.ndarray, " lines"]:
    """How many runs of True each line has."""
    return mask[:, 0].astype(int) + (mask[:, 1:] & ~mask[:, :-1]).sum(axis=1)
