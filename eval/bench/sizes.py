"""The sizes that are measured: Wan2.1's real ones, and one that a CPU takes."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from fps_flex import FPSAttention, StepSchedule, density
from fps_flex.checks import Triple, as_whole
from fps_flex.wan import WAN_1_3B, WAN_14B, WAN_TINY, Wan, WanConfig
from fps_flex.wan.dense import dense_attention
from fps_flex.wan.sequence import Call
from fps_flex.wan.weights import build_empty, fill
from train.common.ranks import speaks
from train.common.work import compute_dtype

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Size = Literal["tiny", "1.3B", "14B"]

CONFIGS = {"tiny": WAN_TINY, "1.3B": WAN_1_3B, "14B": WAN_14B}
RESOLUTIONS: dict[str, Triple] = {"480p": (21, 30, 52), "720p": (21, 45, 80)}  # tokens of 81 frames
GRIDS: dict[str, Triple] = {"tiny": (5, 8, 8), "1.3B": RESOLUTIONS["480p"], "14B": RESOLUTIONS["720p"]}
TILES: dict[str, Triple] = {"tiny": (1, 4, 4), "1.3B": (7, 9, 6), "14B": (7, 9, 6)}
SHIFTS = {"tiny": 3.0, "1.3B": 3.0, "14B": 5.0}  # of samplers at 480p and at 720p, as Wan2.1 and diffusers have them
TEXT_TOKENS = 512
SIGMAS = {"early": 0.99, "middle": 0.8, "late": 0.3}  # one noise level in each regime of the fps preset

logger = logging.getLogger(__name__)


class Level(NamedTuple):
    """A noise level in one of a schedule's regimes. index, density: of that regime."""

    regime: str
    sigma: float
    index: int
    density: float


def tell_of_a_cpu(size: Size) -> None:
    """A line, where there is no GPU. A call that takes a CPU so long hears no signal until it returns."""
    if size != "tiny" and not torch.cuda.is_available() and speaks():
        logger.warning("there is no GPU, and a CPU takes hours for %s: --size tiny takes seconds", size)


def block_of(size: Size) -> int:
    return 16 if size == "tiny" else 128


def sized(size: Size, layers: int | None) -> WanConfig:
    """Raises ValueError for less than one layer."""
    config = CONFIGS[size]
    return config if layers is None else replace(config, layers=as_whole("layers", layers))


def call_at(attention: FPSAttention, grid: Triple, sigma: float, config: WanConfig, dtype: torch.dtype) -> Call:
    """A pass at a noise level, as processes that share its tokens see it. dtype: of q, k and v."""
    level = torch.tensor([sigma])
    return Call(attention, attention.plan(grid, level), level, config.heads, config.head_dim, dtype)


def attention_of(size: Size, schedule: str | StepSchedule, **options: Any) -> FPSAttention:
    """schedule: one, a preset, or sdpa. options: in place of the size's own."""
    if schedule == "sdpa":
        return dense_attention(block_of(size))
    return FPSAttention(schedule, **{"tile": TILES[size], "block": block_of(size), **options})


def levels_of(attention: FPSAttention, grid: Triple) -> list[Level]:
    """One in each regime of the fps preset, or one for a schedule without regimes."""
    schedule, layout = attention.step_schedule, attention.plan(grid, torch.zeros(1)).layout
    densities = density(layout, schedule.windows(layout.tiles)).tolist()
    sigmas = SIGMAS if len(densities) > 1 else {"all": SIGMAS["middle"]}
    indices = schedule.regime_index(torch.tensor([*sigmas.values()])).tolist()
    return [Level(name, sigmas[name], i, densities[i]) for name, i in zip(sigmas, indices, strict=True)]


def latent_shape(config: WanConfig, grid: Triple) -> tuple[int, ...]:
    """Channels, frames, rows and columns of the latents of so many tokens."""
    return config.channels, *(tokens * side for tokens, side in zip(grid, config.patch, strict=True))


def draw_inputs(
    config: WanConfig, grid: Triple, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Float[Tensor, "1 c f h w"], Float[Tensor, "1 l e"]]:
    """Random latents and text states of one video."""
    options = {"device": device, "dtype": dtype}
    latents = torch.randn(1, *latent_shape(config, grid), **options)
    return latents, torch.randn(1, TEXT_TOKENS, config.text_dim, **options)


def random_wan(config: WanConfig, attention: FPSAttention, device: torch.device) -> Wan:
    """Random weights, drawn on the device: bf16 on a GPU, with what `fill` keeps in fp32, and fp32 on a CPU."""
    wan = build_empty(config, attention)
    drawn = ((name, 0.02 * torch.randn(x.shape, device=device)) for name, x in wan.state_dict().items())
    fill(wan, drawn, device, compute_dtype(device))
    return wan
