"""How far an output is from the exact one: relative mean squared error, cosine similarity, signal-to-noise ratio."""

from __future__ import annotations

from math import log10
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fps_flex import TileLayout

if TYPE_CHECKING:
    from jaxtyping import Float


def compare(got: Float[Tensor, "n ..."], exact: Float[Tensor, "n ..."]) -> Float[Tensor, "n 2"]:
    """Of each of n: |got - exact|² / |exact|², and the cosine of both as vectors; 0 and 1 where both are zero. fp64.

    One of n at a time: fp64 of a whole layer would fill a GPU.
    """
    return torch.stack([_compare(x.flatten().double(), y.flatten().double()) for x, y in zip(got, exact, strict=True)])


def _compare(got: Float[Tensor, " m"], exact: Float[Tensor, " m"]) -> Float[Tensor, " 2"]:
    tiny = torch.finfo(torch.float64).tiny
    error, energy = (got - exact).square().sum(), exact.square().sum()
    norms = (energy * got.square().sum()).sqrt()
    cosine = torch.where(norms > 0, (got @ exact) / norms.clamp_min(tiny), (error == 0).double())
    return torch.stack([error / energy.clamp_min(tiny), cosine])


def compare_heads(
    got: Float[Tensor, "1 h s d"], exact: Float[Tensor, "1 h s d"], layout: TileLayout
) -> Float[Tensor, "h 2"]:
    """The same of each head of an attention's output over slots; pads left out."""
    heads = (tuple(layout.unorder(x[:, h], dim=1)[0] for x in (got, exact)) for h in range(got.shape[1]))
    return torch.cat([compare(x[None], y[None]) for x, y in heads])


def snr_db(relative_mse: float) -> float | None:
    """Signal-to-noise ratio in dB; None where there is no noise."""
    return -10 * log10(relative_mse) if relative_mse > 0 else None
