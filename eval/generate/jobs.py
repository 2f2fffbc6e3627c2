"""What a run makes: its videos, and what they share."""

from __future__ import annotations

from dataclasses import dataclass

from fps_flex.wan.linears import Linears
from fps_flex.wan.model import Residual
from fps_flex.wan.weights import Which

from .models import Clip
from .sampling import Sampler


@dataclass(frozen=True)
class Job:
    """One video to make: name.mp4."""

    name: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Settings:
    """What all videos of a run share.

    low_noise to low_noise_guidance: of the second of two experts, or None. lossless: whether each pixel is kept.
    """

    checkpoint: str
    weights: Which
    negative_prompt: str
    sampler: Sampler
    steps: int
    guidance: float
    shift: float
    linears: Linears
    residual: Residual
    clip: Clip
    low_noise: str | None = None
    boundary: float | None = None
    low_noise_guidance: float | None = None
    lossless: bool = False
