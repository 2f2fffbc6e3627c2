"""Training steps, as train.fit takes them, on one GPU or several."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from statistics import median
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader

from fps_flex import FPSAttention
from fps_flex.checks import as_whole, require
from fps_flex.quant import ScaleFormat
from fps_flex.wan import WanConfig
from fps_flex.wan.base import Base, check_base
from fps_flex.wan.config import Residual
from fps_flex.wan.dense import DenseAttention
from fps_flex.wan.flow import spread_noise_levels
from fps_flex.wan.linears import Linears
from fps_flex.wan.lora import Lora
from train.building import Making
from train.callbacks import AverageWeights
from train.chance import WithChance
from train.common.work import find_device
from train.module import FlowModule, Objective
from train.optimizers import LEAST_EPS, OptimizerName, check_optimizer
from train.order import Pick
from train.parallel import launched_as
from train.sequences import Replicated
from train.sharding import Sharding

from ..timing import Row, check_some, compare, host_peak_gb, limit_memory, report
from .clock import Clock
from .processes import TRAFFIC, Exchanged, Processes, Way, check_exchanges, join, predict_step
from .sizes import GRIDS, RESOLUTIONS, Level, Size, Triple, attention_of, latent_shape, levels_of, sized, tell_of_a_cpu
from .stand_ins import Encoded, Latents, OnRandomWeights, States

COLUMNS = (
    "schedule", "linears", "regime", "share", "density", "step_seconds", "tokens_per_second", "peak_gb", "speedup",
)  # fmt: skip
TOGETHER = ("parallel", "clips", "exchanged_mb", "predicted_mb")  # of several processes
WEIGHED = ("density", "step_seconds", "exchanged_mb", "predicted_mb")
RECORDED = ("lora", "base", "optimizer", "offload", "offload_optimizer", "average", "shard", "gpu_gb", "compiled")


@dataclass(frozen=True)
class Training:
    """What is trained, and how many of its steps are measured.

    Args:
        size: of the model: 1.3B at 480p, 14B at 720p, 81 frames each, or tiny.
        layers: fewer blocks than the model has.
        steps: optimizer steps measured in each regime.
        warmup: optimizer steps before them.
        compiled: run blocks through torch.compile (on a GPU).
        resolution: 480p or 720p, in place of the size's own.
        lora: rank of the adapters that are trained, in place of all weights.
        base: dtype of the weights: fp32, bf16, or fp8 of a LoRA's frozen ones.
        objective: flow, or distill, from the dense model; what is dense itself is trained with flow.
        optimizer: adamw or adamw8bit.
        offload: what blocks are recomputed from waits in the host's memory.
        offload_optimizer: the optimizer's momenta wait in the host's memory.
        average: keep averaged weights too.
        shard: GPUs that share a clip share the weights too (FSDP2); without, each has all of them (DDP).
        gpu_gb: the most memory of the GPU that may be taken, to show what a smaller one would hold.

    Raises ValueError for numbers out of range.
    """

    size: Size = "1.3B"
    layers: int | None = None
    steps: int = 5
    warmup: int = 2
    compiled: bool = True
    resolution: Literal["480p", "720p"] | None = None
    lora: int | None = None
    base: Base = "fp32"
    objective: Objective = "flow"
    optimizer: OptimizerName = "adamw"
    offload: bool = False
    offload_optimizer: bool = False
    average: bool = True
    shard: bool = True
    gpu_gb: float | None = None

    def __post_init__(self) -> None:
        as_whole("steps", self.steps)
        as_whole("warmup", self.warmup, least=0)
        if self.lora is not None:
            as_whole("lora", self.lora)
        if self.gpu_gb is not None:
            require("gpu_gb", self.gpu_gb, above=0)

    @property
    def grid(self) -> Triple:
        return RESOLUTIONS[self.resolution] if self.resolution else GRIDS[self.size]

    @property
    def config(self) -> WanConfig:
        return sized(self.size, self.layers)

    def shares_out(self, way: Way) -> bool:
        """Whether GPUs share the weights out."""
        return self.shard and way != "one"

    def check(
        self,
        attentions: Sequence[FPSAttention],
        linears: Sequence[Linears] = ("bf16",),
        ways: Sequence[Way] = ("one",),
    ) -> None:
        """Raises ValueError for what can't be trained so on this machine."""
        for kind in linears:
            check_base(self.base, kind, self.lora is not None, find_device())
        if self.objective == "distill" and all(x.is_dense for x in attentions):
            raise ValueError("objective distill learns from dense attention, no other is measured: add schedule fps")
        if self.objective == "distill" and "halo" in ways:
            raise ValueError(
                "parallel is halo, and objective distill's teacher attends to a clip as one tile: leave halo out"
            )
        if "halo" in ways and any(isinstance(x, DenseAttention) for x in attentions):
            raise ValueError("parallel is halo, and schedule sdpa attends to a clip as one tile: leave either out")
        if "shard" in ways and not self.shard:
            raise ValueError("parallel is shard, and shard false: leave either out")
        sharded = any(self.shares_out(way) for way in ways)
        if sharded:
            Making(self.base, lora=Lora(self.lora, self.lora) if self.lora else None, sharded=True).check(self.config)
        check_optimizer(self.optimizer, LEAST_EPS, sharded, self.offload_optimizer)


def train(
    schedules: tuple[str, ...] = ("sdpa", "dense", "fps"),
    scale_formats: tuple[ScaleFormat, ...] = ("fp32", "pow2"),
    linears: tuple[Linears, ...] = ("bf16",),
    parallel: tuple[Way, ...] = ("one",),
    sequence: int | None = None,
    out: Path | None = None,
    **options: Any,
) -> None:
    """Training as `train.fit` does it: Lightning, bf16 autocast, checkpointing, AdamW, averaged weights.

    All weights in fp32, unless `lora` or `base` say otherwise.

    Latents and text states are random, as if they had been encoded before. Each regime of a schedule is measured with
    the noise level held in it; their mix is weighted as training draws them. The first steps, which compile, don't
    count.

    Under torchrun several GPUs are measured beside one in the same run. The speedup is by clips: a step of `shard`
    takes as many as there are GPUs. The bytes that attention brings a GPU in a step are counted in a step that isn't
    timed, beside those that fps_flex.wan.traffic predicts; of these and of memory the GPU with the most is told.

    Args:
        schedules: presets to compare, and sdpa, the stock dense attention; the first is the baseline.
        scale_formats: of the schedules that quantise, each measured.
        linears: what the blocks' linear layers compute in, each measured, with the baseline anew: bf16, fp8-ffn, fp8.
        parallel: one (a GPU, a clip), shard (FSDP2, a clip on each GPU), ulysses or halo (GPUs that share a clip);
            each measured, under torchrun.
        sequence: processes that share a clip with ulysses and halo; none takes all.
        out: JSON file to write.
        options: of `Training`.

    Raises ValueError for an unknown schedule, and for what can't be trained so here.
    """
    training = Training(**options)
    check_some(schedules=schedules, scale_formats=scale_formats, linears=linears, parallel=parallel)
    attentions = _attentions(training.size, schedules, scale_formats)
    training.check([*attentions.values()], linears, parallel)
    processes = join(parallel, sequence, "train")
    check_exchanges(parallel, attentions.values(), training.config, training.grid, processes)
    tell_of_a_cpu(training.size)
    rows = (
        row
        for kind in linears
        for row in compare(
            row
            for way in parallel
            for name, x in attentions.items()
            for row in Case(name, x, training, kind, way=way, processes=processes).measure()
        )
    )
    report(rows, out, COLUMNS if processes.count == 1 else (*TOGETHER[:2], *COLUMNS, *TOGETHER[2:]))


def _attentions(
    size: Size, schedules: tuple[str, ...], scale_formats: tuple[ScaleFormat, ...]
) -> dict[str, FPSAttention]:
    named: dict[str, FPSAttention] = {}
    for schedule in schedules:
        attention = attention_of(size, schedule)
        if attention.quantizes:
            named |= {f"{schedule}, {x} scales": replace(attention, scale_format=x) for x in scale_formats}
        else:
            named[schedule] = attention
    return named


@dataclass(frozen=True)
class Case:
    """One thing to measure. residual: None takes the size's default. way, processes: on which of them, and how."""

    name: str
    attention: FPSAttention
    training: Training
    linears: Linears = "bf16"
    residual: Residual | None = None
    way: Way = "one"
    processes: Processes = Processes()

    def measure(self) -> list[Row]:
        """A row for each regime, and where there are several one for their mix; where memory is full, one that says so.

        Raises ValueError for what can't be trained, and where the memory of one of several processes is full
        torch.OutOfMemoryError: the others wait for it.
        """
        return self.processes.first_alone(self._measured) if self.way == "one" else self._measured()

    def _measured(self) -> list[Row]:
        about = {"schedule": self.name, "linears": self.linears}
        limit_memory(self.training.gpu_gb)
        try:
            rows = [about | row for row in self._measure()]
        except torch.OutOfMemoryError as error:
            if self.way != "one":
                raise
            return [{**about, "peak_gb": "out of memory", "error": str(error).split(". ")[0]}]
        return rows if len(rows) == 1 else [*rows, _mix(rows)]

    def _measure(self) -> list[Row]:
        levels, tokens = levels_of(self.attention, self.training.grid), prod(self.training.grid)
        started = time.perf_counter()
        module = self._build()
        facts = self._describe(module) | {"build_seconds": time.perf_counter() - started, "tokens": tokens}
        clock = Clock(levels, self.training.warmup, self.training.steps, exchanges=self.way in TRAFFIC)
        self._fit(module, clock, Latents(latent_shape(module.model.config, self.training.grid)))
        drawn = self.attention.step_schedule.regime_index(spread_noise_levels(100, module.shift)).tolist()
        facts["host_peak_gb"] = host_peak_gb()
        return [
            self._together(module, level, exchanged, peak)
            | {
                "regime": level.regime,
                "share": drawn.count(level.index) / len(drawn),
                "density": level.density,
                "step_seconds": median(seconds),
                "all_step_seconds": seconds,
                "tokens_per_second": self.processes.clips(self.way) * tokens / median(seconds),
                **facts,
            }
            for level, seconds, peak, exchanged in zip(levels, clock.seconds, clock.peaks, clock.exchanged, strict=True)
        ]

    def _together(self, module: FlowModule, level: Level, exchanged: Exchanged, peak: float) -> Row:
        """What the processes hold and send; of each, and of the one that has most of it."""
        if self.way == "one":
            return {"parallel": "one", "clips": 1, "peak_gb": peak}
        processes, values = self.processes, {"peak_gb": peak}
        if self.way in TRAFFIC and exchanged.bytes is not None:
            how = (self.training.grid, level.sigma, self.way, processes)
            values["exchanged_mb"] = exchanged.bytes / 1e6
            values["predicted_mb"] = predict_step(module.model, module.teachers, *how) / 1e6
        return {
            "parallel": processes.name(self.way),
            "clips": processes.clips(self.way),
            **processes.most(**values),
        }

    def _describe(self, module: FlowModule) -> dict[str, Any]:
        return {
            "residual": module.model.residual,
            "model": self.training.size,
            "layers": module.model.config.layers,
            "objective": module.objective,
            **{name: getattr(self.training, name) for name in RECORDED},
        }

    def _build(self) -> FlowModule:
        device, training, config = find_device(), self.training, self.training.config
        sharded = training.shares_out(self.way)
        full = training.lora is None and training.base == "fp32" and training.objective == "flow" and not sharded
        with nullcontext() if sharded else device:
            module = OnRandomWeights(
                config,
                self.attention,
                Encoded(config.channels),
                States(config.text_dim),
                checkpoint=None if full else "random weights",
                checkpointing=True,
                compiled=training.compiled and device.type == "cuda",
                residual=self.residual,
                lora=Lora(training.lora, training.lora) if training.lora else None,
                base=training.base,
                linears=self.linears,
                objective="flow" if self.attention.is_dense else training.objective,
                optimizer=training.optimizer,
                eps=1e-15 if training.optimizer == "adamw" else LEAST_EPS,
                offload_activations=training.offload,
                offload_optimizer=training.offload_optimizer,
                sharded=sharded,
            )
            if full:
                torch.nn.init.normal_(module.model.head.head.weight, std=0.02)
        return module

    def _fit(self, module: FlowModule, clock: Clock, data: Latents) -> None:
        on_gpu = find_device().type == "cuda"
        if self.way == "one":
            module.train_loss.distributed_available_fn = lambda: False  # the other processes don't train
            where: dict[str, Any] = {"devices": 1, "plugins": LightningEnvironment()}
        else:
            devices, nodes = launched_as("auto", 1)
            exchange = self.way if self.way in TRAFFIC else "auto"
            kind = Sharding if self.training.shares_out(self.way) else Replicated
            strategy = kind(self.processes.sequence if self.way in TRAFFIC else 1, exchange)
            where = {"devices": devices, "num_nodes": nodes, "strategy": strategy}
        trainer = L.Trainer(
            accelerator="cuda" if on_gpu else "cpu",
            precision="bf16-mixed" if on_gpu else "32-true",
            max_steps=clock.steps,
            gradient_clip_val=1.0,
            callbacks=[AverageWeights(0.99 if self.training.average else None), clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **where,
        )
        picks = [Pick(i, 0) for i in range(clock.steps * self.processes.count)]  # dealt out to all
        trainer.fit(module, DataLoader(WithChance(data, module.seed, data.shape), sampler=picks))


def _mix(rows: list[Row]) -> Row:
    """Of all regimes, each with the share that training draws of it."""
    weighed = [name for name in WEIGHED if name in rows[0]]
    means = {name: sum(row["share"] * row[name] for row in rows) for name in weighed}
    seconds = means["step_seconds"]
    return {
        **{name: value for name, value in rows[0].items() if not name.startswith("all_")},
        **means,
        "regime": "mix",
        "share": sum(row["share"] for row in rows),
        "step_seconds_by_regime": {row["regime"]: row["step_seconds"] for row in rows},
        "tokens_per_second": rows[0]["clips"] * rows[0]["tokens"] / seconds,
        "peak_gb": max(row["peak_gb"] for row in rows),
    }
