"""Which sizes of videos a model can make, and the nearest to one that it can't."""

from __future__ import annotations

from math import prod

import torch

from fps_flex.tiles import Triple

from .models import TextToVideo

AXES = ("frames", "height", "width")
UNITS = ("frames", "rows", "columns")
MOST_TOKENS = 2**20  # of a video: 14 times those of 81 frames at 720p
FARTHEST = 2**14  # frames, rows or columns to the nearest size that is looked for


def check_size(model: TextToVideo, size: Triple) -> None:
    """Raises ValueError when a model can't make videos of so many frames, rows and columns; it names the nearest."""
    try:
        grid = model.grid(size)
    except ValueError as error:
        wrong = [_nearest(model, axis, size[axis]) for axis in range(3) if _tokens(model, axis, size[axis]) is None]
        raise ValueError("; ".join(filter(None, wrong)) or str(error)) from None
    try:
        if prod(grid) > MOST_TOKENS:
            raise ValueError(f"they have {prod(grid):,} tokens, expected at most {MOST_TOKENS:,}")
        model.attention.plan(grid, torch.zeros(1))
    except ValueError as error:
        videos = f"videos of {size} (frames, rows, columns)"
        raise ValueError(f"{videos} can't be made: {error}{_least(model, size)}") from None


def _tokens(model: TextToVideo, axis: int, length: int) -> int | None:
    """Tokens on an axis of so many frames, rows or columns; None where it doesn't divide into latents and patches."""
    size = [length if i == axis else other for i, other in enumerate(model.clip.size)]
    try:
        return model.grid((size[0], size[1], size[2]))[axis] or None
    except ValueError:
        return None


def _fits(model: TextToVideo, axis: int, lengths: range) -> list[int]:
    """The first two of some lengths that divide, and have a whole tile of the attention."""
    tile = model.attention.tile
    least = tile[axis] if tile else 1
    fitting = (length for length in lengths if (_tokens(model, axis, length) or 0) >= least)
    return [length for length, _ in zip(fitting, range(2), strict=False)]


def _nearest(model: TextToVideo, axis: int, length: int) -> str:
    """What an axis may be in place of a length that doesn't divide; nothing where none is found."""
    below = _fits(model, axis, range(length - 1, max(0, length - FARTHEST), -1))
    above = _fits(model, axis, range(length + 1, length + FARTHEST))
    if len(above) < 2:
        return ""
    step = above[1] - above[0]
    rest = above[0] % step
    rule = f"{step}k + {rest}" if rest else f"a multiple of {step}"
    rule += " with room for the attention's tile" if above[0] >= length + step else ""
    if (_tokens(model, axis, above[0]) or 0) > MOST_TOKENS:
        return f"{AXES[axis]} is {length}, far more than the {MOST_TOKENS:,} tokens that a video may have"
    nearest = " or ".join(str(x) for x in ((*below[:1], above[0]) if below else above))
    return f"{AXES[axis]} is {length}, expected {rule}: {nearest}"


def _least(model: TextToVideo, size: Triple) -> str:
    """How long each axis must be where the attention's tile is longer; else nothing."""
    tile, grid = model.attention.tile, model.grid(size)
    if tile is None or all(side <= length for side, length in zip(tile, grid, strict=True)):
        return ""
    fits = [_fits(model, axis, range(length, length + FARTHEST))[:1] for axis, length in enumerate(size)]
    least = ", ".join(f"{x[0]} {unit}" for x, unit in zip(fits, UNITS, strict=True) if x)
    return f" (--attention.tile), or at least {least}"
