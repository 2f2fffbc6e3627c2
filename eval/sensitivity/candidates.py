"""Candidates: the windows and granularities that are tried in place of dense attention, alone and together."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from fps_flex import FPSAttention, Regime, StepSchedule, TileLayout, density
from fps_flex.quant import CodeFormat, Granularity
from fps_flex.schedule import PRESETS, WHOLE, Window
from fps_flex.tiles import Triple

Kind = Literal["quantised", "sparse", "joint"]

WINDOWS: tuple[Window, ...] = (
    (None, None, 0.1), (None, None, 0.3), (None, None, 0.5), (None, None, 0.75),
    (0.3, None, None), (0.6, None, None), (0.5, 0.5, 0.5), (0.75, 0.75, 0.75),
)  # fmt: skip
GRANULARITIES: tuple[Granularity, ...] = (1, 4)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A regime on a grid. tiles: its window on (T, H, W). density: the share of token pairs that it computes.

    codes: of Q and K, where they are quantised.
    """

    regime: Regime
    tiles: Triple
    density: float
    codes: CodeFormat = "e4m3"

    @property
    def kind(self) -> Kind:
        if self.regime.granularity is None:
            return "sparse"
        return "quantised" if self.regime.window == WHOLE else "joint"

    def __str__(self) -> str:
        """The same for all that are equal on this grid."""
        window = "whole" if self.regime.window == WHOLE else "x".join(map(str, self.tiles))
        scales = self.regime.granularity
        codes = "" if self.codes == "e4m3" else f" {self.codes}"
        return f"{window}, {'unquantised' if scales is None else f'scales {scales}{codes}'}"

    def describe(self) -> dict[str, Any]:
        regime = {"window": list(self.regime.window), "granularity": self.regime.granularity}
        return {**regime, "codes": self.codes, "tiles": list(self.tiles), "density": self.density, "kind": self.kind}

    def attention(self, base: FPSAttention) -> FPSAttention:
        """`base` with this regime at every noise level."""
        carrier = "input" if self.regime.granularity is None else base.carrier  # float8 holds codes alone
        return replace(base, schedule=StepSchedule((), (self.regime,)), carrier=carrier, codes=self.codes)


def on_grid(regime: Regime, layout: TileLayout, codes: CodeFormat = "e4m3") -> Candidate:
    """A window as long as the grid on all axes is the whole of it; without quantisation all codes are one."""
    tiles = regime.window_in_tiles(layout.tiles)
    regime = replace(regime, window=WHOLE) if tiles == layout.tiles else regime
    codes = "e4m3" if regime.granularity is None else codes
    return Candidate(regime, tiles, density(layout, tiles).item(), codes)


def list_candidates(
    layout: TileLayout,
    windows: Sequence[Window] | None = None,
    granularities: Sequence[Granularity] | None = None,
    codes: Sequence[CodeFormat] = ("e4m3",),
) -> list[Candidate]:
    """Each window alone, each granularity alone, all pairs of them, and the regimes of the presets, in all codes.

    windows, granularities: None takes those of this file. What is equal on this grid comes once, as it was said first.
    Raises ValueError for a window that the grid doesn't have.
    """
    asked = [Regime(window) for window in windows or ()]
    for regime in asked:
        check_fits(regime.window, layout)
    _name_equal(asked, layout)
    scales = GRANULARITIES if granularities is None else granularities
    pairs = product((WHOLE, *(WINDOWS if windows is None else windows)), (*scales, None))
    found: dict[str, Candidate] = {}
    regimes = [*(Regime(*pair) for pair in pairs), *_regimes_of_presets()]
    for regime, kind in product(regimes, codes):
        candidate = on_grid(regime, layout, kind)
        if candidate.regime != Regime():
            found.setdefault(str(candidate), candidate)
    return [*found.values()]


def _regimes_of_presets() -> Iterator[Regime]:
    """With the parts of each, so that every joint candidate is measured alone too."""
    for schedule in PRESETS.values():
        for regime in schedule.regimes:
            yield from (regime, replace(regime, granularity=None), replace(regime, window=WHOLE))


def check_fits(window: Window, layout: TileLayout) -> None:
    """Raises ValueError for more tiles than an axis has."""
    if any(isinstance(extent, int) and extent > n for extent, n in zip(window, layout.tiles, strict=True)):
        raise ValueError(
            f"windows has {window}, and the grid {layout.grid} has {layout.tiles} tiles of {layout.tile} on (T, H, W): "
            "expected at most as many, a share such as 0.5, or null for the whole axis"
        )


def _name_equal(asked: list[Regime], layout: TileLayout) -> None:
    first: dict[Triple, Regime] = {}
    for regime in asked:
        tiles = regime.window_in_tiles(layout.tiles)
        if (other := first.setdefault(tiles, regime)) is not regime:
            logger.warning("windows %s and %s are %s tiles both: measured once", other.window, regime.window, tiles)
