"""Tile-wise codes, e4m3 or int8, their scales, and gradients that pass the rounding straight through."""

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
CodeFormat = Literal["e4m3", "int8"]

E4M3_MAX = 448.0
LARGEST: dict[CodeFormat, float] = {"e4m3": E4M3_MAX, "int8": 127.0}  # of each kind of codes


def round_e4m3(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Clamp to ±448 and round to the nearest e4m3 value, ties to even. The dtype stays; NaN stays NaN."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(x.dtype)


def round_codes(x: Float[Tensor, "..."], codes: CodeFormat) -> Float[Tensor, "..."]:
    """Clamp to ±448 or ±127 and round to the nearest e4m3 value or whole number, ties to even. NaN stays NaN."""
    return round_e4m3(x) if codes == "e4m3" else x.round().clamp(-LARGEST[codes], LARGEST[codes])


def scale_of(
    amax: Float[Tensor, "..."], scale_format: ScaleFormat = "fp32", codes: CodeFormat = "e4m3"
) -> Float[Tensor, "..."]:
    """The scale under which `amax` becomes the largest code, 448 in e4m3 (paper, Algorithm 1); 1 where amax is 0.

    scale_format: "fp32", or "pow2", which is that rounded up to a power of two (at least 2^-126).
    """
    scale = (amax.double() / LARGEST[codes]).float()  # true division of fp32, which a GPU's own by a number is not
    scale = torch.where(scale == 0, 1.0, scale)
    return _round_up_to_pow2(scale) if scale_format == "pow2" else scale


def _round_up_to_pow2(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Through the bits of positive fp32: a mantissa that isn't 0 carries into the exponent. Inf and NaN stay."""
    bits = (x.view(torch.int32) + 0x007FFFFF) & 0x7F800000
    return torch.where(x.isfinite(), bits.view(torch.float32), x)


class _Quantize(torch.autograd.Function):
    """Codes = round((x - mean) / scale) in the carrier dtype; backward sees only the division (straight-through)."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, mean: Tensor | None, carrier: torch.dtype, codes: CodeFormat) -> Tensor:
        ctx.save_for_backward(scale)
        ctx.dtype = x.dtype
        quotient = centre(x, mean) / scale
        # torch 2.11 compiles zero gradients where the last step changes nothing
        if codes == "int8":
            return quotient.round().to(carrier).clamp(-LARGEST[codes], LARGEST[codes])
        return quotient.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(carrier)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (scale,) = ctx.saved_tensors
        compute = torch.float64 if ctx.dtype == torch.float64 else torch.float32
        return (grad.to(compute) / scale).to(ctx.dtype), None, None, None, None


def centre(x: Float[Tensor, "..."], mean: Float[Tensor, "..."] | None) -> Float[Tensor, "..."]:
    """x in fp32, less its mean where it has one."""
    return x.float() if mean is None else x.float() - mean


def quantize(
    x: Float[Tensor, "..."],
    scale: Float[Tensor, "..."],
    carrier: torch.dtype | None = None,
    codes: CodeFormat = "e4m3",
    mean: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "..."]:
    """Codes of x: round-to-nearest-even of fp32 (x - mean) / scale, by true division, clamped (paper, Algorithm 1).

    scale, mean: fp32, broadcast against x, constants to autograd; no mean is 0. carrier: the dtype that holds the codes
    (x's own by default); every e4m3 value and every whole number up to 127 is exact in bfloat16 and wider. Gradients
    pass the rounding straight through.
    """
    return _Quantize.apply(x, scale.detach(), mean, carrier or x.dtype, codes)


class _FakeQuantize(torch.autograd.Function):
    """Codes times scale at once; the backward sees neither (straight-through)."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, mean: Tensor | None, codes: CodeFormat) -> Tensor:
        # where the scale is infinite or NaN, so is the product
        return round_codes(centre(x, mean) * _invert_pow2(scale), codes).to(x.dtype) * scale.to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad, None, None, None


def fake_quantize(
    x: Float[Tensor, "..."],
    scale: Float[Tensor, "..."],
    codes: CodeFormat = "e4m3",
    mean: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "..."]:
    """Codes times their power-of-two scale, `quantize(x, scale) * scale`, which is exact in x's dtype.

    scale: fp32 powers of two, as scale_format "pow2" makes them; broadcasts against x, and so does the mean. Gradients
    pass straight through.
    """
    return _FakeQuantize.apply(x, scale.detach(), mean, codes)


def _invert_pow2(scale: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """1 / scale through the bits, which is exact and needs no division; anything for infinity and NaN."""
    return (0x7F000000 - scale.view(torch.int32)).view(torch.float32)


def tile_amax(x: Float[Tensor, "b h s d"], layout: TileLayout) -> Float[Tensor, "b h tiles"]:
    """amax, the largest magnitude, of each tile; pads left out."""
    tokens = x.detach().transpose(1, 2).abs().masked_fill_(~layout.valid[:, None, None], 0.0)
    # slots before channels, as K's statistics are made: a compiler has one kernel for both then
    of_block = rearrange(tokens, "b (blocks slot) h d -> b blocks slot h d", slot=layout.block).amax(2).amax(-1)
    return tile_amax_of_blocks(of_block.float().transpose(1, 2), layout)


def tile_amax_of_blocks(of_block: Float[Tensor, "b h blocks"], layout: TileLayout) -> Float[Tensor, "b h tiles"]:
    """The same from each block's amax."""
    tiles = torch.arange(layout.coords_of_tile.shape[1], device=of_block.device)
    # every block against every tile: a scatter by tile would add atomics to the graph, and its order isn't fixed
    return of_block.unsqueeze(2).masked_fill(layout.tile_of_block != tiles[:, None], 0.0).amax(-1)


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
    codes: CodeFormat = "e4m3",
) -> Float[Tensor, "b h s 1"]:
    """The scale of Q or K at every slot (paper, Algorithm 1): one per tile, shared in its group. fp32."""
    return scales_at_slots(tile_amax(x, layout), layout, groups, scale_format, codes)


def scales_at_slots(
    amax: Float[Tensor, "b h tiles"],
    layout: TileLayout,
    groups: Int[Tensor, "b tiles"],
    scale_format: ScaleFormat,
    codes: CodeFormat = "e4m3",
) -> Float[Tensor, "b h s 1"]:
    """The same from each tile's amax."""
    scale = materialize(scale_of(pool_amax(amax, groups), scale_format, codes))
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
