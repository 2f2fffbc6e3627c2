"""Attention in ten lines of tensor algebra: the oracle for every kernel, and the path for training on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from .masks import MaskMod
from .quant import E4M3_MAX, round_e4m3
from .score_mods import ScoreMod

if TYPE_CHECKING:
    from jaxtyping import Float


Precision = Literal["fp32", "e4m3", "e4m3x448"]


def reference_attention(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h kv d"],
    v: Float[Tensor, "b h kv d"],
    mask_mod: MaskMod,
    score_mod: ScoreMod | None = None,
    softmax_scale: float | None = None,
    p: Precision = "fp32",
) -> Float[Tensor, "b h s d"]:
    """softmax(score_mod(softmax_scale q kᵀ)) v over the keys that mask_mod keeps, as FlexAttention defines it.

    softmax_scale: 1 / √d if None. p: how exp(score - its row's largest), which is P before its division by its sum,
    meets v: exact; rounded to e4m3 as the float8 carrier's kernel does; or scaled by 448 first, as the paper does. The
    sum is of the unrounded values.
    Computes in fp32 (fp64 if given), whatever autocast says, and holds all [B, H, S, S] scores. Returns q's dtype.
    """
    with torch.autocast(q.device.type, enabled=False):
        compute = torch.float64 if q.dtype == torch.float64 else torch.float32
        b, h, i, j = (torch.arange(n, device=q.device) for n in (*q.shape[:3], k.shape[2]))
        index = b[:, None, None, None], h[:, None, None], i[:, None], j
        softmax_scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        scores = torch.einsum("bhqd,bhkd->bhqk", q.to(compute) * softmax_scale, k.to(compute))
        if score_mod is not None:
            scores = score_mod(scores, *index)
        scores = scores.masked_fill(~mask_mod(*index), float("-inf"))
        if p == "fp32":
            return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v.to(compute)).to(q.dtype)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        largest = E4M3_MAX if p == "e4m3x448" else 1.0
        out = torch.einsum("bhqk,bhkd->bhqd", round_e4m3(weights * largest) / largest, v.to(compute))
        return (out / weights.sum(-1, keepdim=True)).to(q.dtype)
