"""Algorithm 1 of the paper over one layer's q, k, v: scales, codes, attention over the kept tiles, scales undone.

Before it, what makes Q and K easier to round and changes no score (smoothing.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from .compile import compiled, in_order_of_linears, materialize, slots_innermost
from .engines import FLOAT8, Chosen, run
from .layers import Layers
from .quant import CodeFormat, ScaleFormat, channel_scales, fake_quantize, quantize, scales_at_slots, tile_amax
from .schedule import StepSchedule
from .score_mods import ScoreMod, dequantize, dequantize_heads
from .smoothing import Rotation, centred_tile_amax, key_stats, mean_of_tokens, rotate_channels
from .tiles import TileLayout, Triple

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class GraphKey:
    """What of an attention's options shapes the computation: change this and it compiles anew.

    All that a schedule varies beyond it comes as tensors. quantizes: whether any regime does. some_unquantized: whether
    any doesn't. one_scale_per_head: whether no regime has finer scales. float8: whether the kernel gets codes in e4m3.
    The others: as in FPSAttention.
    """

    scale_format: ScaleFormat
    codes: CodeFormat
    smooth_k: bool
    rotate: Rotation | None
    float8: bool
    quantizes: bool
    some_unquantized: bool
    one_scale_per_head: bool

    @property
    def has_score_mod(self) -> bool:
        """Powers of two multiply into bf16 exactly, so nothing is left to a score_mod."""
        return self.quantizes and (self.float8 or self.scale_format == "fp32")


@dataclass(frozen=True)
class Meaning:
    """What of an attention decides what it computes: all but the engine, which computes the same.

    schedule, layers: with what is switched off taken out. float8: as in GraphKey. The others: as in FPSAttention.
    """

    schedule: StepSchedule
    layers: Layers
    tile: Triple | None
    block: int
    scale_format: ScaleFormat
    codes: CodeFormat
    smooth_k: bool
    rotate: Rotation | None
    float8: bool


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class Plan:
    """What all layers of one forward pass share.

    layout: orders tokens into slots. A BlockMask is FlexAttention's: which blocks of keys each block of queries meets,
    and a mask_mod for those that it meets in part. oracle_block_mask: of each sample's windows, complete on its own.
    kernel_block_mask: the same block lists, which a kernel follows, with pads alone left to mask. groups: the tiles
    that share a scale. quantized: whether the sample is quantised at all. meaning: of the attention that made it,
    which no other may run. layers: the plans of layers that have a schedule of their own, whose tensors alone differ.
    """

    layout: TileLayout
    oracle_block_mask: BlockMask
    kernel_block_mask: BlockMask
    groups: Int[Tensor, "b tiles"]
    quantized: Bool[Tensor, " b"]
    meaning: Meaning
    layers: tuple[tuple[range, Plan], ...] = ()

    def of_layer(self, layer: int) -> Plan:
        """This one, or that of a layer with a schedule of its own."""
        return next((plan for own, plan in self.layers if layer in own), self)

    def block_mask(self, engine: Chosen) -> BlockMask:
        return self.oracle_block_mask if engine == "eager" else self.kernel_block_mask


@dataclass(frozen=True)
class Scales:
    """What codes are made with, fp32: scales of Q and K at every slot, of V per channel, and K's mean if taken off."""

    q: Float[Tensor, "b h s 1"]
    k: Float[Tensor, "b h kv 1"]
    v: Float[Tensor, "b h 1 d"]
    k_mean: Float[Tensor, "b h 1 d"] | None = None


@dataclass(frozen=True)
class Coded:
    """Codes of q, k and v, and their scales, fp32: of Q and K at every slot, of V per channel."""

    q: Float[Tensor, "b h s d"]
    k: Float[Tensor, "b h kv d"]
    v: Float[Tensor, "b h kv d"]
    q_scale: Float[Tensor, "b h s 1"]
    k_scale: Float[Tensor, "b h kv 1"]
    v_scale: Float[Tensor, "b h 1 d"]


@dataclass(frozen=True)
class KernelCall:
    """What an engine gets, and what is left to do to its output. softmax_scale: 1 / √d if None."""

    q: Float[Tensor, "b h s d"]
    k: Float[Tensor, "b h kv d"]
    v: Float[Tensor, "b h kv d"]
    score_mod: ScoreMod | None = None
    softmax_scale: float | None = None
    v_scale: Float[Tensor, "b h 1 d"] | None = None


def attend_slots(
    key: GraphKey,
    engine: Chosen,
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s d"],
    plan: Plan,
) -> Float[Tensor, "b h s d"]:
    """Attention over slots in tile order. Raises ValueError for gradients through an engine that has none."""
    return run_call(engine, prepare(key, q, k, v, plan), plan.block_mask(engine), q.dtype)


def run_call(engine: Chosen, call: KernelCall, block_mask: BlockMask, dtype: torch.dtype) -> Float[Tensor, "b h s d"]:
    """dtype: of the output, and of q before it was coded."""
    out = run(engine, call.q, call.k, call.v, block_mask, call.score_mod, call.softmax_scale)
    if call.v_scale is None:
        return out
    out = out.to(dtype)  # float8 does not multiply; every e4m3 value is exact in q's dtype
    return (out * call.v_scale).to(dtype)


def attend_tokens(
    key: GraphKey,
    engine: Chosen,
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n d"],
    plan: Plan,
) -> Float[Tensor, "b h n d"]:
    """The same over tokens in raster order, which lie in memory as [B, N, H, D] before and after."""
    q, k, v = (plan.layout.order(x.transpose(1, 2)).transpose(1, 2) for x in (q, k, v))
    out = attend_slots(key, engine, q, k, v, plan)
    return plan.layout.unorder(out.transpose(1, 2)).transpose(1, 2)


compiled_attend_slots = compiled(attend_slots)
compiled_attend_tokens = compiled(attend_tokens)


def prepare(
    key: GraphKey, q: Float[Tensor, "b h s d"], k: Float[Tensor, "b h s d"], v: Float[Tensor, "b h s d"], plan: Plan
) -> KernelCall:
    """Q, K and V as they are, folded with their scales, or as codes with a score_mod: the cheapest that is exact."""
    if not key.quantizes:
        return KernelCall(q, k, v)
    q, k = rotate(key, q, k, plan)
    scales = find_scales(key, q, k, v, plan)
    if not key.has_score_mod:
        return KernelCall(*fold(key, q, k, v, plan, scales))
    return call_with_codes(key, encode(key, q, k, v, plan, scales))


def rotate(
    key: GraphKey, q: Float[Tensor, "b h s d"], k: Float[Tensor, "b h s d"], plan: Plan
) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"]]:
    """q and k rotated, where the attention does that; samples in an unquantised regime keep theirs."""
    if key.rotate is None:
        return q, k
    rotated_q, rotated_k = rotate_channels(q, k)
    return keep_unquantized(key, rotated_q, q, plan), keep_unquantized(key, rotated_k, k, plan)


def call_with_codes(key: GraphKey, coded: Coded) -> KernelCall:
    codes_of_v = slots_innermost(coded.v) if key.float8 else coded.v
    # the softmax's 1 / √d goes with K's scales, which saves the kernel a product per score
    return KernelCall(coded.q, coded.k, codes_of_v, score_mod_of(key, coded), 1.0, coded.v_scale)


def encode(
    key: GraphKey,
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s d"],
    plan: Plan,
    scales: Scales,
) -> Coded:
    """Codes and scales of q, k and v. Samples in an unquantised regime keep their values, at scales of 1."""
    carrier = FLOAT8 if key.float8 else q.dtype

    def to_codes(x: Tensor, scale: Tensor, codes: CodeFormat, mean: Tensor | None = None) -> Tensor:
        return keep_unquantized(key, in_order_of_linears(quantize, x, scale, carrier, codes, mean), x, plan)

    return Coded(
        to_codes(q, scales.q, key.codes),
        to_codes(k, scales.k, key.codes, scales.k_mean),
        to_codes(v, scales.v, "e4m3"),
        *(one_if_unquantized(key, scale, plan) for scale in (scales.q, scales.k, scales.v)),
    )


def fold(
    key: GraphKey,
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s d"],
    plan: Plan,
    scales: Scales,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as their codes times their scales, powers of two: the same scores and output, without a score_mod."""

    def to_folded(x: Tensor, scale: Tensor, codes: CodeFormat, mean: Tensor | None = None) -> Tensor:
        return keep_unquantized(key, in_order_of_linears(fake_quantize, x, scale, codes, mean), x, plan)

    return (
        to_folded(q, scales.q, key.codes),
        to_folded(k, scales.k, key.codes, scales.k_mean),
        to_folded(v, scales.v, "e4m3"),
    )


def find_scales(
    key: GraphKey, q: Float[Tensor, "b h s d"], k: Float[Tensor, "b h s d"], v: Float[Tensor, "b h s d"], plan: Plan
) -> Scales:
    """Of Q and K one per tile, or per group of tiles; of V one per channel; and K's mean."""
    layout = plan.layout
    of_k, k_mean = _amax_and_mean(key, k, layout)
    q_scale, k_scale = (
        scales_at_slots(amax, layout, plan.groups, key.scale_format, key.codes) for amax in (tile_amax(q, layout), of_k)
    )
    return Scales(q_scale, k_scale, channel_scales(v, layout, key.scale_format), k_mean)


def _amax_and_mean(
    key: GraphKey, k: Float[Tensor, "b h s d"], layout: TileLayout
) -> tuple[Float[Tensor, "b h tiles"], Float[Tensor, "b h 1 d"] | None]:
    """amax of each tile of K, less its mean where that is taken off, and the mean."""
    if not key.smooth_k:
        return tile_amax(k, layout), None
    stats = key_stats(k, layout)
    mean = mean_of_tokens(stats.total, layout.tokens)
    return centred_tile_amax(stats, mean, layout), mean


def keep_unquantized(
    key: GraphKey, rounded: Float[Tensor, "b h s d"], x: Float[Tensor, "b h s d"], plan: Plan
) -> Float[Tensor, "b h s d"]:
    return torch.where(plan.quantized[:, None, None, None], rounded, x) if key.some_unquantized else rounded


def one_if_unquantized(key: GraphKey, scale: Float[Tensor, "b h ..."], plan: Plan) -> Float[Tensor, "b h ..."]:
    return torch.where(plan.quantized[:, None, None, None], scale, 1.0) if key.some_unquantized else scale


def score_mod_of(key: GraphKey, coded: Coded) -> ScoreMod:
    """The score_mod that multiplies Q's and K's scales back in, and 1 / √d."""
    q_scale, k_scale = coded.q_scale, coded.k_scale * coded.q.shape[-1] ** -0.5
    if key.one_scale_per_head:
        return dequantize_heads(materialize(q_scale[:, :, 0, 0] * k_scale[:, :, 0, 0]))
    q_scale = q_scale.squeeze(-1).clone()  # a mod's tensor may be no view, and the codes' division reads the other
    return dequantize(materialize(q_scale), materialize(k_scale.squeeze(-1)))
