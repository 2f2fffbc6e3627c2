"""Floating point operations of a Wan transformer: two for each multiply-add of a matrix product, nothing else counted.

Biases, norms, modulation, RoPE and quantising are left out, as usual: together they are a few in a thousand.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..attention import FPSAttention
from ..masks import density
from ..tiles import Triple
from .config import WanConfig

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Flops:
    """Of the products with weights, and of self-attention's QK^T and PV."""

    linear: float
    attention: float

    @property
    def total(self) -> float:
        return self.linear + self.attention


def forward_flops(config: WanConfig, tokens: int, text_tokens: int, density: float = 1.0) -> Flops:
    """Of one forward pass over a video. density: the share of (query, key) pairs of self-attention that are computed;
    pads don't count.
    """
    c, patch = config, prod(config.patch) * config.channels
    block = 6 * tokens * c.dim**2 + 2 * text_tokens * c.dim**2 + 2 * tokens * c.dim * c.ffn_dim
    cross = 2 * tokens * text_tokens * c.dim
    around = 2 * tokens * patch * c.dim + text_tokens * (c.text_dim + c.dim) * c.dim
    time = (c.freq_dim + 7 * c.dim) * c.dim
    return Flops(2.0 * (c.layers * (block + cross) + around + time), 4.0 * c.layers * density * tokens**2 * c.dim)


def densities(attention: FPSAttention, grid: Triple, sigma: Float[Tensor, " b"], layers: int) -> Float[Tensor, " b"]:
    """At each noise level the share of pairs that attention computes, a mean over a model's layers. grid: of tokens."""
    layout = attention.plan(grid, torch.zeros(1)).layout
    of_regime = density(layout, [regime.window_in_tiles(layout.tiles) for regime in attention.regimes])
    return torch.stack([of_regime[attention.regime_index(sigma.cpu(), layer)] for layer in range(layers)]).mean(0)


def training_flops(forward: Flops, frozen: bool = False) -> float:
    """Of a step on one video: the backward takes each product twice over, once for what went in, once for the weights.

    frozen: weights of which only an adapter is trained take no gradient. What is recomputed is not counted, nor an
    adapter's own products.
    """
    return (2 if frozen else 3) * forward.linear + 3 * forward.attention
