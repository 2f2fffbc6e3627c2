"""What a training step takes on many GPUs: arithmetic from operations, bytes and one GPU's measured pace."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch

from eval.bench.sizes import RESOLUTIONS, TEXT_TOKENS, TILES, Level, call_at, levels_of
from fps_flex import FPSAttention, TileLayout
from fps_flex.tiles import Triple
from fps_flex.wan import WAN_1_3B, WAN_14B, WanConfig
from fps_flex.wan.flops import forward_flops, training_flops
from fps_flex.wan.sequence import Call
from fps_flex.wan.traffic import ulysses_traffic
from fps_flex.wan.weights import build_empty

RESULTS = Path(__file__).parents[1] / "results"
SHARES = (0.2, 0.6, 0.2)  # of the regimes, as training draws noise levels
STATE = 20  # bytes a parameter in fp32: weight, gradient, two momenta, average
MOVED = 36  # bytes a parameter that an optimizer step reads and writes


@dataclass(frozen=True)
class Machine:
    """An H100 in a host of eight, a network card each: assumed, not measured.

    peak: operations a second in bf16. memory, links, network: bytes a second of its memory, between GPUs of a host, and
    of a card. hop: seconds from a GPU to the next, at least.
    """

    peak: float = 989e12
    memory: float = 2.5e12
    links: float = 350e9
    network: float = 40e9
    host: int = 8
    hop: float = 5e-6

    def rate(self, gpus: int) -> float:
        """Of a ring over all GPUs, through all cards of a host at once."""
        return self.links if gpus <= self.host else min(self.links, self.host * self.network)


@dataclass(frozen=True)
class Plan:
    """What is trained. record, schedule: of docs/results, in which a step of one GPU was measured. residual: bytes."""

    name: str
    size: str
    config: WanConfig
    grid: Triple
    sequence: int
    residual: int
    record: str
    schedule: str = "fps, pow2 scales"

    @cached_property
    def attention(self) -> FPSAttention:
        return FPSAttention("fps", tile=TILES[self.size])

    @cached_property
    def layout(self) -> TileLayout:
        return self.attention.plan(self.grid, torch.zeros(1)).layout

    @cached_property
    def levels(self) -> list[Level]:
        return levels_of(self.attention, self.grid)

    @cached_property
    def parameters(self) -> tuple[int, int]:
        """Of all, and of a block."""
        model = build_empty(self.config, self.attention)
        return tuple(sum(x.numel() for x in part.parameters()) for part in (model, model.blocks[0]))

    def operations(self) -> list[tuple[float, float]]:
        """Of a step on a clip in each regime: all that it needs, and all that is done, with blocks recomputed."""
        passes = [forward_flops(self.config, prod(self.grid), TEXT_TOKENS, level.density) for level in self.levels]
        return [(training_flops(forward), training_flops(forward) + forward.total) for forward in passes]

    def pace(self, machine: Machine) -> float:
        """The share of its peak that one H100 computed at, of what was done."""
        (row,) = (x for x in read_rows(self.record) if _is_mix(x, self.schedule))
        frozen = row["lora"] is not None
        forward = forward_flops(self.config, row["tokens"], TEXT_TOKENS, row["density"])
        return (training_flops(forward, frozen) + forward.total) / row["step_seconds"] / machine.peak


def read_rows(record: str) -> list[dict[str, Any]]:
    """Of a file of docs/results."""
    rows: list[dict[str, Any]] = json.loads((RESULTS / record).read_text())["rows"]
    return rows


def _is_mix(row: dict[str, object], schedule: str) -> bool:
    return row["schedule"] == schedule and row.get("regime") == "mix" and row.get("linears") == "bf16"


PLANS = (
    Plan("1.3B, 480p", "1.3B", WAN_1_3B, RESOLUTIONS["480p"], 1, 4, "train-1.3b-480p-linears-h100.json"),
    Plan("14B, 720p", "14B", WAN_14B, RESOLUTIONS["720p"], 4, 2, "train-14b-480p-lora-bf16-h100.json"),
)


@dataclass(frozen=True)
class Step:
    """Seconds of a step, of one clip to each group of GPUs that share it, if nothing waited for anything else."""

    compute: float
    weights: float
    attention: float
    optimizer: float

    @property
    def best(self) -> float:
        """Where weights travel while others are computed with."""
        return max(self.compute, self.weights) + self.attention + self.optimizer

    @property
    def worst(self) -> float:
        return self.compute + self.weights + self.attention + self.optimizer


def step_of(plan: Plan, gpus: int, shard: bool = True, machine: Machine = Machine()) -> Step:  # noqa: B008 - it can't change
    """FSDP2 gathers all weights for the forward and again for the backward, and sums the gradients: three rings.

    DDP, without `shard`, sums the gradients for all: two. A step ends with the slowest of its clips, whose regimes
    differ.
    """
    total, _ = plan.parameters
    ring = 4 * total * (gpus - 1) / gpus / machine.rate(gpus) + (plan.config.layers + 1) * (gpus - 1) * machine.hop
    return Step(
        slowest([done for _, done in plan.operations()], gpus // plan.sequence)
        / (plan.sequence * machine.peak * plan.pace(machine)),
        (3 if shard else 2) * ring,
        attention_bytes(plan) / machine.links,
        MOVED * total / (gpus if shard else 1) / machine.memory,
    )


def beside_one(plan: Plan, seconds: float, gpus: int, shard: bool = True, machine: Machine = Machine()) -> Step:  # noqa: B008
    """The same from one GPU's own seconds a clip, where all clips of a step have the same noise level."""
    step = step_of(plan, gpus, shard, machine)
    of_one = MOVED * plan.parameters[0] / machine.memory  # the optimizer's, within its seconds
    return replace(step, compute=(seconds - of_one) / plan.sequence)


def slowest(values: list[float], draws: int) -> float:
    """The expected largest of so many draws of a regime's value."""
    below, expected = 0.0, 0.0
    for value, share in sorted(zip(values, SHARES, strict=True)):
        expected += value * ((below + share) ** draws - below**draws)
        below += share
    return expected


def attention_bytes(plan: Plan) -> float:
    """That a GPU gets from those that share its clip, by Ulysses, in all layers; blocks are computed twice over."""
    if plan.sequence == 1:
        return 0.0
    traffic = ulysses_traffic(call_of(plan, plan.levels[0]), plan.sequence)
    return plan.config.layers * (max(traffic.forward) + traffic.busiest(trains=True))


def mfu(plan: Plan, seconds: float, machine: Machine = Machine()) -> float:  # noqa: B008
    """Of the operations that a step needs, those recomputed left out."""
    needed = sum(share * needs for share, (needs, _) in zip(SHARES, plan.operations(), strict=True))
    return needed / plan.sequence / (seconds * machine.peak)


def memory_gb(plan: Plan, gpus: int, sequence: int) -> tuple[float, float, float, float]:
    """Of a GPU: its share of all state, block inputs kept for the backward, what is gathered, a block's own work."""
    total, block = plan.parameters
    kept = plan.layout.slots * plan.config.dim * plan.residual * plan.config.layers / sequence
    gathered = 4 * (3 * block + total - plan.config.layers * block) if gpus > 1 else 0
    return tuple(x / 1e9 for x in (STATE * total / gpus, kept, gathered, _work_bytes(plan) / sequence))


def _work_bytes(plan: Plan) -> float:
    """What a measured step of one GPU took beside weights, state and block inputs, which grows with a clip's slots."""
    (row,) = (x for x in read_rows(plan.record) if _is_mix(x, plan.schedule))
    total, _ = plan.parameters
    adapter = 0 if row["lora"] is None else row["lora"] * plan.config.layers * _adapter_width(plan.config)
    state = STATE * total if row["lora"] is None else 2 * total + STATE * adapter
    slots = plan.attention.plan(RESOLUTIONS["480p"], torch.zeros(1)).layout.slots
    kept = slots * plan.config.dim * plan.residual * plan.config.layers
    return (1e9 * row["peak_gb"] - state - kept) * plan.layout.slots / slots


def _adapter_width(config: WanConfig) -> int:
    """In and out of the ten layers of a block: q, k, v, o twice, and the feed-forward network's two."""
    return 8 * 2 * config.dim + 2 * (config.dim + config.ffn_dim)


def call_of(plan: Plan, level: Level) -> Call:
    return call_at(plan.attention, plan.grid, level.sigma, plan.config, torch.bfloat16)
