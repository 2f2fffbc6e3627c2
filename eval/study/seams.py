"""Whether tiles show in a video: how much more it changes across their edges than across other tokens' edges.

Windows part neighbouring tokens where tiles meet. Distances of features and classifiers hardly see that; an eye does.
"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from fps_flex.wan import WanConfig
from fps_flex.wan.codecs import box_grid

from .clips import load
from .config import Plan

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Sizes = tuple[int, int, int]


def measure_seams(plan: Plan, row: str, seed: int) -> float | None:
    """Of a row's videos that are shown, in the mean; None without any, or where the study fits no codec of its own."""
    files, codec = sorted((plan.row(row, seed) / "shown").glob("*.mp4")), plan.study.codec
    if codec is None or not files:
        return None
    config = WanConfig(**plan.describe()["pretraining"][-1]["model"]["wan"])
    grid = config.grid(box_grid(plan.study.clip.size, codec.box))
    found = [seams(load(file), grid, plan.study.search.attention.tile) for file in files]
    told = [x for x in found if x is not None]
    return fmean(told) if told else None


def seams(video: Float[Tensor, "3 f h w"], grid: Sizes, tile: Sizes) -> float | None:
    """Mean absolute change across tiles' edges, over that across the other tokens' edges; the mean over axes that have
    both. grid: tokens on each axis, of as many frames, rows or columns each. 1 where tiles don't show.
    """
    ratios = []
    for axis, (tokens, side) in enumerate(zip(grid, tile, strict=True), start=1):
        size = video.shape[axis] // tokens
        change = video.diff(dim=axis).abs().mean([x for x in range(4) if x != axis])
        across = {at: change[at * size - 1].item() for at in range(1, tokens)}
        of_tiles = [x for at, x in across.items() if at % side == 0]
        others = [x for at, x in across.items() if at % side]
        if of_tiles and others and fmean(others):
            ratios.append(fmean(of_tiles) / fmean(others))
    return fmean(ratios) if ratios else None
