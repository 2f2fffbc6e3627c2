"""FPSAttention: the one place where layout, mask, quantisation and FlexAttention meet. Start reading here.

The method in three functions over a TileLayout: the mask_mod (masks.py) keeps the key tiles in a query tile's window;
the quantiser (quant.py) makes FP8 codes of Q, K and V; the score_mod (score_mods.py) multiplies the scales back in.
A StepSchedule (schedule.py) turns the noise level into their strength; layers may have one of their own (layers.py).

Words: tokens are the patches of a video, in raster order; a tile is a box of them; slots are their places in tile
order, tile after tile, where pads fill a tile's last block (tiles.py). A window says how many tiles a query tile sees
on each axis, a granularity how many tiles share a scale; both together are a regime, which the noise level picks
(schedule.py): sigma, from 1 (pure noise) to 0 (the video). Codes are e4m3 numbers, or int8 of Q and K, held in the
carrier's dtype; a scale is the amax (largest magnitude) of the values that share it over the largest code, 448 or 127.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from . import algorithm
from .algorithm import GraphKey, Meaning, Plan
from .checks import as_bool, as_fields, as_instance, as_triple, as_whole, one_of, show
from .engines import FLOAT8, Chosen, Engine, check_engine, choose_engine
from .layers import Layers, as_layers, as_schedule, check_layers, names_of, range_of, schedule_from
from .quant import CodeFormat, ScaleFormat
from .schedule import Regime, StepSchedule
from .smoothing import Rotation
from .tables import build_tables
from .tiles import Triple

if TYPE_CHECKING:
    from jaxtyping import Float, Int

MEANING = tuple(names_of(Meaning))
EARLIER = {"smooth_k": False, "codes": "e4m3", "rotate": None, "layers": ()}
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
        smooth_k: take each head's mean over all tokens off K before it is rounded: no score changes (smoothing.py),
            and a channel that is large everywhere takes no other's precision.
        codes: of Q and K: "e4m3", as in the paper, or "int8", which round finer what has no outliers. V's are e4m3.
        rotate: "hadamard" multiplies Q and K by one before they are rounded, which spreads outliers over the channels
            and changes no score; heads are then of a power of two.
        layers: a model's layers that follow another schedule: {"0-1": "dense", "28-29": Regime(...)}, from 0 and
            inclusive; a preset's name, a Regime or a StepSchedule each. The others follow `schedule`.

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
    smooth_k: bool = True
    codes: CodeFormat = "e4m3"
    rotate: Rotation | None = None
    layers: dict[str, str | Regime | StepSchedule] | None = None

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
            "smooth_k": as_bool("smooth_k", self.smooth_k),
            "codes": one_of("codes", self.codes, ("e4m3", "int8")),
            "rotate": None if self.rotate is None else one_of("rotate", self.rotate, ("hadamard",)),
            "layers": as_layers(self.layers),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.graph_key.float8 and self.graph_key.some_unquantized:
            raise ValueError(
                "the float8 carrier needs every regime of the schedule, and of layers, quantised: use carrier 'input'"
            )
        if self.carrier == "float8" and self.codes == "int8":
            raise ValueError("codes is 'int8', of which the float8 carrier can't hold all: use carrier 'input'")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FPSAttention:
        """The inverse of `dataclasses.asdict`, as checkpoints keep it.

        The schedule may also be a preset's name. Raises ValueError for a missing or unknown field, and for values that
        aren't such an attention's.
        """
        data = as_fields("attention", with_earlier(data), names_of(cls))
        return cls(**{**data, "schedule": schedule_from(data["schedule"])})

    @cached_property
    def step_schedule(self) -> StepSchedule:
        """The schedule in force where no layer has its own: what is switched off taken out."""
        return self._in_force(cast(StepSchedule, self.schedule))  # which __post_init__ has made of a name

    def _in_force(self, schedule: StepSchedule) -> StepSchedule:
        schedule = schedule if self.quantize else schedule.without_quantization()
        return schedule if self.sparse else schedule.without_sparsity()

    @cached_property
    def layer_schedules(self) -> Layers:
        """Those of layers that have their own, in force."""
        return tuple((name, self._in_force(schedule)) for name, schedule in cast(Layers, self.layers))

    @cached_property
    def schedules(self) -> tuple[StepSchedule, ...]:
        """All that are in force, each once; the first is that of layers that have none of their own."""
        return tuple(dict.fromkeys([self.step_schedule, *(schedule for _, schedule in self.layer_schedules)]))

    @cached_property
    def regimes(self) -> tuple[Regime, ...]:
        """Those of all schedules, one after the other."""
        return tuple(regime for schedule in self.schedules for regime in schedule.regimes)

    def schedule_of(self, layer: int | None) -> StepSchedule:
        """The schedule in force in a layer. None: where no layer has its own."""
        own = [schedule for name, schedule in self.layer_schedules if layer is not None and layer in range_of(name)]
        return own[0] if own else self.step_schedule

    def regime_index(self, sigma: Float[Tensor, " b"], layer: int | None = None) -> Int[Tensor, " b"]:
        """The index among `regimes` of that in force at each noise level. Raises ValueError as `check_sigma`."""
        schedule = self.schedule_of(layer)
        before = self.schedules[: self.schedules.index(schedule)]
        return schedule.regime_index(sigma) + sum(len(other.regimes) for other in before)

    @property
    def quantizes(self) -> bool:
        return any(schedule.quantizes for schedule in self.schedules)

    @property
    def is_sparse(self) -> bool:
        return any(schedule.is_sparse for schedule in self.schedules)

    @property
    def is_dense(self) -> bool:
        """Whether every regime of every layer has full windows and no quantisation."""
        return not self.is_sparse and not self.quantizes

    def check_model(self, layers: int, head_dim: int) -> None:
        """Raises ValueError where a model of so many layers, of heads so wide, can't have this attention."""
        check_layers(cast(Layers, self.layers), layers)
        self._check_head_dim(head_dim)

    def _check_head_dim(self, head_dim: int) -> None:
        if self.rotate and head_dim & (head_dim - 1):
            raise ValueError(f"rotate is hadamard and heads are of {head_dim} channels, expected a power of two")

    def plan(self, grid: Triple, sigma: Float[Tensor, " b"]) -> Plan:
        """What all layers of one forward pass share. grid: tokens on (T, H, W). sigma: noise level of each sample.

        Builds block lists when it first meets a grid; then it only picks, and never waits for a GPU.
        Raises ValueError when the tile doesn't fit the grid, the block a GPU's kernel or the lists memory, and as
        `check_sigma`.
        """
        grid = as_triple("grid", grid)
        regime_index = self.regime_index(sigma)
        if sigma.is_cuda and self.engine != "eager" and self.block % 128:
            raise ValueError(f"block is {self.block}, a GPU's kernel needs a multiple of 128 (or use engine eager)")
        tables = build_tables(self.regimes, self.tile, self.block, grid, sigma.device)
        own = [range_of(name) for name, _ in self.layer_schedules]
        layers = tuple((x, tables.pick(self.regime_index(sigma, x.start), self.meaning)) for x in own)
        return replace(tables.pick(regime_index, self.meaning), layers=layers)

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
        self._check_head_dim(q.shape[-1])
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
        self._check_head_dim(q.shape[-1])
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
        return Meaning(
            self.step_schedule,
            self.layer_schedules,
            self.tile,
            self.block,
            self.scale_format,
            self.codes,
            self.smooth_k,
            self.rotate,
            self.carrier == "float8",
        )

    @cached_property
    def graph_key(self) -> GraphKey:
        granularities = [regime.granularity for regime in self.regimes]
        return GraphKey(
            scale_format=self.scale_format,
            codes=self.codes,
            smooth_k=self.smooth_k,
            rotate=self.rotate,
            float8=self.carrier == "float8",
            quantizes=self.quantizes,
            some_unquantized=None in granularities,
            one_scale_per_head=all(granularity == "head" for granularity in granularities),
        )


def with_earlier(data: Any) -> Any:
    """An attention's dict, with what files from before an option don't say of it: they were made without."""
    return {**EARLIER, **data} if isinstance(data, dict) else data


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
