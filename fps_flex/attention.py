"""FPSAttention: the one place where layout, mask, quantisation and FlexAttention meet. Start reading here.

The method in three functions over a TileLayout: the mask_mod (masks.py) keeps the key tiles in a query tile's window;
the quantiser (quant.py) makes FP8 codes of Q, K and V; the score_mod (score_mods.py) multiplies the scales back in.
A StepSchedule (schedule.py) turns the noise level into their strength.

Words: tokens are the patches of a video, in raster order; a tile is a box of them; slots are their places in tile
order, tile after tile, where pads fill a tile's last block (tiles.py). A window says how many tiles a query tile sees
on each axis, a granularity how many tiles share a scale; both together are a regime, which the noise level picks
(schedule.py): sigma, from 1 (pure noise) to 0 (the video). Codes are e4m3 numbers, held in the carrier's dtype; a
scale is the amax (largest magnitude) of the values that share it over 448, e4m3's largest number.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from . import algorithm
from .algorithm import GraphKey, Meaning, Plan
from .checks import as_bool, as_fields, as_instance, as_triple, as_whole, one_of, show
from .engines import FLOAT8, Chosen, Engine, check_engine, choose_engine
from .masks import BlockLists, as_windows, block_lists, check_blocks, pad_mask_mod, window_mask_mod
from .quant import ScaleFormat, tile_groups
from .schedule import PRESETS, StepSchedule, preset
from .tiles import TileLayout, Triple, plan_tile

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

MEANING = tuple(field.name for field in fields(Meaning))
CARRIED = (torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class FPSAttention:
    """Self-attention over a video with tile-wise FP8, sliding windows of tiles and a step-aware strength.

    Args:
        schedule: a StepSchedule, or a preset's name (fps, sta, uniform, dense), in whose place its numbers are kept.
        tile: tokens of a tile on (T, H, W); None asks `plan_tile` for the one with the fewest pads, and makes the whole
            grid one tile where the schedule is dense.
        block: slots of a kernel block, a multiple of 128 on a GPU; smaller ones suit small grids on a CPU.
        quantize: round Q, K and V to FP8 as the schedule says; without, none is (and without `sparse` too: dense
            attention).
        sparse: keep to the schedule's windows; without, every token sees all.
        scale_format: "fp32" scales, as in the paper, undone in the score_mod; or "pow2", powers of two that multiply
            into the carrier exactly, so that no score_mod is needed.
        carrier: the dtype that holds codes: "input", the dtype of q (training), or "float8" (inference on a GPU;
            the kernel then also rounds P and its output to e4m3).
        engine: what computes it: eager (any device; small grids), triton, flash, or auto, which takes the fastest that
            can (engines.py).

    Raises ValueError for an unknown or contradictory option, and for one of another type.
    """

    schedule: str | StepSchedule = "fps"
    tile: Triple | None = (6, 8, 8)
    block: int = 128
    quantize: bool = True
    sparse: bool = True
    scale_format: ScaleFormat = "fp32"
    carrier: Literal["input", "float8"] = "input"
    engine: Engine = "auto"

    def __post_init__(self) -> None:
        checked = {
            "schedule": as_schedule(self.schedule),
            "tile": None if self.tile is None else as_triple("tile", self.tile),
            "block": as_whole("block", self.block),
            "quantize": as_bool("quantize", self.quantize),
            "sparse": as_bool("sparse", self.sparse),
            "scale_format": one_of("scale_format", self.scale_format, ("fp32", "pow2")),
            "carrier": one_of("carrier", self.carrier, ("input", "float8")),
            "engine": check_engine(self.engine),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.graph_key.float8 and self.graph_key.some_unquantized:
            raise ValueError("the float8 carrier needs every regime of the schedule quantised: use carrier 'input'")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FPSAttention:
        """The inverse of `dataclasses.asdict`, as checkpoints keep it.

        The schedule may also be a preset's name. Raises ValueError for a missing or unknown field, and for values that
        aren't such an attention's.
        """
        data = as_fields("attention", data, _names(cls))
        return cls(**{**data, "schedule": _schedule_from(data["schedule"])})

    @cached_property
    def step_schedule(self) -> StepSchedule:
        """The schedule in force: what is switched off taken out."""
        schedule = cast(StepSchedule, self.schedule)  # which __post_init__ has made of a name
        schedule = schedule if self.quantize else schedule.without_quantization()
        return schedule if self.sparse else schedule.without_sparsity()

    def plan(self, grid: Triple, sigma: Float[Tensor, " b"]) -> Plan:
        """What all layers of one forward pass share. grid: tokens on (T, H, W). sigma: noise level of each sample.

        Builds block lists when it first meets a grid; then it only picks, and never waits for a GPU.
        Raises ValueError when the tile doesn't fit the grid, the block a GPU's kernel or the lists memory, and as
        `check_sigma`.
        """
        grid = as_triple("grid", grid)
        regime_index = self.step_schedule.regime_index(sigma)
        if sigma.is_cuda and self.engine != "eager" and self.block % 128:
            raise ValueError(f"block is {self.block}, a GPU's kernel needs a multiple of 128 (or use engine eager)")
        tables = _build_tables(self, grid, sigma.device)
        layout, lists = tables.layout, tables.lists.pick(regime_index)
        return Plan(
            layout,
            lists.block_mask(layout, window_mask_mod(layout, tables.windows[regime_index])),
            lists.block_mask(layout, pad_mask_mod(layout)),
            tables.groups[regime_index],
            tables.quantized[regime_index],
            self.meaning,
        )

    def __call__(
        self, q: Float[Tensor, "b h s d"], k: Float[Tensor, "b h s d"], v: Float[Tensor, "b h s d"], plan: Plan
    ) -> Float[Tensor, "b h s d"]:
        """Attention over slots in tile order (paper, Algorithm 1).

        q, k after rotary embedding. Gradients pass the rounding straight through; scales are constants to them.
        Raises ValueError where q, k, v don't fit each other or the plan, where an attention that differs in more than
        its engine made the plan, and where no engine can run this.
        """
        self._check_plan(plan)
        _check_inputs(q, k, v, plan, plan.layout.slots, "slots", ": order tokens with plan.layout.order")
        attend = algorithm.attend_slots if self.runs_inline(q) else algorithm.compiled_attend_slots
        return attend(self.graph_key, self.engine_for(q), q, k, v, plan)

    def over_tokens(
        self, q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n d"], plan: Plan
    ) -> Float[Tensor, "b h n d"]:
        """The same over tokens in raster order, for models whose blocks work in it.

        The output lies in memory as [B, N, H, D], ready for the layer that takes all heads. Raises as a call does.
        """
        self._check_plan(plan)
        _check_inputs(q, k, v, plan, plan.layout.tokens, "tokens")
        attend = algorithm.attend_tokens if self.runs_inline(q) else algorithm.compiled_attend_tokens
        return attend(self.graph_key, self.engine_for(q), q, k, v, plan)

    def _check_plan(self, plan: Plan) -> None:
        as_instance("plan", plan, Plan)
        # identity first: a compiled model guards it alone, where comparing values compiles anew for each schedule
        if plan.meaning is self.meaning or plan.meaning == self.meaning:
            return
        other = [name for name in MEANING if getattr(plan.meaning, name) != getattr(self.meaning, name)]
        raise ValueError(
            f"plan was made by an attention of another {', '.join(other)}, expected one of this attention's: "
            "plan with the attention that runs it"
        )

    def runs_inline(self, q: Tensor) -> bool:
        """On a GPU everything around the kernel is compiled with it; on a CPU the kernel alone can be (compile.py)."""
        return torch.compiler.is_compiling() or self.engine == "eager" or not q.is_cuda

    def engine_for(self, q: Float[Tensor, "b h s d"]) -> Chosen:
        """The engine that a call with such tensors gets. Raises ValueError where none can run it."""
        if not isinstance(q, Tensor) or q.ndim != 4:
            raise ValueError(f"q is {show(q)}, expected a tensor [B, H, S, D]")
        dtype = FLOAT8 if self.carrier == "float8" else q.dtype
        return choose_engine(self.engine, q.device, dtype, q.shape[-1], self.block, self.graph_key.has_score_mod)

    @cached_property
    def meaning(self) -> Meaning:
        return Meaning(self.step_schedule, self.tile, self.block, self.scale_format, self.carrier == "float8")

    @cached_property
    def graph_key(self) -> GraphKey:
        schedule = self.step_schedule
        granularities = [regime.granularity for regime in schedule.regimes]
        return GraphKey(
            scale_format=self.scale_format,
            float8=self.carrier == "float8",
            quantizes=schedule.quantizes,
            some_unquantized=None in granularities,
            one_scale_per_head=all(granularity == "head" for granularity in granularities),
        )


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def _schedule_from(data: object) -> str | StepSchedule:
    return data if isinstance(data, str) else StepSchedule.from_dict(data)


def as_schedule(schedule: object) -> StepSchedule:
    """A StepSchedule itself, or a preset's numbers. Raises ValueError for anything else."""
    if isinstance(schedule, StepSchedule):
        return schedule
    if not isinstance(schedule, str):
        raise ValueError(f"schedule is {show(schedule)}, expected a StepSchedule or one of {', '.join(PRESETS)}")
    return preset(schedule)


@dataclass(frozen=True, eq=False)
class RegimeTables:
    """A row for each regime of a schedule, on one grid, from which every batch picks its samples' rows."""

    layout: TileLayout
    windows: Int[Tensor, "r 3"]
    lists: BlockLists
    groups: Int[Tensor, "r tiles"]
    quantized: Bool[Tensor, " r"]


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept here may meet a backward pass later
def _build_tables(attention: FPSAttention, grid: Triple, device: torch.device) -> RegimeTables:
    schedule = attention.step_schedule
    tile = attention.tile or (grid if schedule.is_dense else plan_tile(grid, block=attention.block))
    layout = TileLayout(grid, tile, attention.block, device)
    check_blocks(layout)
    layout.build()
    windows = as_windows(schedule.windows(layout.tiles), layout)
    granularities = [regime.granularity for regime in schedule.regimes]
    return RegimeTables(
        layout,
        windows,
        block_lists(layout, windows),
        torch.stack([tile_groups(layout, granularity or 1) for granularity in granularities]),
        torch.tensor([granularity is not None for granularity in granularities], device=device),
    )


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, plan: Plan, length: int, unit: str, hint: str = "") -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} is {show(x)}, expected a tensor [B, H, S, D]")
    shapes = [tuple(x.shape) for x in (q, k, v)]
    if q.ndim != 4 or len(set(shapes)) != 1 or 0 in shapes[0]:
        raise ValueError(f"q, k, v have shapes {', '.join(map(str, shapes))}, expected the same [B, H, S, D]")
    if q.shape[2] != length or q.shape[0] != len(plan.quantized):
        raise ValueError(
            f"q, k, v have shape {shapes[0]}, expected B = {len(plan.quantized)} and S = {length} {unit} "
            f"for the plan's grid {plan.layout.grid}{hint}"
        )
    dtypes = [x.dtype for x in (q, k, v)]
    if len(set(dtypes)) != 1 or q.dtype not in CARRIED:
        raise ValueError(
            f"q, k, v have dtypes {', '.join(map(str, dtypes))}, expected the same one of bfloat16, float32, float64"
        )
    devices = [x.device for x in (q, k, v)]
    if set(devices) != {plan.quantized.device}:
        raise ValueError(
            f"q, k, v are on {', '.join(map(str, devices))}, expected the plan's {plan.quantized.device}: "
            "plan with a sigma that is on their device"
        )
