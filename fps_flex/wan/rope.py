"""Rotary position embedding over time, rows and columns, with its tables in tile order."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from ..tiles import TileLayout, Triple

if TYPE_CHECKING:
    from jaxtyping import Float

Rope = tuple[Tensor, Tensor]


def rotate(x: Float[Tensor, "b s h d"], rope: Rope) -> Float[Tensor, "b s h d"]:
    """Rotary position embedding of interleaved pairs of channels, in fp32; returns x's dtype.

    rope: broadcasts against [B, S, H, D / 2].
    """
    cos, sin = (y.unsqueeze(-1) for y in rope)
    sign = torch.arange(-1, 2, 2, dtype=sin.dtype, device=sin.device)
    pairs = rearrange(x.float(), "b s h (half pair) -> b s h half pair", pair=2)
    # compiled, x is read where it is written; a stack of halves would read both halves for each of its own
    rotated = pairs * cos + pairs.flip(-1) * (sign * sin)
    return rearrange(rotated.type_as(x), "b s h half pair -> b s h (half pair)")


def rope_angles(grid: Triple, head_dim: int) -> Float[Tensor, "tokens half"]:
    """The angle of each token's channel pairs in raster order, in fp64.

    Of the head's channels, 2 * (head_dim // 6) turn with H, as many with W, and the rest with T; theta is 10,000.
    """
    side = 2 * (head_dim // 6)
    angles = []
    for length, channels in zip(grid, (head_dim - 2 * side, side, side), strict=True):
        frequencies = 10_000.0 ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
        angles.append(torch.arange(length, dtype=torch.float64)[:, None] * frequencies)
    t, h, w = grid
    t_angles, h_angles, w_angles = angles
    return torch.cat(
        [
            t_angles[:, None, None].expand(t, h, w, -1),
            h_angles[None, :, None].expand(t, h, w, -1),
            w_angles[None, None].expand(t, h, w, -1),
        ],
        dim=-1,
    ).reshape(t * h * w, -1)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def ordered_rope(layout: TileLayout, head_dim: int) -> Rope:
    """cos and sin of each slot's angles, [S, 1, D / 2] in fp32 on the layout's device."""
    angles = rope_angles(layout.grid, head_dim).unsqueeze(1)
    cos, sin = (layout.order(x.float().to(layout.device), dim=0) for x in (angles.cos(), angles.sin()))
    return cos, sin
