"""FPSAttention: the one place where layout, mask, quantisation and FlexAttention meet. Start reading here.

The method in three functions over a TileLayout: the mask_mod (masks.py) keeps the key tiles in a query tile's window;
the quantiser (quant.py) puts Q, K and V on the e4m3 grid; the score_mod (mods.py) multiplies the scales back in.
A StepSchedule (schedule.py) turns the noise level into their strength.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from .engines import Engine, attend
from .masks import BlockMaskBank
from .mods import dequantize
from .quant import ScaleFormat, channel_scales, quantize, tile_groups, tile_scales
from .schedule import Regime, StepSchedule, preset
from .tiles import TileLayout, Triple, plan_tile

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

CARRIED = (torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class FPSAttention:
    """Self-attention over a video with tile-wise FP8, sliding windows of tiles and a step-aware strength.

    schedule: a preset's name (fps, sta, uniform, dense) or a StepSchedule.
    tile: tokens of a tile on (T, H, W); None asks `plan_tile` for the one with the fewest pads, and makes the whole
        grid one tile where the schedule is dense.
    block: slots of a kernel block, a multiple of 128 on a GPU; smaller ones suit small grids on a CPU.
    quantize, sparse: switch either half off (both: dense attention).
    scale_format: "fp32" scales, as in the paper, undone in the score_mod; or "pow2", powers of two that multiply into
        the carrier exactly, so that no score_mod is needed.
    carrier: the dtype that holds grid values: "input", the dtype of q (training), or "float8" (inference on a GPU;
        the kernel then also rounds P and its output to e4m3).
    engine: see engines.py.

    Raises ValueError for an unknown or contradictory option.
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
        if self.tile is not None:
            object.__setattr__(self, "tile", tuple(self.tile))
        for name, known in (("scale_format", ("fp32", "pow2")), ("carrier", ("input", "float8"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")
        regimes = self.step_schedule.regimes
        if self.carrier == "float8" and any(regime.granularity is None for regime in regimes):
            raise ValueError("the float8 carrier needs every regime of the schedule quantised: use carrier 'input'")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FPSAttention:
        """The inverse of `dataclasses.asdict`, as checkpoints keep it."""
        schedule = data["schedule"]
        if not isinstance(schedule, str):
            regimes = tuple(Regime(**regime) for regime in schedule["regimes"])
            schedule = StepSchedule(**{**schedule, "regimes": regimes})
        return cls(**{**data, "schedule": schedule})

    @cached_property
    def step_schedule(self) -> StepSchedule:
        """The schedule in force: the preset looked up, what is switched off taken out."""
        schedule = preset(self.schedule) if isinstance(self.schedule, str) else self.schedule
        schedule = schedule if self.quantize else schedule.without_quantization()
        return schedule if self.sparse else schedule.without_sparsity()

    def plan(self, grid: Triple, sigma: Float[Tensor, " b"]) -> Plan:
        """What all layers of one forward pass share. grid: tokens on (T, H, W). sigma: noise level of each sample.

        Builds block lists when it first meets a grid; then it only picks, and never waits for a GPU.
        Raises ValueError when the tile doesn't fit the grid or the block a GPU's kernel.
        """
        if sigma.is_cuda and self.engine != "eager" and self.block % 128:
            raise ValueError(f"block is {self.block}, a GPU's kernel needs a multiple of 128 (or use engine eager)")
        stages = _build_stages(self, tuple(grid), sigma.device)
        regime = self.step_schedule.regime(sigma)
        return Plan(stages.bank.layout, stages.bank.pick(regime), stages.groups[regime], stages.quantized[regime])

    def __call__(
        self, q: Float[Tensor, "b h s d"], k: Float[Tensor, "b h s d"], v: Float[Tensor, "b h s d"], plan: Plan
    ) -> Float[Tensor, "b h s d"]:
        """Attention over slots in tile order (paper, Algorithm 1).

        q, k after rotary embedding. Gradients pass the rounding straight through; scales are constants to them.
        Raises ValueError where q, k, v don't fit each other or the plan.
        """
        _check_inputs(q, k, v, plan)
        if not self.step_schedule.quantizes:
            return attend(q, k, v, plan.block_mask, engine=self.engine)

        q_codes, q_scale = self._quantize(q, tile_scales(q, plan.layout, plan.groups, self.scale_format), plan)
        k_codes, k_scale = self._quantize(k, tile_scales(k, plan.layout, plan.groups, self.scale_format), plan)
        v_codes, v_scale = self._quantize(v, channel_scales(v, plan.layout, self.scale_format), plan)

        if self.scale_format == "pow2" and self.carrier == "input":
            q, k, v = (
                codes * scale.to(codes.dtype)
                for codes, scale in ((q_codes, q_scale), (k_codes, k_scale), (v_codes, v_scale))
            )
            return attend(q, k, v, plan.block_mask, engine=self.engine)

        score_mod = dequantize(q_scale.squeeze(-1), k_scale.squeeze(-1))
        out = attend(q_codes, k_codes, v_codes, plan.block_mask, score_mod, self.engine)
        out = out.to(q.dtype)  # float8 does not multiply; every e4m3 value is exact in q's dtype
        return (out * v_scale).to(q.dtype)

    def _quantize(
        self, x: Float[Tensor, "b h s d"], scale: Float[Tensor, "b h ..."], plan: Plan
    ) -> tuple[Float[Tensor, "b h s d"], Float[Tensor, "b h ..."]]:
        """Codes and scales; samples in an unquantised regime keep their values, with scales of 1."""
        codes = quantize(x, scale, torch.float8_e4m3fn if self.carrier == "float8" else x.dtype)
        if all(regime.granularity is not None for regime in self.step_schedule.regimes):
            return codes, scale
        quantized = plan.quantized[:, None, None, None]
        return torch.where(quantized, codes, x), torch.where(quantized, scale, 1.0)


@dataclass(frozen=True)
class Plan:
    """What all layers of one forward pass share.

    layout: orders tokens into slots. block_mask: of each sample's windows. groups: the tiles that share a scale.
    quantized: whether the sample is quantised at all.
    """

    layout: TileLayout
    block_mask: BlockMask
    groups: Int[Tensor, "b tiles"]
    quantized: Bool[Tensor, " b"]


@dataclass(frozen=True)
class _Stages:
    """A row for each regime of a schedule, on one grid."""

    bank: BlockMaskBank
    groups: Int[Tensor, "r tiles"]
    quantized: Bool[Tensor, " r"]


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept here may meet a backward pass later
def _build_stages(attention: FPSAttention, grid: Triple, device: torch.device) -> _Stages:
    schedule = attention.step_schedule
    tile = attention.tile or (grid if schedule.is_dense else plan_tile(grid, block=attention.block))
    layout = TileLayout(grid, tile, attention.block, device).build()
    granularities = [regime.granularity for regime in schedule.regimes]
    return _Stages(
        BlockMaskBank.build(layout, schedule.windows(layout.tiles)),
        torch.stack([tile_groups(layout, granularity or 1) for granularity in granularities]),
        torch.tensor([granularity is not None for granularity in granularities], device=device),
    )


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> None:
    shapes = [tuple(x.shape) for x in (q, k, v)]
    if q.ndim != 4 or len(set(shapes)) != 1:
        raise ValueError(f"q, k, v have shapes {', '.join(map(str, shapes))}, expected the same [B, H, S, D]")
    if q.shape[2] != plan.layout.slots or q.shape[0] != len(plan.quantized):
        raise ValueError(
            f"q, k, v have shape {shapes[0]}, expected B = {len(plan.quantized)} and S = {plan.layout.slots} slots "
            f"for the plan's grid {plan.layout.grid}: order tokens with plan.layout.order"
        )
    dtypes = [x.dtype for x in (q, k, v)]
    if len(set(dtypes)) != 1 or q.dtype not in CARRIED:
        raise ValueError(
            f"q, k, v have dtypes {', '.join(map(str, dtypes))}, expected the same one of bfloat16, float32, float64"
        )
