"""What makes Q and K easier to round and changes no score: K less its mean over the tokens, and both rotated.

Softmax doesn't see what is the same for all keys of a query, so q · mean may be left out of its scores. Gradients don't
see it either: those of a query's scores sum to 0 over its keys, so those of K sum to 0 over the tokens, which is what
the mean would get. Leaving the mean out of autograd as a constant is therefore exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from einops import rearrange
from torch import Tensor

from .compile import materialize
from .quant import tile_amax_of_blocks
from .tiles import TileLayout

if TYPE_CHECKING:
    from jaxtyping import Float

Rotation = Literal["hadamard"]


@dataclass(frozen=True)
class KeyStats:
    """Of each channel of K: the sum over its tokens, and the least and the largest value in each block. fp32.

    All that smoothing needs to know of K, from one look at it.
    """

    total: Float[Tensor, "b h 1 d"]
    least: Float[Tensor, "b blocks h d"]
    largest: Float[Tensor, "b blocks h d"]


def key_stats(k: Float[Tensor, "b h s d"], layout: TileLayout) -> KeyStats:
    """Pads left out."""
    tokens = rearrange(k.detach(), "b h (blocks slot) d -> b blocks slot h d", slot=layout.block).float()
    pads = rearrange(~layout.valid, "(blocks slot) -> blocks slot 1 1", slot=layout.block)
    infinity = float("inf")
    return KeyStats(
        tokens.masked_fill(pads, 0.0).sum(2).sum(1).unsqueeze(2),
        tokens.masked_fill(pads, infinity).amin(2),
        tokens.masked_fill(pads, -infinity).amax(2),
    )


def mean_of_tokens(total: Float[Tensor, "b h 1 d"], tokens: int) -> Float[Tensor, "b h 1 d"]:
    """The mean of each channel over all tokens, from its sum. fp32."""
    return materialize((total.double() / tokens).float())  # true division of fp32, as in `scale_of`


def centred_tile_amax(
    stats: KeyStats, mean: Float[Tensor, "b h 1 d"], layout: TileLayout
) -> Float[Tensor, "b h tiles"]:
    """`tile_amax` of K less its mean: rounding keeps the order, so a block's extremes stay its extremes."""
    mean = mean.transpose(1, 2)
    of_block = torch.maximum(stats.largest - mean, mean - stats.least).amax(-1)
    return tile_amax_of_blocks(of_block.transpose(1, 2), layout)


def rotate_channels(
    q: Float[Tensor, "b h s d"], k: Float[Tensor, "b h s d"]
) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h s d"]]:
    """q and k times Hadamard matrices whose product is the identity: the same scores, with outliers spread over d.

    d = 2^n. Entries are ±2^-floor(n / 2) for q and ±2^-ceil(n / 2) for k, exact in bf16. Sums are fp32 or wider.
    """
    n = q.shape[-1].bit_length() - 1
    return _times_hadamard(q, 2.0 ** -(n // 2)), _times_hadamard(k, 2.0 ** -((n + 1) // 2))


def _times_hadamard(x: Float[Tensor, "b h s d"], entry: float) -> Float[Tensor, "b h s d"]:
    """In memory as [B, S, H, D], as linear layers leave x."""
    matrix = (hadamard_signs(x.shape[-1], x.device) * entry).to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):  # which would round fp32 to bf16
        return (x.transpose(1, 2) @ matrix).transpose(1, 2)


def hadamard_signs(dim: int, device: torch.device) -> Float[Tensor, "d d"]:
    """Sylvester's Hadamard matrix: -1 to the number of bits that row and column have in common. dim: a power of two."""
    index = torch.arange(dim, device=device)
    common = index[:, None] & index
    bits = torch.arange(dim.bit_length(), device=device)
    return 1.0 - 2.0 * ((common[..., None] >> bits) & 1).sum(-1).remainder(2)
