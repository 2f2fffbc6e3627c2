"""Which tiles each process has under the halo, and which of the others' its windows reach."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..masks import BlockLists, as_windows, block_lists, tile_mask
from ..tiles import TileLayout, Triple
from .collectives import Group, Lengths

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

Windows = tuple[Triple, ...]  # in tiles, of several regimes
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Deal:
    """Tiles dealt out to processes. owner: of each tile. rows: slots that process p gets from process q: rows[p][q]."""

    owner: Lengths
    rows: tuple[Lengths, ...]
    reached: tuple[tuple[bool, ...], ...]

    @property
    def busiest(self) -> int:
        return max(map(sum, self.rows))


@lru_cache(maxsize=64)
def deal_tiles(layout: TileLayout, windows: Windows, processes: int) -> Deal:
    """Of the three axes to sort the tiles along, the one that leaves the busiest process the fewest slots to get.

    windows: in force. Raises ValueError where there are more processes than tiles.
    """
    layout = replace(layout, device=CPU)
    tiles = layout.coords_of_tile.shape[1]
    if tiles < processes:
        raise ValueError(
            f"the halo deals {tiles} tiles out to {processes} processes (grid {layout.grid}, tiles {layout.tile}), "
            "expected at least one each: take fewer processes, or smaller tiles"
        )
    owners = (_owners_along(axis, layout, processes) for axis in range(3))
    return min((reach(layout, windows, owner, processes) for owner in owners), key=lambda deal: deal.busiest)


@lru_cache(maxsize=64)
def reach(layout: TileLayout, windows: Windows, owner: Lengths, processes: int) -> Deal:
    """What of each other's tiles processes get under some windows, tiles having been dealt out before."""
    layout, owners = replace(layout, device=CPU), torch.tensor(owner)
    slots, kept = layout.tile_of_slot.bincount(), tile_mask(layout, as_windows(windows, layout)).any(0)
    reached = torch.stack([kept[owners == p].any(0) & (owners != p) for p in range(processes)])
    rows = torch.stack([(reached * slots)[:, owners == q].sum(1) for q in range(processes)], dim=1)
    return Deal(owner, tuple(map(tuple, rows.tolist())), tuple(map(tuple, reached.tolist())))


def _owners_along(axis: int, layout: TileLayout, processes: int) -> Lengths:
    """Shares of about as many slots, of tiles that follow each other on one axis."""
    slots = layout.tile_of_slot.bincount()
    order = layout.coords_of_tile[axis].argsort(stable=True)
    middle = slots[order].cumsum(0) - slots[order] / 2
    owner = torch.empty_like(slots)
    owner[order] = torch.tensor(_leave_none_out((middle * processes / slots.sum()).long().tolist(), processes))
    return tuple(owner.tolist())


def _leave_none_out(owners: list[int], processes: int) -> list[int]:
    """owners: ascending. Such that each process has a tile."""
    taken = -1
    for i, owner in enumerate(owners):
        taken = max(min(owner, taken + 1), processes - (len(owners) - i))
        owners[i] = taken
    return owners


@dataclass(frozen=True, eq=False)
class SomeTiles(TileLayout):
    """Some slots of a layout, those of whole tiles: what scales and masks ask of one. It orders no tokens."""

    whole: TileLayout = field(kw_only=True)
    chosen: Int[Tensor, " slots"] = field(kw_only=True)

    @classmethod
    def of(cls, whole: TileLayout, chosen: Int[Tensor, " slots"]) -> SomeTiles:
        chosen = chosen.to(whole.device)
        some = cls(whole.grid, whole.tile, whole.block, whole.device, whole=whole, chosen=chosen)
        for name in ("holds_token", "tile_of_block", "coords_of_tile", "tile_coords_of_slot", "tile_counts"):
            getattr(some, name)
        return some

    @cached_property
    def slots(self) -> int:
        return len(self.chosen)

    @cached_property
    def valid(self) -> Bool[Tensor, " slots"]:
        return self.whole.valid[self.chosen]

    @cached_property
    def tile_of_slot(self) -> Int[Tensor, " slots"]:
        return self.whole.tile_of_slot[self.chosen]


def _some(windows: Windows, regimes: frozenset[int]) -> Windows:
    return tuple(windows[i] for i in sorted(regimes))


@dataclass(frozen=True, eq=False)
class HaloTiles:
    """What one process has and gets.

    own: its slots. held: these, then those that it gets from each process. sent_rows: of its own slots, those that go
    to each process, one after the other. sent, received: how many go to, and come from, each. moves: whether any
    process gets any. place: of each slot of the whole layout among all processes' own ones, one after the other.
    lengths: of these. lists: a row per regime.
    """

    own: SomeTiles
    held: SomeTiles
    sent_rows: Int[Tensor, " rows"]
    sent: Lengths
    received: Lengths
    moves: bool
    place: Int[Tensor, " slots"]
    lengths: Lengths
    windows: Int[Tensor, "r 3"]
    lists: BlockLists


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept here may meet a backward pass later
def halo_tiles(
    layout: TileLayout, windows: Windows, in_force: frozenset[int], group: Group, dealt: frozenset[int] | None = None
) -> HaloTiles:
    """windows: of all regimes. in_force: the regimes of a batch's samples. dealt: those that tiles are dealt for, if
    others.

    Raises ValueError as `deal_tiles`.
    """
    owners = deal_tiles(layout, _some(windows, dealt or in_force), group.size).owner
    deal = reach(layout, _some(windows, in_force), owners, group.size)
    owner, reached = torch.tensor(deal.owner), torch.tensor(deal.reached)
    tile = layout.tile_of_slot.cpu()
    parts = [(owner == p)[tile].nonzero().flatten() for p in range(group.size)]
    own = parts[group.rank]
    got = [(reached[group.rank] & (owner == q))[tile].nonzero().flatten() for q in range(group.size)]
    sent = [reached[p][tile[own]].nonzero().flatten() for p in range(group.size)]
    queries, keys = SomeTiles.of(layout, own), SomeTiles.of(layout, torch.cat([own, *got]))
    every = as_windows(windows, layout)
    return HaloTiles(
        queries,
        keys,
        torch.cat(sent).to(layout.device),
        tuple(map(len, sent)),
        tuple(map(len, got)),
        deal.busiest > 0,
        torch.cat(parts).argsort().to(layout.device),
        tuple(map(len, parts)),
        every,
        block_lists(queries, every, keys),
    )
