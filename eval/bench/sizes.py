"""The sizes that are measured: Wan2.1's real ones, and one that a CPU takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from fps_flex import FPSAttention, density
from fps_flex.checks import Triple
from fps_flex.wan import WAN_1_3B, WAN_14B, WAN_TINY, Wan, WanConfig
from fps_flex.wan.dense import dense_attention
from fps_flex.wan.weights import fill

Size = Literal["tiny", "1.3B", "14B"]

CONFIGS = {"tiny": WAN_TINY, "1.3B": WAN_1_3B, "14B": WAN_14B}
RESOLUTIONS: dict[str, Triple] = {"480p": (21, 30, 52), "720p": (21, 45, 80)}  # tokens of 81 frames
GRIDS: dict[str, Triple] = {"tiny": (5, 8, 8), "1.3B": RESOLUTIONS["480p"], "14B": RESOLUTIONS["720p"]}
TILES: dict[str, Triple] = {"tiny": (1, 4, 4), "1.3B": (7, 9, 6), "14B": (7, 9, 6)}
TEXT_TOKENS = 512
SIGMAS = {"early": 0.99, "middle": 0.8, "late": 0.3}  # one noise level in each regime of the fps preset


def block_of(size: Size) -> int:
    return 16 if size == "tiny" else 128


def sized(size: Size, layers: int | None) -> tuple[WanConfig, Triple]:
    config = CONFIGS[size]
    return replace(config, layers=layers or config.layers), GRIDS[size]


def attention_of(size: Size, schedule: str, **options: str) -> FPSAttention:
    """schedule: a preset, or sdpa."""
    if schedule == "sdpa":
        return dense_attention(block_of(size))
    return FPSAttention(schedule, tile=TILES[size], block=block_of(size), **options)


def densities(attention: FPSAttention, grid: Triple) -> list[float]:
    """Of each regime of the schedule."""
    layout = attention.plan(grid, torch.zeros(1)).layout
    return density(layout, attention.step_schedule.windows(layout.tiles)).tolist()


def regime_at(attention: FPSAttention, sigma: float) -> int:
    return attention.step_schedule.regime_index(torch.tensor([sigma])).item()


def random_wan(config: WanConfig, attention: FPSAttention, device: torch.device) -> Wan:
    """Random weights, drawn on the device: bf16 on a GPU, with what `fill` keeps in fp32, and fp32 on a CPU."""
    with torch.device("meta"):
        wan = Wan(config, attention)
    drawn = ((name, 0.02 * torch.randn(x.shape, device=device)) for name, x in wan.state_dict().items())
    fill(wan, drawn, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    return wan
