"""Rectified flow: noise levels, the straight path from video to noise, its velocity, and an Euler sampler.

The noise level sigma runs from 0 (video) to 1 (noise); u is sigma before the shift, so progress of denoising = 1 - u.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..schedule import shift_noise, unshift_noise

if TYPE_CHECKING:
    from jaxtyping import Float

Velocity = Callable[[Tensor], Tensor]  # of text states
Passes = Callable[[Velocity, Tensor, Tensor], tuple[Tensor, Tensor]]


def noise_level(
    normal: Float[Tensor, " b"],
    shift: float,
    mean: float = 0.0,
    std: float = 1.0,
    within: tuple[float, float] = (0.0, 1.0),
) -> Float[Tensor, " b"]:
    """sigma for training: u ~ sigmoid(Normal(mean, std)), shifted (paper, Table 8: logit-normal, sample_shift).

    normal: draws of Normal(0, 1). within: the lowest and the highest level; others are left out, and the rest is as
    likely as before to each other.
    """
    if within == (0.0, 1.0):
        return shift_noise((mean + std * normal).sigmoid(), shift)
    return _levels_at(torch.special.ndtr(normal.double()), shift, mean, std, within)


def spread_noise_levels(
    count: int, shift: float, mean: float = 0.0, std: float = 1.0, within: tuple[float, float] = (0.0, 1.0)
) -> Float[Tensor, " b"]:
    """sigma for validation: the `count` mid-quantiles of the levels that training draws, in ascending order."""
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return _levels_at(quantiles, shift, mean, std, within)


def _levels_at(
    quantiles: Float[Tensor, " b"], shift: float, mean: float, std: float, within: tuple[float, float]
) -> Float[Tensor, " b"]:
    """sigma at quantiles (fp64) of the levels that training draws within the lowest and the highest."""
    u = unshift_noise(torch.tensor(within, dtype=torch.float64), shift).clamp(0, 1)  # which rounding leaves
    lowest, highest = torch.special.ndtr((u.logit() - mean) / std)
    z = torch.special.ndtri(lowest + quantiles * (highest - lowest))
    return shift_noise((mean + std * z).sigmoid(), shift).clamp(*within).float()


def add_noise(
    latents: Float[Tensor, "b c f h w"], noise: Float[Tensor, "b c f h w"], sigma: Float[Tensor, " b"]
) -> Float[Tensor, "b c f h w"]:
    """x_sigma = (1 - sigma) x_0 + sigma noise."""
    sigma = sigma.view(-1, 1, 1, 1, 1)
    return (1 - sigma) * latents + sigma * noise


def flow_loss(
    velocity: Float[Tensor, "b c f h w"], latents: Float[Tensor, "b c f h w"], noise: Float[Tensor, "b c f h w"]
) -> Float[Tensor, " b"]:
    """Mean squared error of each sample against the path's velocity, noise - x_0; unweighted, in fp32."""
    return (velocity.float() - (noise.float() - latents.float())).square().mean(dim=(1, 2, 3, 4))


def distill_loss(velocity: Float[Tensor, "b c f h w"], target: Float[Tensor, "b c f h w"]) -> Float[Tensor, " b"]:
    """Mean squared error of each sample against another model's velocity, in fp32."""
    return (velocity.float() - target.float()).square().mean(dim=(1, 2, 3, 4))


def velocity_error(velocity: Float[Tensor, "b c f h w"], target: Float[Tensor, "b c f h w"]) -> Float[Tensor, " b"]:
    """How far each sample's velocity is from another model's, as a share of that one's norm."""
    return (distill_loss(velocity, target) / target.float().square().mean(dim=(1, 2, 3, 4))).sqrt()


def sampling_levels(steps: int, shift: float) -> Float[Tensor, " {steps}+1"]:
    """sigma of each step and the 0 that ends them, evenly spaced before the shift. Raises ValueError below 1 step."""
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1")
    return shift_noise(torch.linspace(1, 0, steps + 1), shift)


def in_turn(velocity: Velocity, text: Tensor, no_text: Tensor) -> tuple[Tensor, Tensor]:
    """The velocities with and without the text, one after the other."""
    return velocity(text), velocity(no_text)


def guided_velocity(
    velocity: Velocity,
    text: Float[Tensor, "b l e"],
    no_text: Float[Tensor, "b l e"],
    guidance: float,
    passes: Passes = in_turn,
) -> Float[Tensor, "b c f h w"]:
    """Classifier-free guidance, in the dtype that velocity(text states) returns.

    guidance: 1 follows the text alone, in one pass; more leads away from `no_text`, and takes a second. passes: run
    both.
    """
    if guidance == 1:
        return velocity(text)
    with_text, without = passes(velocity, text, no_text)
    return without + guidance * (with_text - without)


@torch.no_grad()
def euler_sample(
    velocity: Callable[[Tensor, Tensor], Tensor], noise: Float[Tensor, "b c f h w"], steps: int, shift: float
) -> Iterator[Float[Tensor, "b c f h w"]]:
    """Follow velocity(x, sigma [B]) from noise to video with Euler steps; yields x after each step.

    x is kept in fp32; sigma is on the CPU, so that nothing waits for a GPU to know it. Raises ValueError below 1 step.
    """
    x = noise.float()
    levels = sampling_levels(steps, shift)
    for sigma, next_sigma in zip(levels[:-1], levels[1:], strict=True):
        x = x + (next_sigma - sigma) * velocity(x, sigma.expand(len(x))).float()
        yield x
