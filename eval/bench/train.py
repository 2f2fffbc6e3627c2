"""Training steps, as train.fit takes them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from statistics import median
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fps_flex import FPSAttention
from fps_flex.checks import as_whole
from fps_flex.quant import ScaleFormat
from fps_flex.wan import WanConfig
from fps_flex.wan.base import Base, check_base
from fps_flex.wan.codecs import Codec, TextEncoder
from fps_flex.wan.dense import is_dense
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

from ..timing import Row, check_out, compare, forget_peak, host_peak_gb, limit_memory, peak_gb, report, wait
from .sizes import (
    GRIDS,
    RESOLUTIONS,
    SIGMAS,
    TEXT_TOKENS,
    Size,
    Triple,
    attention_of,
    densities,
    regime_at,
    sized,
)


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
        objective: flow, or distill, from the dense model.
        optimizer: adamw or adamw8bit.
        offload: what blocks are recomputed from waits in the host's memory.
        average: keep averaged weights too.
        gpu_gb: the most memory of the GPU that may be taken, to show what a smaller one would hold.
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

    @property
    def grid(self) -> Triple:
        return RESOLUTIONS[self.resolution] if self.resolution else GRIDS[self.size]

    def __post_init__(self) -> None:
        as_whole("steps", self.steps)
        as_whole("warmup", self.warmup, least=0)


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
    check_out(out)
    attentions = list(_attentions(training.size, schedules, scale_formats))
    for kind in linears:
        check_base(training.base, kind, training.lora is not None, find_device())
    rows = (
        row
        for kind in linears
        for row in compare(row for name, x in attentions for row in measure_training(name, x, training, linears=kind))
    )
    report(rows, out, COLUMNS)


COLUMNS = (
    "schedule",
    "linears",
    "regime",
    "share",
    "density",
    "step_seconds",
    "tokens_per_second",
    "peak_gb",
    "speedup",
)


def _attentions(
    size: Size, schedules: tuple[str, ...], scale_formats: tuple[ScaleFormat, ...]
) -> Iterator[tuple[str, FPSAttention]]:
    for schedule in schedules:
        attention = attention_of(size, schedule)
        if not attention.step_schedule.quantizes:
            yield schedule, attention
            continue
        for scale_format in scale_formats:
            yield f"{schedule}, {scale_format} scales", replace(attention, scale_format=scale_format)


def measure_training(
    name: str,
    attention: FPSAttention,
    training: Training,
    residual: Residual | None = None,
    linears: Linears = "bf16",
) -> list[Row]:
    """A row for each regime, and where there are several one for their mix. residual: None takes the size's default.

    One row that says so where it takes more memory than there is.
    """
    limit_memory(training.gpu_gb)
    try:
        return _measure_training(name, attention, training, residual, linears)
    except torch.OutOfMemoryError as error:
        return [{"schedule": name, "linears": linears, "peak_gb": "out of memory", "error": str(error).split(". ")[0]}]


def _measure_training(
    name: str, attention: FPSAttention, training: Training, residual: Residual | None, linears: Linears
) -> list[Row]:
    grid = training.grid
    config, _ = sized(training.size, training.layers)
    every = densities(attention, grid)
    levels = SIGMAS if len(every) > 1 else {"all": SIGMAS["middle"]}
    started = time.perf_counter()
    module = _build(config, attention, training, residual, linears)
    built = time.perf_counter() - started
    clock = _Clock([*levels.values()], training)
    latents = _Latents((config.channels, *(g * p for g, p in zip(grid, config.patch, strict=True))))
    _fit(module, clock, latents, training.average)
    drawn = attention.step_schedule.regime_index(spread_noise_levels(100, module.shift)).tolist()
    facts = {
        "linears": linears,
        "residual": module.model.residual,
        "model": training.size,
        "layers": config.layers,
        **{name: getattr(training, name) for name in RECORDED},
        "build_seconds": built,
        "host_peak_gb": host_peak_gb(),
    }
    rows = []
    for (regime, sigma), seconds, peak in zip(levels.items(), clock.seconds, clock.peaks, strict=True):
        index = regime_at(attention, sigma)
        rows.append({
            "schedule": name,
            "regime": regime,
            "share": drawn.count(index) / len(drawn),
            "density": every[index],
            "step_seconds": median(seconds),
            "all_step_seconds": seconds,
            "tokens_per_second": prod(grid) / median(seconds),
            "peak_gb": peak,
            **facts,
            "tokens": prod(grid),
        })  # fmt: skip
    return rows if len(rows) == 1 else [*rows, _mix(rows)]


RECORDED = ("lora", "base", "objective", "optimizer", "offload", "average", "gpu_gb", "compiled")


def _build(
    config: WanConfig, attention: FPSAttention, training: Training, residual: Residual | None, linears: Linears
) -> FlowModule:
    device = find_device()
    full = training.lora is None and training.base == "fp32" and training.objective == "flow"
    with device:
        module = _OnRandomWeights(
            config,
            attention,
            _Encoded(config.channels),
            _States(config.text_dim),
            checkpoint=None if full else "random weights",
            checkpointing=True,
            compiled=training.compiled and device.type == "cuda",
            residual=residual,
            lora=Lora(training.lora, training.lora) if training.lora else None,
            base=training.base,
            linears=linears,
            objective="flow" if is_dense(attention) else training.objective,
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

    def __init__(self, levels: list[float], training: Training) -> None:
        self.levels, self.warmup, self.each = levels, training.warmup, training.warmup + training.steps
        self.steps = self.each * len(levels)
        self.seconds: list[list[float]] = [[] for _ in levels]
        self.peaks: list[float] = [0.0 for _ in levels]

    def on_train_batch_start(self, trainer: L.Trainer, module: FlowModule, batch: Any, step: int) -> None:
        if step % self.each == 0:
            forget_peak()
        sigma = self.levels[step // self.each]
        module.noise_levels = sigma, sigma
        wait()
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: FlowModule, outputs: Any, batch: Any, step: int) -> None:
        wait()
        if step % self.each >= self.warmup:
            self.seconds[step // self.each].append(time.perf_counter() - self._start)
        self.peaks[step // self.each] = peak_gb(module.device)
