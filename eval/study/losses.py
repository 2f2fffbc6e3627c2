"""The loss on a fixed grid: each held-out clip at each noise level, with the same noise whatever the row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from fps_flex.wan import Wan
from fps_flex.wan.flow import add_noise, flow_loss
from train.order import generator_of

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

SEED = 0  # of the noise of clip i, with i


def noise_of(clip: int, latents: Float[Tensor, "1 c f h w"]) -> Float[Tensor, "1 c f h w"]:
    """clip: its number, which says it, whatever the device."""
    return torch.randn(latents.shape, generator=generator_of(SEED, clip)).to(latents)


@torch.inference_mode()
def losses_of_clip(
    wan: Wan, latents: Float[Tensor, "1 c f h w"], text: Float[Tensor, "1 l e"], clip: int, sigmas: Sequence[float]
) -> list[float]:
    """The flow loss at each noise level."""
    noise, losses = noise_of(clip, latents), []
    for sigma in sigmas:
        level = torch.tensor([sigma])
        velocity = wan(add_noise(latents, noise, level.to(latents)), 1000 * level, text)
        losses.append(flow_loss(velocity, latents, noise).item())
    return losses


def mean_over(grid: list[list[float]], sigmas: Sequence[float], least: float = 0.0) -> list[float]:
    """Of each clip, over the noise levels from `least` up. grid: [clip, sigma]."""
    kept = [i for i, sigma in enumerate(sigmas) if sigma >= least]
    return [sum(losses[i] for i in kept) / len(kept) for losses in grid]


def by_regime(grid: list[list[float]], regimes: list[int]) -> dict[int, float]:
    """Mean over clips and the noise levels of each regime. regimes: of each noise level."""
    columns = {regime: [i for i, other in enumerate(regimes) if other == regime] for regime in sorted({*regimes})}
    return {x: sum(row[i] for row in grid for i in those) / (len(grid) * len(those)) for x, those in columns.items()}
