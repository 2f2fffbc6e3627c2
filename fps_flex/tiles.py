"""The 3D tile: the unit of memory order, of the FP8 scale, of the sparsity window and of the GPU's block."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .checks import Triple, as_device, as_real, as_triple, as_tuple, as_whole, is_whole, show

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped

MOST_SLOTS = 2**31 - 1  # slots are numbered in int32
VOLUMES = (256, 512)  # tokens of a full tile, the fewest and the most, that plan_tile looks among

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TileLayout:
    """Raster tokens <-> tile-major slots, for any grid, with ragged tiles at the far edges and no padded volume.

    Tiles follow each other in raster order, and so do the tokens inside a tile. Each tile owns
    `ceil(tokens / block) * block` slots, its tokens first; the pad slots behind them hold no token. So no block
    holds tokens of two tiles, and only a tile's last block can hold pads.

    grid: tokens on the axes (T, H, W). tile: tokens of a full tile on the same axes. block: slots of one block of
    the attention kernel; a multiple of 128 on a GPU. device: where the index tensors live.

    Raises ValueError for a size that isn't a whole number from 1 up, a tile larger than the grid, more than 2^31 - 1
    slots, and no device.
    """

    grid: Triple
    tile: Triple
    block: int = 128
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        for name in ("grid", "tile"):
            object.__setattr__(self, name, as_triple(name, getattr(self, name)))
        object.__setattr__(self, "block", as_whole("block", self.block))
        object.__setattr__(self, "device", as_device("device", self.device))
        if any(t > g for t, g in zip(self.tile, self.grid, strict=True)):
            raise ValueError(
                f"tile {self.tile} is larger than the grid {self.grid} of tokens (T, H, W): choose a smaller tile"
            )
        if self.slots > MOST_SLOTS:
            raise ValueError(
                f"grid {self.grid} in tiles {self.tile} and blocks of {self.block} takes {self.slots} slots, "
                f"expected at most {MOST_SLOTS}: choose a smaller grid or block"
            )
        fewest = -(-prod(self.grid) // self.block) * self.block
        if self.pad_share > 0.25 and self.slots > fewest:
            _warn_once(
                f"tile {self.tile} on grid {self.grid} with blocks of {self.block} leaves {self.pad_share:.0%} of the "
                "slots empty: plan_tile(grid) finds a better one"
            )

    @property
    def tiles(self) -> Triple:
        """Tiles on each axis, the ragged last one included."""
        t, h, w = (-(-g // t) for g, t in zip(self.grid, self.tile, strict=True))
        return t, h, w

    @property
    def tokens(self) -> int:
        return prod(self.grid)

    @cached_property
    def slots(self) -> int:
        return count_slots(self.grid, self.tile, self.block)

    @property
    def pad_share(self) -> float:
        """Pad slots over slots."""
        return 1 - self.tokens / self.slots

    @cached_property
    def slot_of_token(self) -> Int[Tensor, " tokens"]:
        """The slot of each token, tokens in raster order."""
        tile = self._tile_of_token
        tile_major = tile.argsort(stable=True)
        tile = tile[tile_major]
        rank_in_tile = torch.arange(self.tokens) - (self._tokens_of_tile.cumsum(0) - self._tokens_of_tile)[tile]
        first_slot = self._slots_of_tile.cumsum(0) - self._slots_of_tile
        slot = torch.empty_like(tile)
        slot[tile_major] = first_slot[tile] + rank_in_tile
        return slot.to(torch.int32).to(self.device)

    @cached_property
    def token_of_slot(self) -> Int[Tensor, " slots"]:
        """The token that each slot holds; 0 for a pad."""
        token = torch.zeros(self.slots, dtype=torch.int32, device=self.device)
        token[self.slot_of_token] = torch.arange(self.tokens, dtype=torch.int32, device=self.device)
        return token

    @cached_property
    def valid(self) -> Bool[Tensor, " slots"]:
        """True where a slot holds a token."""
        valid = torch.zeros(self.slots, dtype=torch.bool, device=self.device)
        valid[self.slot_of_token] = True
        return valid

    @cached_property
    def holds_token(self) -> Float[Tensor, " slots"]:
        """1 where a slot holds a token, else 0, in fp32: what kernels mask by, since they load booleans slowly."""
        return self.valid.float()

    @cached_property
    def tile_of_slot(self) -> Int[Tensor, " slots"]:
        """The tile that owns each slot, pads included."""
        tiles = torch.arange(prod(self.tiles), dtype=torch.int32)
        return tiles.repeat_interleave(self._slots_of_tile).to(self.device)

    @cached_property
    def tile_of_block(self) -> Int[Tensor, " blocks"]:
        return self.tile_of_slot[:: self.block].long()

    @cached_property
    def coords_of_tile(self) -> Int[Tensor, "3 tiles"]:
        """The position of each tile on the axes (T, H, W), in tiles."""
        index = torch.arange(prod(self.tiles))
        return torch.stack(torch.unravel_index(index, self.tiles)).to(torch.int32).to(self.device)

    @cached_property
    def tile_coords_of_slot(self) -> Int[Tensor, "3 slots"]:
        """The position of each slot's tile on the axes (T, H, W), in tiles."""
        return self.coords_of_tile[:, self.tile_of_slot].contiguous()

    @cached_property
    def tile_counts(self) -> Int[Tensor, "3"]:
        """`tiles` as a tensor, so that another grid of the same length compiles nothing."""
        return torch.tensor(self.tiles, dtype=torch.int32, device=self.device)

    def build(self) -> TileLayout:
        """Make all index tensors now, not when they are first asked for."""
        for name in (
            "slot_of_token",
            "token_of_slot",
            "valid",
            "holds_token",
            "tile_of_slot",
            "tile_of_block",
            "coords_of_tile",
            "tile_coords_of_slot",
            "tile_counts",
        ):
            getattr(self, name)
        return self

    def order(self, tokens: Shaped[Tensor, "..."], dim: int = 1) -> Shaped[Tensor, "..."]:
        """Raster tokens -> slots along `dim`; pad slots are 0. Raises ValueError if `dim` does not hold the grid."""
        _check_dim("tokens", tokens, dim)
        if tokens.shape[dim] != self.tokens:
            raise ValueError(
                f"got {tokens.shape[dim]} tokens on dim {dim}, expected {self.tokens}: a grid of {self.grid}"
            )
        return _Order.apply(tokens, dim % tokens.ndim, self.token_of_slot, self.slot_of_token, self.valid)

    def unorder(self, slots: Shaped[Tensor, "..."], dim: int = 1) -> Shaped[Tensor, "..."]:
        """Slots -> raster tokens along `dim`, pads dropped. Raises ValueError if `dim` does not hold the slots."""
        _check_dim("slots", slots, dim)
        if slots.shape[dim] != self.slots:
            raise ValueError(f"got {slots.shape[dim]} slots on dim {dim}, expected {self.slots} for grid {self.grid}")
        return _Unorder.apply(slots, dim % slots.ndim, self.token_of_slot, self.slot_of_token, self.valid)

    @cached_property
    def _tile_of_token(self) -> Int[Tensor, " tokens"]:
        t, h, w = (torch.arange(g) // t for g, t in zip(self.grid, self.tile, strict=True))
        _, tiles_h, tiles_w = self.tiles
        return ((t[:, None, None] * tiles_h + h[:, None]) * tiles_w + w).flatten()

    @cached_property
    def _tokens_of_tile(self) -> Int[Tensor, " tiles"]:
        return self._tile_of_token.bincount(minlength=prod(self.tiles))

    @property
    def _slots_of_tile(self) -> Int[Tensor, " tiles"]:
        return (self._tokens_of_tile + self.block - 1) // self.block * self.block


def _check_dim(name: str, x: object, dim: object) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} is {show(x)}, expected a tensor")
    if not is_whole(dim) or not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim is {show(dim)}, expected a dim of {name} of shape {tuple(x.shape)}")


class _Order(torch.autograd.Function):
    """Gathers, and so does the backward, where that of index_select would add with atomics."""

    @staticmethod
    def forward(ctx, tokens: Tensor, dim: int, token_of_slot: Tensor, slot_of_token: Tensor, valid: Tensor) -> Tensor:
        ctx.dim = dim
        ctx.save_for_backward(slot_of_token)
        return _gather_slots(tokens, dim, token_of_slot, valid)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slot_of_token,) = ctx.saved_tensors
        return grad.index_select(ctx.dim, slot_of_token), None, None, None, None


class _Unorder(torch.autograd.Function):
    """The inverse of _Order on tokens, and its transpose."""

    @staticmethod
    def forward(ctx, slots: Tensor, dim: int, token_of_slot: Tensor, slot_of_token: Tensor, valid: Tensor) -> Tensor:
        ctx.dim = dim
        ctx.save_for_backward(token_of_slot, valid)
        return slots.index_select(dim, slot_of_token)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        token_of_slot, valid = ctx.saved_tensors
        return _gather_slots(grad, ctx.dim, token_of_slot, valid), None, None, None, None


def _gather_slots(tokens: Tensor, dim: int, token_of_slot: Tensor, valid: Tensor) -> Tensor:
    pads = ~valid.view(-1, *[1] * (tokens.ndim - dim - 1))
    return tokens.index_select(dim, token_of_slot).masked_fill(pads, 0)


def count_slots(grid: Triple, tile: Triple, block: int) -> int:
    """Slots of a layout without building it: tiles have at most two lengths on an axis, full and ragged."""
    lengths = [((t, g // t), (g % t, 1 if g % t else 0)) for g, t in zip(grid, tile, strict=True)]
    return sum(
        prod(count for _, count in sides) * -(-prod(length for length, _ in sides) // block) * block
        for sides in product(*lengths)
    )


def plan_tile(
    grid: Triple, volume: int = 384, volumes: tuple[int, int] = VOLUMES, aspect: float = 2.0, block: int = 128
) -> Triple:
    """The tile with the fewest slots for a grid.

    Ties go to the tile whose tokens are nearest `volume`, then to the most cubic one.
    volumes: the fewest and the most tokens of a full tile. aspect: its longest side over its shortest, at most; a side
    that is the whole axis can't be longer, and doesn't count as short.
    Raises ValueError when no such tile fits the grid, and for sizes that aren't whole numbers from 1 up.
    """
    grid, volume, block = as_triple("grid", grid), as_whole("volume", volume), as_whole("block", block)
    low, high = _check_volumes(volumes)
    if as_real("aspect", aspect) < 1:
        raise ValueError(f"aspect is {aspect}, expected at least 1")
    candidates = [tile for tile in _tiles_up_to(high, grid) if low <= prod(tile) and _aspect(tile, grid) <= aspect]
    if not candidates:
        raise ValueError(
            f"no tile of {low} to {high} tokens with sides within a factor of {aspect} fits the grid {grid}: "
            "widen volumes or aspect, or name a tile"
        )

    def cost(tile: Triple) -> tuple[int, int, float]:
        return count_slots(grid, tile, block), abs(prod(tile) - volume), max(tile) / min(tile)

    return min(candidates, key=cost)


def _aspect(tile: Triple, grid: Triple) -> float:
    """A tile's longest side over the shortest of those that could be longer."""
    return max(tile) / min((side for side, axis in zip(tile, grid, strict=True) if side < axis), default=max(tile))


def _check_volumes(volumes: object) -> tuple[int, int]:
    expected = "the fewest and the most tokens of a tile"
    pair = as_tuple("volumes", volumes, expected)
    if len(pair) != 2 or not all(map(is_whole, pair)) or not 1 <= pair[0] <= pair[1]:
        raise ValueError(f"volumes is {show(pair)}, expected {expected}, from 1 up and in this order")
    return int(pair[0]), int(pair[1])


def _tiles_up_to(volume: int, grid: Triple) -> Iterator[Triple]:
    """Every tile of at most so many tokens that fits a grid."""
    for t in range(1, min(grid[0], volume) + 1):
        for h in range(1, min(grid[1], volume // t) + 1):
            for w in range(1, min(grid[2], volume // (t * h)) + 1):
                yield t, h, w


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)
