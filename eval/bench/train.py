"""Training steps, as train.fit takes them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, Dataset

from fps_flex import FPSAttention
from fps_flex.checks import as_whole, require
from fps_flex.quant import ScaleFormat
from fps_flex.wan import WanConfig
from fps_flex.wan.base import Base, check_base
from fps_flex.wan.codecs import Codec, TextEncoder
from fps_flex.wan.files import Spec
from fps_flex.wan.flow import spread_noise_levels
from fps_flex.wan.linears import Linears
from fps_flex.wan.lora import Lora
from fps_flex.wan.model import Residual
from fps_flex.wan.opened import Weights
from fps_flex.wan.weights import build_empty
from train.callbacks import AverageWeights
from train.common.work import find_device
from train.module import FlowModule, Objective
from train.optimizers import LEAST_EPS, OptimizerName

from ..timing import Row, check_some, compare, forget_peak, host_peak_gb, limit_memory, peak_gb, report, wait
from .sizes import GRIDS, RESOLUTIONS, TEXT_TOKENS, Level, Size, Triple, attention_of, latent_shape, levels_of, sized

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = (
    "schedule", "linears", "regime", "share", "density", "step_seconds", "tokens_per_second", "peak_gb", "speedup",
)  # fmt: skip
RECORDED = ("lora", "base", "optimizer", "offload", "average", "gpu_gb", "compiled")


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
        average: keep averaged weights too.
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
    average: bool = True
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

    def check(self, attentions: Sequence[FPSAttention], linears: Sequence[Linears] = ("bf16",)) -> None:
        """Raises ValueError for what can't be trained so on this machine."""
        for kind in linears:
            check_base(self.base, kind, self.lora is not None, find_device())
        if self.objective == "distill" and all(x.is_dense for x in attentions):
            raise ValueError("objective distill learns from dense attention, no other is measured: add schedule fps")


def train(
    schedules: tuple[str, ...] = ("sdpa", "dense", "fps"),
    scale_formats: tuple[ScaleFormat, ...] = ("fp32", "pow2"),
    linears: tuple[Linears, ...] = ("bf16",),
    out: Path | None = None,
    **options: Any,
) -> None:
    """Training as `train.fit` does it: Lightning, bf16 autocast, checkpointing, AdamW, averaged weights.

    All weights in fp32, unless `lora` or `base` say otherwise.

    Latents and text states are random, as if they had been encoded before. Each regime of a schedule is measured with
    the noise level held in it; their mix is weighted as training draws them. The first steps, which compile, don't
    count.

    Args:
        schedules: presets to compare, and sdpa, the stock dense attention; the first is the baseline.
        scale_formats: of the schedules that quantise, each measured.
        linears: what the blocks' linear layers compute in, each measured, with the baseline anew: bf16, fp8-ffn, fp8.
        out: JSON file to write.
        options: of `Training`.

    Raises ValueError for an unknown schedule, and for what can't be trained so here.
    """
    training = Training(**options)
    check_some(schedules=schedules, scale_formats=scale_formats, linears=linears)
    attentions = _attentions(training.size, schedules, scale_formats)
    training.check([*attentions.values()], linears)
    rows = (
        row
        for kind in linears
        for row in compare(row for name, x in attentions.items() for row in Case(name, x, training, kind).measure())
    )
    report(rows, out, COLUMNS)


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
    """One thing to measure. residual: None takes the size's default."""

    name: str
    attention: FPSAttention
    training: Training
    linears: Linears = "bf16"
    residual: Residual | None = None

    def measure(self) -> list[Row]:
        """A row for each regime, and where there are several one for their mix; where memory is full, one that says so.

        Raises ValueError for what can't be trained.
        """
        about = {"schedule": self.name, "linears": self.linears}
        limit_memory(self.training.gpu_gb)
        try:
            rows = [about | row for row in self._measure()]
        except torch.OutOfMemoryError as error:
            return [{**about, "peak_gb": "out of memory", "error": str(error).split(". ")[0]}]
        return rows if len(rows) == 1 else [*rows, _mix(rows)]

    def _measure(self) -> list[Row]:
        levels, tokens = levels_of(self.attention, self.training.grid), prod(self.training.grid)
        started = time.perf_counter()
        module = self._build()
        facts = self._describe(module) | {"build_seconds": time.perf_counter() - started, "tokens": tokens}
        clock = _Clock(levels, self.training)
        _fit(module, clock, _Latents(latent_shape(module.model.config, self.training.grid)), self.training.average)
        drawn = self.attention.step_schedule.regime_index(spread_noise_levels(100, module.shift)).tolist()
        facts["host_peak_gb"] = host_peak_gb()
        return [
            {
                "regime": level.regime,
                "share": drawn.count(level.index) / len(drawn),
                "density": level.density,
                "step_seconds": median(seconds),
                "all_step_seconds": seconds,
                "tokens_per_second": tokens / median(seconds),
                "peak_gb": peak,
                **facts,
            }
            for level, seconds, peak in zip(levels, clock.seconds, clock.peaks, strict=True)
        ]

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
        full = training.lora is None and training.base == "fp32" and training.objective == "flow"
        with device:
            module = _OnRandomWeights(
                config,
                self.attention,
                _Encoded(config.channels),
                _States(config.text_dim),
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
            )
            if full:
                torch.nn.init.normal_(module.model.head.head.weight, std=0.02)
        return module


class _OnRandomWeights(FlowModule):
    """In place of a checkpoint's, weights that are drawn as they are asked for."""

    @staticmethod
    def open_start(checkpoint: str | None, wan: WanConfig) -> Weights | None:
        if checkpoint is None:
            return None
        state = build_empty(wan, FPSAttention()).state_dict()
        specs = {name: Spec(tuple(tensor.shape), torch.bfloat16) for name, tensor in state.items()}
        return _RandomWeights(wan, specs, lambda name: 0.02 * torch.randn(specs[name].shape, dtype=torch.bfloat16))


class _RandomWeights(Weights):
    def fingerprint(self) -> str:
        return "random"


def _mix(rows: list[Row]) -> Row:
    """Of all regimes, each with the share that training draws of it."""
    density, seconds = (sum(row["share"] * row[name] for row in rows) for name in ("density", "step_seconds"))
    return {
        **{name: value for name, value in rows[0].items() if name != "all_step_seconds"},
        "regime": "mix",
        "share": sum(row["share"] for row in rows),
        "density": density,
        "step_seconds": seconds,
        "step_seconds_by_regime": {row["regime"]: row["step_seconds"] for row in rows},
        "tokens_per_second": rows[0]["tokens"] / seconds,
        "peak_gb": max(row["peak_gb"] for row in rows),
    }


def _fit(module: FlowModule, clock: _Clock, data: Dataset, average: bool) -> None:
    on_gpu = find_device().type == "cuda"
    trainer = L.Trainer(
        accelerator="cuda" if on_gpu else "cpu",
        devices=1,
        precision="bf16-mixed" if on_gpu else "32-true",
        max_steps=clock.steps,
        gradient_clip_val=1.0,
        callbacks=[*([AverageWeights(0.99)] if average else []), clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data))


class _Latents(Dataset):
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> dict[str, Any]:
        where = {"name": f"random {index}", "source": "drawn here", "index": index, "pass": 0}
        return {"video": torch.randn(self.shape), "prompt": "", **where}


@dataclass(frozen=True)
class _Encoded(Codec):
    """Stands in for a codec where latents are there already."""

    channels: int

    def latent_size(self, size: Triple) -> Triple:
        return size

    def encode(self, video: Tensor) -> Tensor:
        return video

    def decode(self, latents: Tensor) -> Tensor:
        return latents


@dataclass(frozen=True)
class _States(TextEncoder):
    """Random states in place of a text encoder's."""

    dim: int

    def __call__(self, prompts: list[str], device: torch.device) -> Tensor:
        return torch.randn(len(prompts), TEXT_TOKENS, self.dim, device=device)


class _Clock(Callback):
    """Holds each noise level for its steps; seconds of each step after the warm-up and peak memory, a level."""

    def __init__(self, levels: list[Level], training: Training) -> None:
        self.levels, self.warmup, self.each = levels, training.warmup, training.warmup + training.steps
        self.steps = self.each * len(levels)
        self.seconds: list[list[float]] = [[] for _ in levels]
        self.peaks: list[float] = [0.0 for _ in levels]

    def on_train_batch_start(self, trainer: L.Trainer, module: FlowModule, batch: Any, step: int) -> None:
        if step % self.each == 0:
            forget_peak()
        sigma = self.levels[step // self.each].sigma
        module.noise_levels = sigma, sigma
        wait()
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: FlowModule, outputs: Any, batch: Any, step: int) -> None:
        wait()
        if step % self.each >= self.warmup:
            self.seconds[step // self.each].append(time.perf_counter() - self._start)
        self.peaks[step // self.each] = peak_gb(module.device)
