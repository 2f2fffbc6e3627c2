"""What an attention takes on a grid and a device, in a line, and what would be faster there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .attention import FPSAttention
from .engines import FLOAT8, Call, choose_engine, obstacle
from .schedule import preset_of
from .tables import tile_for
from .tiles import TileLayout, Triple, count_slots, plan_tile

# What weights that were trained without get: a tile planned for the grid, and scales that the fastest engine can have.
FASTEST = FPSAttention(tile=None, scale_format="pow2")
BEYOND = {  # what windows of at most one tile, and of two, leave apart on an axis
    "T": ("tiles never attend to those before or after", "what is later never reaches what is earlier"),
    "H": ("tiles never attend to those above or below", "what is below never reaches what is above"),
    "W": ("tiles never attend to those beside them", "what is to the right never reaches the left"),
}
SPARE_SLOTS = 0.03  # of all slots that another tile would save, from which on it is worth a word


@dataclass(frozen=True)
class Choice:
    """taken: schedule, tile, scales and engine. faster: options in their place, each with what stands in its way.
    cuts: what `describe_cuts` says.
    """

    taken: str
    faster: tuple[str, ...]
    cuts: str | None = None

    def __str__(self) -> str:
        faster = f"; faster would be {' and '.join(self.faster)}" if self.faster else ""
        return self.taken + faster + (f"; {self.cuts}" if self.cuts else "")


def describe_choice(
    attention: FPSAttention, grid: Triple, device: torch.device, dtype: torch.dtype, head_dim: int
) -> Choice:
    """grid: tokens on (T, H, W). dtype: of q, k and v. Raises ValueError where no engine or no tile can be had."""
    planned = attention.tile is None and not attention.is_dense
    tile = attention.tile or tile_for(grid, attention.block, attention.is_dense)
    dtype = FLOAT8 if attention.carrier == "float8" else dtype
    key = attention.graph_key
    call = Call(device, dtype, head_dim, attention.block, key.has_score_mod)
    engine = choose_engine(attention.engine, device, dtype, head_dim, attention.block, key.has_score_mod)
    scales = f"{attention.scale_format} scales" if attention.quantizes else "nothing quantised"
    schedule = preset_of(attention.step_schedule) or "of its own"
    taken = f"schedule {schedule}, tile {tile}{' planned for the grid' if planned else ''}, {scales}, engine {engine}"
    on_gpu = device.type == "cuda"
    faster = (_faster_tile(attention, grid), _faster_engine(call) if engine != "flash" else None) if on_gpu else ()
    tiles = TileLayout(grid, tile, attention.block).tiles
    return Choice(
        f"FPS attention on {grid} tokens: {taken}", tuple(filter(None, faster)), describe_cuts(attention, tiles)
    )


def describe_cuts(attention: FPSAttention, tiles: Triple) -> str | None:
    """Axes of several tiles on which all windows, of any regime and layer, end at the query's own tile, or reach one
    tile to one side: an even window has one tile more before the query than behind it. The common schedule counts too
    where every layer has its own.
    """
    windows = [regime.window_in_tiles(tiles) for regime in attention.regimes]
    widest = (max(extents) for extents in zip(*windows, strict=True))
    cuts = [
        f"no window on {axis}, of {n} tiles, is wider than {most}: {BEYOND[axis][most - 1]}"
        for axis, n, most in zip("THW", tiles, widest, strict=True)
        if most < n and most < 3
    ]
    return "; ".join(cuts) or None


def _faster_tile(attention: FPSAttention, grid: Triple) -> str | None:
    """Another tile, where the attention's own leaves many slots empty."""
    if attention.tile is None or attention.is_dense:
        return None
    own = count_slots(grid, attention.tile, attention.block)
    try:
        best = plan_tile(grid, block=attention.block)
    except ValueError:
        return None
    saved = 1 - count_slots(grid, best, attention.block) / own
    return f"tile {best} ({saved:.0%} fewer slots)" if saved > SPARE_SLOTS else None


def _faster_engine(call: Call) -> str | None:
    """The flash engine, where a GPU could have it."""
    if call.dtype == FLOAT8 or torch.cuda.get_device_capability(call.device) < (9, 0):
        return None
    reason = obstacle("flash", call)
    return f"engine flash ({reason})" if reason else "engine flash"
