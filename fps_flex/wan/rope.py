"""Rotary position embedding over time, rows and columns, with its tables in tile order."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..tiles import TileLayout, Triple

if TYPE_CHECKING:
    from jaxtyping import Float

Rope = tuple[Tensor, Tensor]  # of each channel: cos of its pair's angle, and sin as `signed` has it


def rotate(x: Float[Tensor, "b s h d"], rope: Rope) -> Float[Tensor, "b s h d"]:
    """Rotary position embedding of interleaved pairs of channels, in fp32; returns x's dtype.

    rope: broadcasts against x.
    """
    cos, sin = rope
    # a stack of even and odd channels would be compiled to twice the reads, none of them side by side
    fine = x.float()
    other = fine.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (fine * cos + other * sin).type_as(x)


def signed(sin: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """-sin in even channels and sin in odd ones: what the other channel of a pair is added with."""
    sign = torch.arange(-1, 2, 2, dtype=sin.dtype, device=sin.device)
    return (sin.unflatten(-1, (-1, 2)) * sign).flatten(-2)


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
    """Of each slot, [S, 1, D] in fp32 on the layout's device."""
    angles = rope_angles(layout.grid, head_dim).repeat_interleave(2, dim=-1).unsqueeze(1)
    cos, sin = (layout.order(x.float().to(layout.device), dim=0) for x in (angles.cos(), signed(angles.sin())))
    return cos, sin
