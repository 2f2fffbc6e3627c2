"""From noise to latents, with diffusers' schedulers and classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fps_flex import FPSAttention
from fps_flex.checks import is_finite, require
from fps_flex.wan import Wan
from fps_flex.wan.flops import densities
from fps_flex.wan.flow import Passes, guided_velocity, in_turn

if TYPE_CHECKING:
    from jaxtyping import Float

Sampler = Literal["unipc", "euler"]

TIMESTEPS = 1000  # at noise level 1
LEAST_SHIFT, MOST_SHIFT, MOST_GUIDANCE = 0.1, 1000, 1000  # Wan takes shifts from 3 to 12, and a guidance of 5


@dataclass(frozen=True)
class LowNoise:
    """The expert that takes over below a noise level, with a guidance of its own."""

    wan: Wan
    boundary: float
    guidance: float


def build_scheduler(sampler: Sampler, steps: int, shift: float) -> Any:
    """diffusers' scheduler for rectified flow, set to its steps.

    Raises ValueError below 1 step or above 1000, or for a shift that isn't from 0.1 to 1000.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    require("steps", steps, least=1, most=TIMESTEPS)
    require("shift", shift, least=LEAST_SHIFT, most=MOST_SHIFT)
    if sampler == "unipc":
        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, num_train_timesteps=TIMESTEPS
        )
        scheduler.set_timesteps(steps)
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMESTEPS, shift=shift)
        scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    scheduler.set_begin_index(0)  # it would look for the first timestep, which a high shift rounds to the next one's
    return scheduler


def list_regimes(attention: FPSAttention, scheduler: Any) -> list[int]:
    """The index of the regime in force at each step, in layers that have no schedule of their own."""
    return attention.step_schedule.regime_index(scheduler.timesteps / TIMESTEPS).tolist()


def mean_density(attention: FPSAttention, grid: tuple[int, int, int], scheduler: Any, layers: int) -> float:
    """Mean over the sampler's steps, and a model's layers, of the share of the attention's pairs that is computed.

    grid: frames, rows and columns of tokens.
    """
    return densities(attention, grid, scheduler.timesteps / TIMESTEPS, layers).mean().item()


@torch.inference_mode()
def sample_latents(
    wan: Wan,
    scheduler: Any,
    noise: Float[Tensor, "b c f h w"],
    text: Float[Tensor, "b l e"],
    no_text: Float[Tensor, "b l e"],
    guidance: float,
    after_step: Callable[[], None] = lambda: None,
    low: LowNoise | None = None,
    passes: Passes = in_turn,
) -> Float[Tensor, "b c f h w"]:
    """Latents in fp32. guidance: 1 follows the text alone, more leads away from `no_text`. low: takes over from `wan`.
    passes: run the two of guidance.

    The regime of each step follows its noise level, timestep / 1000. Raises ValueError where they cease to be finite.
    """
    x = noise.float()
    for step, timestep in enumerate(scheduler.timesteps, start=1):
        t = timestep.expand(len(x)).float()  # on the CPU, where what shares tokens out reads it
        model, scale = wan, guidance
        if low and timestep < low.boundary * TIMESTEPS:
            model, scale = low.wan, low.guidance
        # in fp32, whatever the model computes in: guidance multiplies what rounding leaves
        velocity = guided_velocity(lambda states: model(x, t, states).float(), text, no_text, scale, passes)  # noqa: B023
        x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
        if not is_finite(x):
            raise ValueError(
                f"the latents aren't finite after step {step} of {len(scheduler.timesteps)}, with guidance {scale:g}: "
                "look at guidance, shift and steps, and whether the weights are those of this model"
            )
        after_step()
    return x
