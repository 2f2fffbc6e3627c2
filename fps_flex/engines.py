"""The engines that compute attention from the same mods, and the rule that picks one.

eager: the oracle; any device, differentiable, holds all scores. triton: compiled FlexAttention; forward and backward
on a GPU, forward only on a CPU (where Inductor writes C++ in place of Triton).
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .mods import ScoreMod
from .reference import reference_attention

if TYPE_CHECKING:
    from jaxtyping import Float

Engine = Literal["auto", "eager", "triton"]

# Every new shape is a graph of this one wrapper, and past the limit torch.compile must fail, never turn dense.
RECOMPILE_LIMIT = 64

logger = logging.getLogger(__name__)
_compiled_flex_attention = torch.compile(flex_attention, fullgraph=True, dynamic=False)


def attend(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s d"],
    block_mask: BlockMask,
    score_mod: ScoreMod | None = None,
    engine: Engine = "auto",
) -> Float[Tensor, "b h s d"]:
    """softmax(score_mod(q kᵀ / √d)) v over the pairs that block_mask keeps, in q's dtype.

    Raises ValueError for an unknown engine and for gradients through one that has none.
    """
    if choose_engine(engine, q) == "eager":
        return reference_attention(q, k, v, block_mask.mask_mod, score_mod)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        _check_gradients(q)
    # autocast would turn fp8 and fp32 inputs into bf16
    with (
        torch.autocast(q.device.type, enabled=False),
        torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT),
    ):
        return _compiled_flex_attention(q, k, v, score_mod=score_mod, block_mask=block_mask)


def choose_engine(engine: Engine, q: Tensor) -> Literal["eager", "triton"]:
    """`auto` is triton on a GPU and eager on a CPU, where it says once that every score is computed."""
    if engine not in ("auto", "eager", "triton"):
        raise ValueError(f"engine is {engine!r}, expected auto, eager or triton")
    chosen = engine if engine != "auto" else "triton" if q.is_cuda else "eager"
    if engine == "auto":
        _say_once(chosen, q.device.type)
    if q.dtype == torch.float8_e4m3fn and (chosen == "eager" or not q.is_cuda):
        raise ValueError("the float8 carrier needs the triton engine and a GPU: use carrier 'input' here")
    return chosen


def _check_gradients(q: Tensor) -> None:
    if not q.is_cuda:
        raise ValueError("the triton engine has no gradients on a CPU: use engine eager or auto")
    if q.dtype == torch.float8_e4m3fn:
        raise ValueError("the float8 carrier has no gradients: train with carrier 'input'")


@cache
def _say_once(engine: str, device: str) -> None:
    reason = "compiled FlexAttention" if engine == "triton" else "the dense oracle, which also has gradients"
    logger.info("attention engine on %s: %s (%s)", device, engine, reason)
