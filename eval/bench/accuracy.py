"""How far outputs are from exact attention: what FP8 costs in accuracy, and any output on a few query tiles."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from fps_flex import FPSAttention, Regime, StepSchedule, TileLayout
from fps_flex.algorithm import prepare
from fps_flex.masks import as_windows, tile_mask
from fps_flex.quant import ScaleFormat
from fps_flex.reference import Precision, reference_attention
from train.common.work import find_device

from ..timing import Row, report
from .sizes import Triple

if TYPE_CHECKING:
    from jaxtyping import Float

COLUMNS = ("inputs", "k_mean", "granularity", "scales", "p", "error")


def accuracy(
    grid: Triple = (12, 16, 24),
    tile: Triple = (6, 8, 8),
    heads: int = 2,
    dim: int = 128,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Errors of quantising Q, K and V at each granularity, with each form of scales and each precision of P.

    Inputs are Gaussian; `smooth`, alike in space and time as a video's are; or with `outliers`: four of K's channels
    have a mean of 20 and all others one of up to a few. Taking K's mean over tokens off K changes no softmax.

    Args:
        grid: tokens on (T, H, W).
        tile: tokens of a tile on (T, H, W).
        heads: attention heads.
        dim: channels of a head.
        seed: of the inputs.
        out: JSON file to write.
    """
    rows = _measure(grid, tile, heads, dim, seed)
    report(rows, out, COLUMNS, grid=grid, tile=tile, heads=heads, head_dim=dim, seed=seed)


def _measure(grid: Triple, tile: Triple, heads: int, dim: int, seed: int) -> Iterator[Row]:
    device = find_device()
    everything = torch.ones((), dtype=torch.bool, device=device)
    for name, centred in (("gaussian", False), ("smooth", False), ("outliers", False), ("outliers", True)):
        q, k, v = _inputs(name, grid, heads, dim, seed, device)
        exact = reference_attention(q, k, v, lambda b, h, i, j: everything)
        keys = k - k.mean(2, keepdim=True) if centred else k
        k_mean = "taken off" if centred else "kept"
        for granularity, scales, p in product((1, 2, "head"), get_args(ScaleFormat), get_args(Precision)):
            attention = FPSAttention(StepSchedule((), (Regime(granularity=granularity),)), tile, scale_format=scales)
            error = relative_error(_quantised(attention, q, keys, v, grid, p), exact)
            yield dict(zip(COLUMNS, (name, k_mean, granularity, scales, p, error), strict=True))


def _quantised(attention: FPSAttention, q: Tensor, k: Tensor, v: Tensor, grid: Triple, p: Precision) -> Tensor:
    plan = attention.plan(grid, torch.full((1,), 0.5, device=q.device))
    call = prepare(attention.graph_key, *(plan.layout.order(x, dim=2) for x in (q, k, v)), plan)
    mask_mod = plan.oracle_block_mask.mask_mod
    out = reference_attention(call.q, call.k, call.v, mask_mod, call.score_mod, call.softmax_scale, p)
    return plan.layout.unorder(out if call.v_scale is None else out * call.v_scale, dim=2)


def _inputs(name: str, grid: Triple, heads: int, dim: int, seed: int, device: torch.device) -> tuple[Tensor, ...]:
    generator = torch.Generator(device).manual_seed(seed)
    tokens = prod(grid)

    def draw() -> Tensor:
        return torch.randn(1, heads, tokens, dim, device=device, generator=generator)

    q, k, v = draw(), draw(), draw()
    if name == "smooth":
        q, k, v = (_smooth(x, grid) for x in (q, k, v))
    if name == "outliers":
        mean = torch.randn(1, heads, 1, dim, device=device, generator=generator)
        mean[..., torch.randperm(dim, device=device, generator=generator)[:4]] = 20
        k = k + mean
    return q, k, v


def _smooth(x: Tensor, grid: Triple) -> Tensor:
    """Noise at a quarter of the grid's resolution, and half as much of the full one; of unit variance."""
    volume = x.mT.reshape(-1, 1, *grid)
    coarse = torch.nn.functional.avg_pool3d(volume, 4, 4) * 8
    coarse = torch.nn.functional.interpolate(coarse, size=grid, mode="trilinear")
    mixed = coarse + 0.5 * volume
    return (mixed / mixed.std()).reshape(x.mT.shape).mT


def exact_rows(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n d"],
    layout: TileLayout,
    window: tuple[int, int, int],
    queries: list[int],
) -> tuple[Tensor, Float[Tensor, "b h rows d"]]:
    """The tokens of the given query tiles, and their attention over the tokens in their windows, in fp32."""
    seen = tile_mask(layout, as_windows(window, layout))[0]
    tile_of_token = layout.tile_of_slot[layout.slot_of_token]
    rows, outs = [], []
    for query in queries:
        mine, keys = (tile_of_token == query).nonzero()[:, 0], seen[query][tile_of_token].nonzero()[:, 0]
        mine = mine[:128]
        scores = q[:, :, mine].float() @ k[:, :, keys].float().mT * q.shape[-1] ** -0.5
        rows.append(mine)
        outs.append(scores.softmax(-1) @ v[:, :, keys].float())
    return torch.cat(rows), torch.cat(outs, dim=2)


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got.float() - expected).norm() / expected.norm()).item()
