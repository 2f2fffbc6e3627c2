"""Step-aware strength: which windows and which granularity are in force at each noise level (paper, Eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .flow import unshift_noise
from .quant import Granularity, check_granularity
from .tiles import Triple

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Extent = int | float

ON_BOUND = 1e-5


@dataclass(frozen=True)
class Regime:
    """Sparsity and quantisation at one stage of denoising.

    window: how far a query tile sees on (T, H, W): a whole number of tiles (an int), or a fraction of the axis's
        tiles (a float up to 1.0, the whole axis), rounded to whole tiles and at least 1.
    granularity: tiles per axis that share one scale (1, 2, ...), "head", or None for no quantisation.

    Raises ValueError for anything else.
    """

    window: tuple[Extent, Extent, Extent] = (1.0, 1.0, 1.0)
    granularity: Granularity | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", tuple(self.window))
        if len(self.window) != 3 or not all(_is_extent(extent) for extent in self.window):
            raise ValueError(
                f"window is {self.window}, expected three extents (T, H, W): each a whole number of tiles from 1 up, "
                "or a fraction of the axis above 0.0 and up to 1.0"
            )
        if self.granularity is not None:
            check_granularity(self.granularity)

    def window_in_tiles(self, tiles: Triple) -> Triple:
        """The window on axes of so many tiles."""
        t, h, w = (
            min(extent, n) if isinstance(extent, int) else max(1, round(extent * n))
            for extent, n in zip(self.window, tiles, strict=True)
        )
        return t, h, w


def _is_extent(extent: object) -> bool:
    if isinstance(extent, bool):
        return False
    return isinstance(extent, int) and extent >= 1 or isinstance(extent, float) and 0 < extent <= 1


@dataclass(frozen=True)
class StepSchedule:
    """Progress of denoising -> regime. The default is the `fps` preset.

    bounds: progress at which each regime but the first begins, ascending, inside (0, 1). regimes: one more than
    bounds. shift: the shift under which progress is read off sigma, whatever shift a sampler uses: the same sigma
    always meets the same regime.

    Raises ValueError when these don't fit together.
    """

    bounds: tuple[float, ...] = (0.3, 0.7)
    regimes: tuple[Regime, ...] = (
        Regime((1.0, 1.0, 0.1), granularity=4),
        Regime((1.0, 1.0, 0.3), granularity=1),
        Regime((1.0, 1.0, 0.2), granularity=2),
    )
    shift: float = 5.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "bounds", tuple(self.bounds))
        object.__setattr__(self, "regimes", tuple(self.regimes))
        if len(self.regimes) != len(self.bounds) + 1:
            raise ValueError(f"{len(self.regimes)} regimes and {len(self.bounds)} bounds, expected one more regime")
        edges = (0.0, *self.bounds, 1.0)
        if any(low >= high for low, high in zip(edges[:-1], edges[1:], strict=True)):
            raise ValueError(f"bounds are {self.bounds}, expected ascending progress between 0 and 1")
        if not self.shift > 0:
            raise ValueError(f"shift is {self.shift}, expected a number above 0")

    @property
    def quantizes(self) -> bool:
        return any(regime.granularity is not None for regime in self.regimes)

    @property
    def is_dense(self) -> bool:
        """Whether every regime has full windows and no quantisation."""
        return all(regime == Regime() for regime in self.regimes)

    def progress(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The fraction of denoising done at a noise level: 0 at pure noise, 1 at the video."""
        return 1 - unshift_noise(sigma.double(), self.shift)

    def regime(self, sigma: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
        """The index of the regime in force at each noise level; a bound belongs to the regime it begins.

        A sampler of 50 steps would meet bounds like 0.3 exactly, were sigma not rounded: ON_BOUND below counts as on.
        """
        progress = self.progress(sigma)
        regime = torch.zeros_like(sigma, dtype=torch.int64)
        for bound in self.bounds:
            regime = regime + (progress >= bound - ON_BOUND)
        return regime

    def windows(self, tiles: Triple) -> list[Triple]:
        """Each regime's window on axes of so many tiles."""
        return [regime.window_in_tiles(tiles) for regime in self.regimes]

    def without_quantization(self) -> StepSchedule:
        return replace(self, regimes=tuple(replace(regime, granularity=None) for regime in self.regimes))

    def without_sparsity(self) -> StepSchedule:
        return replace(self, regimes=tuple(replace(regime, window=(1.0, 1.0, 1.0)) for regime in self.regimes))


# The paper's thresholds, windows and granularities are unpublished: these numbers are ours.
PRESETS = {
    "fps": StepSchedule(),
    "sta": StepSchedule(bounds=(0.3,), regimes=(Regime(), Regime((1.0, 1.0, 0.1), granularity=1))),
    "uniform": StepSchedule(bounds=(), regimes=(Regime((1.0, 1.0, 0.2), granularity=1),)),
    "dense": StepSchedule(bounds=(), regimes=(Regime(),)),
}


def preset(name: str) -> StepSchedule:
    """A schedule by name: fps, sta, uniform or dense. Raises ValueError for another."""
    if name not in PRESETS:
        raise ValueError(f"schedule is {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
