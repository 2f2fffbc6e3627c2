"""Sliding windows of tiles: the mask_mod that says which keys a query sees, and the block lists that skip the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from .checks import as_instance, is_whole, show
from .tiles import TileLayout

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

MOST_TILES = 2**31 - 1  # of a window, in int32: more than any layout has
MOST_BLOCKS = 2**15  # of a layout that lists are built for: they hold the square of it


def in_window(query: Tensor, key: Tensor, window: Tensor, tiles: Tensor) -> Tensor:
    """Whether a key tile is in a query tile's window, on one axis of `tiles` tiles; all arguments broadcast.

    The window holds exactly min(window, tiles) tiles. It is centred on the query (for an even window, one more tile
    before it than after it) and pushed back inside at the borders, as in Sliding Tile Attention.
    Written without clamp, which some FlexAttention backends can't generate.
    """
    window = torch.where(window < tiles, window, tiles)
    start = query - window // 2
    start = torch.where(start < 0, 0, start)
    start = torch.where(start > tiles - window, tiles - window, start)
    return (start <= key) & (key < start + window)


def as_windows(windows: Tensor | Sequence, layout: TileLayout) -> Int[Tensor, "b 3"]:
    """Windows in tiles, (T, H, W) or one such triple per sample, as a tensor on the layout's device.

    Raises ValueError for another shape, what isn't whole numbers, and a window below 1. Reads the values: it waits for
    a GPU.
    """
    as_instance("layout", layout, TileLayout)
    rows = windows.tolist() if isinstance(windows, Tensor) and not windows.is_meta else windows
    several = isinstance(rows, (list, tuple)) and len(rows) > 0 and all(isinstance(x, (list, tuple)) for x in rows)
    rows = rows if several else [rows]
    if not all(_is_window(row) for row in rows):
        raise ValueError(f"windows are {show(windows)}, expected whole tiles (T, H, W), or one such triple per sample")
    if any(size < 1 for row in rows for size in row):
        given = [list(map(int, row)) for row in rows]
        raise ValueError(f"windows are {show(given if several else given[0])}, expected at least 1 tile on each axis")
    rows = [[min(int(size), MOST_TILES) for size in row] for row in rows]
    return torch.tensor(rows, dtype=torch.int32, device=layout.device)


def _is_window(row: object) -> bool:
    return isinstance(row, (list, tuple)) and len(row) == 3 and all(map(is_whole, row))


def sliding_tile_mask_mod(layout: TileLayout, windows: Tensor | Sequence) -> MaskMod:
    """The mask_mod of a sliding window of tiles, complete on its own: windows, borders and pad keys.

    windows: tiles a query tile sees on (T, H, W); one triple for all samples, or one per sample ([B, 3]).
    Pad slots are masked as keys only, so that every row has a key and stays finite. Raises as `as_windows`.
    """
    return window_mask_mod(layout, as_windows(windows, layout))


def window_mask_mod(layout: TileLayout, windows: Int[Tensor, "b 3"], keys: TileLayout | None = None) -> MaskMod:
    """`sliding_tile_mask_mod` of windows that have been checked: it never waits for a GPU.

    keys: their layout where that isn't the queries': other tiles of the same grid.
    """
    keys = keys or layout
    q_coords, kv_coords = layout.tile_coords_of_slot, keys.tile_coords_of_slot
    tiles, valid = layout.tile_counts, keys.valid
    one_for_all = windows.shape[0] == 1

    def sliding_tile(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        keep = valid[kv_idx]
        for axis in range(3):
            window = windows[0, axis] if one_for_all else windows[b, axis]
            keep = keep & in_window(q_coords[axis, q_idx], kv_coords[axis, kv_idx], window, tiles[axis])
        return keep

    return sliding_tile


def pad_mask_mod(layout: TileLayout) -> MaskMod:
    """The mask_mod of pad keys alone: all that is left to mask in the blocks that `block_lists` keeps.

    For kernels, which follow the block lists; evaluating the windows again in every partial block costs them up to
    three times the whole (an H100, float8), and so does loading booleans.
    Anything that doesn't read the lists needs `sliding_tile_mask_mod`.
    """
    holds_token = layout.holds_token

    def is_token(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return holds_token[kv_idx] > 0

    return is_token


def tile_mask(layout: TileLayout, windows: Int[Tensor, "b 3"]) -> Bool[Tensor, "b tiles tiles"]:
    """Which key tiles each query tile sees."""
    coords = layout.coords_of_tile
    t, h, w = (
        in_window(coords[axis, :, None], coords[axis], windows[:, axis, None, None], layout.tile_counts[axis])
        for axis in range(3)
    )
    return t & h & w


def density(layout: TileLayout, windows: Tensor | Sequence) -> Float[Tensor, " b"]:
    """The share of (query token, key token) pairs that are computed, for each triple of windows; pads don't count.

    windows: tiles on (T, H, W), one triple or [B, 3]. Raises ValueError as `as_windows`.
    """
    windows = as_windows(windows, layout)
    tokens_of_tile = layout.coords_of_tile.new_zeros(prod(layout.tiles), dtype=torch.float64)
    tokens_of_tile.index_add_(0, layout.tile_of_slot, layout.valid.double())
    kept = tile_mask(layout, windows).double()
    return (kept @ tokens_of_tile) @ tokens_of_tile / layout.tokens**2


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class BlockLists:
    """The eight tensors of a BlockMask, a row per triple of windows, kept apart from it so that a batch can pick rows.

    [R, 1, blocks] counts or [R, 1, blocks, blocks] indices, int32, named as BlockMask's; q and kv are blocks of queries
    and of keys. Partial and full lists have the same shape and strides, which torch 2.11's kernels silently rely on.
    """

    kv_num_blocks: Int[Tensor, "r 1 q"]
    kv_indices: Int[Tensor, "r 1 q kv"]
    full_kv_num_blocks: Int[Tensor, "r 1 q"]
    full_kv_indices: Int[Tensor, "r 1 q kv"]
    q_num_blocks: Int[Tensor, "r 1 kv"]
    q_indices: Int[Tensor, "r 1 kv q"]
    full_q_num_blocks: Int[Tensor, "r 1 kv"]
    full_q_indices: Int[Tensor, "r 1 kv q"]

    def pick(self, rows: Int[Tensor, " b"]) -> BlockLists:
        """The rows of a batch's samples."""
        return BlockLists(**{name: x.index_select(0, rows) for name, x in vars(self).items()})

    def block_mask(self, layout: TileLayout, mask_mod: MaskMod, keys: TileLayout | None = None) -> BlockMask:
        """The BlockMask of all rows, each a sample's. keys: as in `window_mask_mod`."""
        slots, block = (layout.slots, (keys or layout).slots), (layout.block, layout.block)
        return BlockMask(slots, **vars(self), BLOCK_SIZE=block, mask_mod=mask_mod)


def block_lists(layout: TileLayout, windows: Int[Tensor, "r 3"], keys: TileLayout | None = None) -> BlockLists:
    """Block lists from tiles alone, without looking at any (query, key) pair.

    keys: as in `window_mask_mod`. All blocks of two tiles are either kept or dropped together. A kept block is full if
    all its keys are tokens. Raises ValueError for a layout of too many blocks.
    """
    check_blocks(layout)
    keys = keys or layout
    kept = tile_mask(layout, windows)[:, layout.tile_of_block][:, :, keys.tile_of_block]
    whole = rearrange(keys.valid, "(blocks slot) -> blocks slot", slot=keys.block).all(-1)
    partial, full = kept & ~whole, kept & whole
    return BlockLists(*_indices(partial), *_indices(full), *_indices(partial.mT), *_indices(full.mT))


def check_blocks(layout: TileLayout) -> None:
    """Raises ValueError for a layout of more than MOST_BLOCKS blocks: no memory holds its lists."""
    blocks = layout.slots // layout.block
    if blocks > MOST_BLOCKS:
        raise ValueError(
            f"grid {layout.grid} in tiles {layout.tile} takes {blocks} blocks of {layout.block} slots, expected at "
            f"most {MOST_BLOCKS}: choose a larger block or tile, or a smaller grid"
        )


def _indices(kept: Bool[Tensor, "r rows cols"]) -> tuple[Int[Tensor, "r 1 rows"], Int[Tensor, "r 1 rows cols"]]:
    """How many columns each row keeps, and their indices first in the row; the rest of the row is never read."""
    indices = kept.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return kept.sum(-1, dtype=torch.int32).unsqueeze(1), indices.to(torch.int32).unsqueeze(1).contiguous()


def sliding_tile_block_mask(layout: TileLayout, windows: Tensor | Sequence) -> BlockMask:
    """The BlockMask of a sliding window of tiles, with its complete mask_mod; B is 1 or the rows of `windows`.

    windows: tiles on (T, H, W), one triple or [B, 3]. Raises ValueError as `as_windows`, and for a layout of too many
    blocks.
    """
    windows = as_windows(windows, layout)
    return block_lists(layout, windows).block_mask(layout, window_mask_mod(layout, windows))
