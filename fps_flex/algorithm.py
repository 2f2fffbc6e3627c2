"""Algorithm 1 of the paper over one layer's q, k, v: scales, codes, attention over the kept tiles, scales undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from .engines import FLOAT8, Chosen, attend, compiled
from .mods import ScoreMod, dequantize, dequantize_heads
from .quant import ScaleFormat, channel_scales, quantize, realize, snap, tile_scales
from .schedule import StepSchedule
from .tiles import TileLayout, Triple

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Rounding = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """What of an attention's options shapes the computation; all that a schedule varies beyond it comes as tensors.

    quantizes: whether any regime does. some_unquantized: whether any doesn't. one_scale_a_head: whether no regime has
    finer scales. float8: whether values are handed to the kernel in e4m3.
    """

    scale_format: ScaleFormat
    float8: bool
    quantizes: bool
    some_unquantized: bool
    one_scale_a_head: bool

    @property
    def has_score_mod(self) -> bool:
        """Powers of two multiply into bf16 exactly, so nothing is left to a score_mod."""
        return self.quantizes and (self.float8 or self.scale_format == "fp32")


@dataclass(frozen=True)
class Meaning:
    """What of an attention decides what it computes: all but the engine, which computes the same.

    schedule: with what is switched off taken out. float8: as in Recipe. The others: as in FPSAttention.
    """

    schedule: StepSchedule
    tile: Triple | None
    block: int
    scale_format: ScaleFormat
    float8: bool


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class Plan:
    """What all layers of one forward pass share.

    layout: orders tokens into slots. block_mask: of each sample's windows, complete on its own. kernel_mask: the same
    blocks, for kernels. groups: the tiles that share a scale. quantized: whether the sample is quantised at all.
    meaning: of the attention that made it, which no other may run.
    """

    layout: TileLayout
    block_mask: BlockMask
    kernel_mask: BlockMask
    groups: Int[Tensor, "b tiles"]
    quantized: Bool[Tensor, " b"]
    meaning: Meaning

    def mask_for(self, engine: Chosen) -> BlockMask:
        return self.block_mask if engine == "eager" else self.kernel_mask


@dataclass(frozen=True)
class Coded:
    """What an engine gets: values of q, k and v, how to make scores of them, and what is left to do to the output."""

    q: Float[Tensor, "b h s d"]
    k: Float[Tensor, "b h s d"]
    v: Float[Tensor, "b h s d"]
    score_mod: ScoreMod | None = None
    scale: float | None = None
    v_scale: Float[Tensor, "b h 1 d"] | None = None


def compute(
    recipe: Recipe, engine: Chosen, q: Tensor, k: Tensor, v: Tensor, plan: Plan, in_tile_order: bool
) -> Float[Tensor, "b h s d"]:
    """Attention over slots in tile order, or over tokens in raster order. Raises ValueError as `attend`."""
    if in_tile_order:
        return _attend_slots(recipe, engine, q, k, v, plan)
    q, k, v = (plan.layout.order(x.transpose(1, 2)).transpose(1, 2) for x in (q, k, v))
    out = _attend_slots(recipe, engine, q, k, v, plan)
    return plan.layout.unorder(out.transpose(1, 2)).transpose(1, 2)


compiled_compute = compiled(compute)


def _attend_slots(recipe: Recipe, engine: Chosen, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
    coded = encode(recipe, q, k, v, plan)
    out = attend(coded.q, coded.k, coded.v, plan.mask_for(engine), coded.score_mod, engine, coded.scale)
    if coded.v_scale is None:
        return out
    out = out.to(q.dtype)  # float8 does not multiply; every e4m3 value is exact in q's dtype
    return (out * coded.v_scale).to(q.dtype)


def encode(
    recipe: Recipe,
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s d"],
    plan: Plan,
) -> Coded:
    """Put q, k, v on the e4m3 grid, with the scales in the score_mod, or in the values where they are powers of two.

    The softmax's 1 / √d goes with K's scales, which saves the kernel a product a score.
    """
    if not recipe.quantizes:
        return Coded(q, k, v)
    q_scale, k_scale = (tile_scales(x, plan.layout, plan.groups, recipe.scale_format) for x in (q, k))
    v_scale = channel_scales(v, plan.layout, recipe.scale_format)
    pairs = (q, q_scale), (k, k_scale), (v, v_scale)
    if not recipe.has_score_mod:
        return Coded(*(_round(snap, x, scale, recipe, plan) for x, scale in pairs))

    to_codes = partial(quantize, carrier=FLOAT8 if recipe.float8 else q.dtype)
    codes = [_round(to_codes, x, scale, recipe, plan) for x, scale in pairs]
    if recipe.some_unquantized:
        quantized = plan.quantized[:, None, None, None]
        q_scale, k_scale, v_scale = (torch.where(quantized, scale, 1.0) for _, scale in pairs)
    k_scale = k_scale * q.shape[-1] ** -0.5
    if recipe.one_scale_a_head:
        score_mod = dequantize_heads(realize(q_scale[:, :, 0, 0] * k_scale[:, :, 0, 0]))
    else:
        q_scale = q_scale.squeeze(-1).clone()  # rounding reads the other
        score_mod = dequantize(realize(q_scale), realize(k_scale.squeeze(-1)))
    q, k, v = codes
    return Coded(q, k, _slots_side_by_side(v) if recipe.float8 else v, score_mod, 1.0, v_scale)


def _slots_side_by_side(v: Float[Tensor, "b h s d"]) -> Float[Tensor, "b h s d"]:
    """In memory as [B, H, D, S], as a float8 kernel reads V.

    The codes are put there once they are made, a byte each; rounding on the way would read V against its order.
    """
    return realize(v).mT.contiguous().mT


def _round(
    rounding: Rounding, x: Float[Tensor, "b h s d"], scale: Float[Tensor, "b h ..."], recipe: Recipe, plan: Plan
) -> Float[Tensor, "b h s d"]:
    """Samples in an unquantised regime keep their values.

    In memory the result lies as [B, S, H, D], which is how linear layers leave q, k and v: reads and writes then run
    side by side.
    """
    rounded = rounding(x.transpose(1, 2), scale.transpose(1, 2)).transpose(1, 2)
    return torch.where(plan.quantized[:, None, None, None], rounded, x) if recipe.some_unquantized else rounded
