"""Tile-wise FP8: e4m3 codes, their scales, and gradients that pass the rounding straight through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from .checks import as_instance, is_whole, show
from .compile import materialize
from .tiles import TileLayout

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Granularity = int | Literal["head"]
ScaleFormat = Literal["fp32", "pow2"]

E4M3_MAX = 448.0


def round_e4m3(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Clamp to ±448 and round to the nearest e4m3 value, ties to even. The dtype stays; NaN stays NaN."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(x.dtype)


def scale_of(amax: Float[Tensor, "..."], scale_format: ScaleFormat = "fp32") -> Float[Tensor, "..."]:
    """The scale under which `amax` becomes 448, the largest e4m3 value (paper, Algorithm 1); 1 where amax is 0.

    scale_format: "fp32", or "pow2", which is that rounded up to a power of two (at least 2^-126).
    """
    scale = (amax.double() / E4M3_MAX).float()  # true division of fp32, which a GPU's own by a number is not
    scale = torch.where(scale == 0, 1.0, scale)
    return _round_up_to_pow2(scale) if scale_format == "pow2" else scale


def _round_up_to_pow2(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Through the bits of positive fp32: a mantissa that isn't 0 carries into the exponent. Inf and NaN stay."""
    bits = (x.view(torch.int32) + 0x007FFFFF) & 0x7F800000
    return torch.where(x.isfinite(), bits.view(torch.float32), x)


class _Quantize(torch.autograd.Function):
    """Codes = round(x / scale) in the carrier dtype; backward sees only the division (straight-through)."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, carrier: torch.dtype) -> Tensor:
        ctx.save_for_backward(scale)
        ctx.dtype = x.dtype
        codes = (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
        return codes.to(carrier)  # torch 2.11 compiles zero gradients where the last step changes nothing

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        compute = torch.float64 if ctx.dtype == torch.float64 else torch.float32
        return (grad.to(compute) / scale).to(ctx.dtype), None, None


def quantize(
    x: Float[Tensor, "..."], scale: Float[Tensor, "..."], carrier: torch.dtype | None = None
) -> Float[Tensor, "..."]:
    """Codes of x: round-to-nearest-even of fp32 x / scale, by true division, clamped to ±448 (paper, Algorithm 1).

    scale: fp32, broadcasts against x, a constant to autograd. carrier: the dtype that holds the codes (x's own by
    default); every e4m3 value is exact in bfloat16 and wider. Gradients pass the rounding straight through.
    """
    return _Quantize.apply(x, scale.detach(), carrier or x.dtype)


class _FakeQuantize(torch.autograd.Function):
    """Codes times scale at once; the backward sees neither (straight-through)."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor) -> Tensor:
        # where the scale is infinite or NaN, so is the product
        return round_e4m3(x.float() * _invert_pow2(scale)).to(x.dtype) * scale.to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def fake_quantize(x: Float[Tensor, "..."], scale: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Codes times their power-of-two scale, `quantize(x, scale) * scale`, which is exact in x's dtype.

    scale: fp32 powers of two, as scale_format "pow2" makes them; broadcasts against x. Gradients pass straight through.
    """
    return _FakeQuantize.apply(x, scale.detach())


def _invert_pow2(scale: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """1 / scale through the bits, which is exact and needs no division; anything for infinity and NaN."""
    return (0x7F000000 - scale.view(torch.int32)).view(torch.float32)


def tile_amax(x: Float[Tensor, "b h s d"], layout: TileLayout) -> Float[Tensor, "b h tiles"]:
    """amax, the largest magnitude, of each tile; pads left out."""
    of_slot = x.detach().transpose(1, 2).abs().amax(-1).float()
    of_slot = of_slot.masked_fill(~layout.valid[:, None], 0.0)
    of_block = rearrange(of_slot, "b (blocks slot) h -> b h 1 blocks slot", slot=layout.block).amax(-1)
    tiles = torch.arange(layout.coords_of_tile.shape[1], device=x.device)
    # every block against every tile: a scatter by tile would add atomics to the graph, and its order isn't fixed
    return of_block.masked_fill(layout.tile_of_block != tiles[:, None], 0.0).amax(-1)


def tile_groups(layout: TileLayout, granularity: Granularity) -> Int[Tensor, " tiles"]:
    """The group of each tile whose members share a scale.

    granularity: tiles per axis in a group (1: each tile its own scale, 2: groups of 2x2x2, ...), or "head": all.
    Raises ValueError for anything else.
    """
    each = check_granularity(granularity)
    as_instance("layout", layout, TileLayout)
    if isinstance(each, str):
        return torch.zeros_like(layout.coords_of_tile[0], dtype=torch.int64)
    side = min(each, max(layout.tiles))  # larger ones are one group all the same, but may not fit int64
    t, h, w = layout.coords_of_tile.long() // side
    _, groups_h, groups_w = (-(-n // side) for n in layout.tiles)
    return (t * groups_h + h) * groups_w + w


def check_granularity(granularity: Any) -> Granularity:
    """The granularity in Python's own types. Raises ValueError unless it is tiles from 1 up, or "head"."""
    if isinstance(granularity, str) and granularity == "head":
        return "head"
    if not is_whole(granularity) or granularity < 1:
        raise ValueError(f"granularity is {show(granularity)}, expected a whole number of tiles from 1 up, or 'head'")
    return int(granularity)


def pool_amax(amax: Float[Tensor, "b h tiles"], groups: Int[Tensor, "b tiles"]) -> Float[Tensor, "b h tiles"]:
    """Each tile's amax -> the largest of its group: a coarser granularity pools the scales and re-cuts nothing."""
    other = groups[:, None, :, None] != groups[:, None, None, :]
    return amax.unsqueeze(2).masked_fill(other, 0.0).amax(-1)


def slot_scales(
    x: Float[Tensor, "b h s d"],
    layout: TileLayout,
    groups: Int[Tensor, "b tiles"],
    scale_format: ScaleFormat = "fp32",
) -> Float[Tensor, "b h s 1"]:
    """The scale of Q or K at every slot (paper, Algorithm 1): one per tile, shared in its group. fp32."""
    return scales_at_slots(tile_amax(x, layout), layout, groups, scale_format)


def scales_at_slots(
    amax: Float[Tensor, "b h tiles"], layout: TileLayout, groups: Int[Tensor, "b tiles"], scale_format: ScaleFormat
) -> Float[Tensor, "b h s 1"]:
    """The same from each tile's amax."""
    scale = materialize(scale_of(pool_amax(amax, groups), scale_format))
    return scale[..., layout.tile_of_slot].unsqueeze(-1)


def channel_amax(x: Float[Tensor, "b h s d"], layout: TileLayout) -> Float[Tensor, "b h 1 d"]:
    """amax of each channel; pads left out."""
    tokens = x.detach().abs().masked_fill(~layout.valid[:, None], 0.0)
    of_block = rearrange(tokens, "b h (blocks slot) d -> b blocks slot h d", slot=layout.block).amax(2)
    return of_block.amax(1).unsqueeze(2)


def channel_scales(
    x: Float[Tensor, "b h s d"], layout: TileLayout, scale_format: ScaleFormat = "fp32"
) -> Float[Tensor, "b h 1 d"]:
    """The scale of each channel of V, pads left out. fp32."""
    return materialize(scale_of(channel_amax(x, layout), scale_format))
