"""The score_mods that undo the quantisation of Q and K inside the attention kernel: FlexAttention's score_mod."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def dequantize(q_scale: Float[Tensor, "b h s"], k_scale: Float[Tensor, "b h kv"]) -> ScoreMod:
    """Multiply each score by the scales of its query's and its key's tile (paper, Algorithm 1).

    q_scale, k_scale: fp32 at every slot. The score is widened first: with FP8 inputs it has their dtype, in which
    the scales would underflow to 0.
    """

    def dequantize_score(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        score = score if score.dtype == torch.float64 else score.to(torch.float32)
        return score * q_scale[b, h, q_idx] * k_scale[b, h, kv_idx]

    return dequantize_score


def dequantize_heads(scale: Float[Tensor, "b h"]) -> ScoreMod:
    """Multiply each score by one number per head, all that is left of the scales at granularity "head"."""

    def dequantize_score(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        score = score if score.dtype == torch.float64 else score.to(torch.float32)
        return score * scale[b, h]

    return dequantize_score
