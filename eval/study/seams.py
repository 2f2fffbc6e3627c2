"""Whether tiles show in a video: how much more it changes across their edges than across other tokens' edges.

Windows part neighbouring tokens where tiles meet. Distances of features and classifiers hardly see that; an eye does.
"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

import torch

from fps_flex import FPSAttention
from fps_flex.wan import WanConfig
from fps_flex.wan.codecs import box_grid

from .clips import load_shown
from .config import Plan

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Sizes = tuple[int, int, int]
Seams = tuple[float | None, float | None, float | None]  # on T, H, W; None on an axis with edges of one kind
LEAST = 1e-3  # of a change, an eighth of a level of 8 bits: a still has no seams


def measure_seams(plan: Plan, row: str, seed: int) -> Seams | None:
    """Of a row's videos that are shown, in the mean, at the edges of its own tiles or, where it says no attention, of
    those that are searched for. None without videos, or where the study fits no codec of its own.
    """
    videos, codec = load_shown(plan, row, seed), plan.study.codec
    if codec is None or not videos:
        return None
    config = WanConfig(**plan.describe()["pretraining"][-1]["model"]["wan"])
    grid, own = config.grid(box_grid(plan.study.clip.size, codec.box)), plan.rows[row].attention
    attention = own if isinstance(own, FPSAttention) else plan.study.search.attention
    tile = attention.plan(grid, torch.zeros(1)).layout.tile
    t, h, w = zip(*(seams(video, grid, tile) for video in videos.values()), strict=True)
    return _mean(t), _mean(h), _mean(w)


def _mean(ratios: tuple[float | None, ...]) -> float | None:
    told = [x for x in ratios if x is not None]
    return fmean(told) if told else None


def seams(video: Float[Tensor, "3 f h w"], grid: Sizes, tile: Sizes) -> Seams:
    """On each axis the mean absolute change across tiles' edges, over that across the other tokens': 1 where tiles
    don't show. video: in -1 to 1. grid: tokens on each axis, of as many frames, rows or columns each.
    """
    t, h, w = (_seams_on(axis, video, *sizes) for axis, sizes in enumerate(zip(grid, tile, strict=True), start=1))
    return t, h, w


def _seams_on(axis: int, video: Tensor, tokens: int, side: int) -> float | None:
    size = video.shape[axis] // tokens
    change = video.diff(dim=axis).abs().mean([x for x in range(4) if x != axis]) + LEAST
    of_tiles = [change[at * size - 1].item() for at in range(1, tokens) if at % side == 0]
    others = [change[at * size - 1].item() for at in range(1, tokens) if at % side]
    return fmean(of_tiles) / fmean(others) if of_tiles and others else None
