"""Whether tiles show in a video: how much more it changes across their edges than across other tokens' edges.

Windows part neighbouring tokens where tiles meet. Distances of features and classifiers hardly see that; an eye does.
"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from fps_flex import FPSAttention
from fps_flex.tables import tile_for
from fps_flex.tiles import Triple

from .clips import load_shown, token_grid
from .config import Plan

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Seams = tuple[list[float], list[float], list[float]]  # on T, H, W, of each edge of tiles in order; none where all are
LEAST = 1e-3  # of a change, an eighth of a level of 8 bits: a still has no seams


def measure_seams(plan: Plan, row: str, seed: int) -> Seams | None:
    """Of a row's videos that are shown, in the mean, at the edges of its own tiles or, where it says no attention, of
    those that are searched for. None unless all are there, and where the study fits no codec of its own.
    """
    videos, grid, measures = load_shown(plan, row, seed), token_grid(plan), plan.study.measures
    if grid is None or len(videos) < min(measures.shown, measures.videos):
        return None
    own = plan.rows[row].attention
    attention = own if isinstance(own, FPSAttention) else plan.study.search.attention
    tile = attention.tile or tile_for(grid, attention.block, attention.is_dense)
    of_all = [seams(video, grid, tile) for video in videos.values()]
    t, h, w = ([fmean(edge) for edge in zip(*axis, strict=True)] for axis in zip(*of_all, strict=True))
    return t, h, w


def seams(video: Float[Tensor, "3 f h w"], grid: Triple, tile: Triple) -> Seams:
    """At each edge of tiles the mean absolute change, over that across the other tokens' edges on its axis: 1 where
    tiles don't show. video: in -1 to 1. grid: tokens on each axis, of as many frames, rows or columns each.
    """
    t, h, w = (_seams_on(axis, video, *sizes) for axis, sizes in enumerate(zip(grid, tile, strict=True), start=1))
    return t, h, w


def _seams_on(axis: int, video: Tensor, tokens: int, side: int) -> list[float]:
    size = video.shape[axis] // tokens
    change = video.diff(dim=axis).abs().mean([x for x in range(4) if x != axis]) + LEAST
    of_tiles = [change[at * size - 1].item() for at in range(1, tokens) if at % side == 0]
    others = [change[at * size - 1].item() for at in range(1, tokens) if at % side]
    return [x / fmean(others) for x in of_tiles] if others else []
