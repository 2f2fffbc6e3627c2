"""Attention in ten lines of tensor algebra: the oracle for every kernel, and the path for training on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .masks import MaskMod
from .mods import ScoreMod

if TYPE_CHECKING:
    from jaxtyping import Float


def reference_attention(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s d"],
    mask_mod: MaskMod,
    score_mod: ScoreMod | None = None,
) -> Float[Tensor, "b h s d"]:
    """softmax(score_mod(q kᵀ / √d)) v over the keys that mask_mod keeps, as FlexAttention defines it.

    Computes in fp32 (fp64 if given), whatever autocast says, and holds all [B, H, S, S] scores. Returns q's dtype.
    """
    with torch.autocast(q.device.type, enabled=False):
        compute = torch.float64 if q.dtype == torch.float64 else torch.float32
        b, h, i, j = (torch.arange(n, device=q.device) for n in (*q.shape[:3], k.shape[2]))
        index = b[:, None, None, None], h[:, None, None], i[:, None], j
        scores = torch.einsum("bhqd,bhkd->bhqk", q.to(compute) * q.shape[-1] ** -0.5, k.to(compute))
        if score_mod is not None:
            scores = score_mod(scores, *index)
        scores = scores.masked_fill(~mask_mod(*index), float("-inf"))
        return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v.to(compute)).to(q.dtype)
