"""What all regimes of an attention need on one grid, made once, from which plans pick by noise level."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .algorithm import Meaning, Plan
from .masks import BlockLists, as_windows, block_lists, check_blocks, pad_mask_mod, window_mask_mod
from .quant import tile_groups
from .schedule import WHOLE, Regime
from .tiles import TileLayout, Triple, plan_tile

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


@dataclass(frozen=True, eq=False)
class RegimeTables:
    """A row for each of an attention's regimes, on one grid, from which every batch picks its samples' rows."""

    layout: TileLayout
    windows: Int[Tensor, "r 3"]
    lists: BlockLists
    groups: Int[Tensor, "r tiles"]
    quantized: Bool[Tensor, " r"]

    def pick(self, rows: Int[Tensor, " b"], meaning: Meaning) -> Plan:
        """The plan of a batch, from the row of each sample."""
        layout, lists = self.layout, self.lists.pick(rows)
        return Plan(
            layout,
            lists.block_mask(layout, window_mask_mod(layout, self.windows[rows])),
            lists.block_mask(layout, pad_mask_mod(layout)),
            self.groups[rows],
            self.quantized[rows],
            meaning,
        )


def tile_for(grid: Triple, block: int, dense: bool) -> Triple:
    """What an attention takes whose tile is None. Raises ValueError as `plan_tile`."""
    return grid if dense else plan_tile(grid, block=block)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept here may meet a backward pass later
def build_tables(
    regimes: tuple[Regime, ...], tile: Triple | None, block: int, grid: Triple, device: torch.device
) -> RegimeTables:
    """tile: None is the one with the fewest pads, or the grid where all is dense."""
    dense = all(regime == Regime(WHOLE) for regime in regimes)
    layout = TileLayout(grid, tile or tile_for(grid, block, dense), block, device)
    check_blocks(layout)
    layout.build()
    windows = as_windows([regime.window_in_tiles(layout.tiles) for regime in regimes], layout)
    granularities = [regime.granularity for regime in regimes]
    return RegimeTables(
        layout,
        windows,
        block_lists(layout, windows),
        torch.stack([tile_groups(layout, granularity or 1) for granularity in granularities]),
        torch.tensor([granularity is not None for granularity in granularities], device=device),
    )
