"""Training steps, as train.fit takes them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fps_flex import FPSAttention
from fps_flex.checks import as_whole
from fps_flex.quant import ScaleFormat
from fps_flex.wan.codecs import Codec, TextEncoder
from fps_flex.wan.flow import spread_noise_levels
from fps_flex.wan.model import Residual
from train.callbacks import AverageWeights
from train.common.work import find_device
from train.module import FlowModule

from ..timing import Row, check_out, compare, forget_peak, peak_gb, report, wait
from .sizes import SIGMAS, TEXT_TOKENS, Size, Triple, attention_of, densities, regime_at, sized


@dataclass(frozen=True)
class Training:
    """What is trained, and how many of its steps are measured.

    Args:
        size: of the model: 1.3B at 480p, 14B at 720p, 81 frames each, or tiny.
        layers: fewer blocks than the model has.
        steps: optimizer steps measured in each regime.
        warmup: optimizer steps before them.
        compiled: run blocks through torch.compile (on a GPU).
    """

    size: Size = "1.3B"
    layers: int | None = None
    steps: int = 5
    warmup: int = 2
    compiled: bool = True

    def __post_init__(self) -> None:
        as_whole("steps", self.steps)
        as_whole("warmup", self.warmup, least=0)


def train(
    schedules: tuple[str, ...] = ("sdpa", "dense", "fps"),
    scale_formats: tuple[ScaleFormat, ...] = ("fp32", "pow2"),
    out: Path | None = None,
    **options: Any,
) -> None:
    """Full fine-tuning as `train.fit` does it: Lightning, fp32 weights, bf16 autocast, checkpointing, AdamW, EMA.

    Latents and text states are random, as if they had been encoded before. Each regime of a schedule is measured with
    the noise level held in it; their mix is weighted as training draws them. The first steps, which compile, don't
    count.

    Args:
        schedules: presets to compare, and sdpa, the stock dense attention; the first is the baseline.
        scale_formats: of the schedules that quantise, each measured.
        out: JSON file to write.
        options: of `Training`.

    Raises ValueError for an unknown schedule.
    """
    training = Training(**options)
    check_out(out)
    attentions = list(_attentions(training.size, schedules, scale_formats))
    rows = (row for name, attention in attentions for row in measure_training(name, attention, training))
    columns = ("schedule", "regime", "share", "density", "step_seconds", "tokens_per_second", "peak_gb", "speedup")
    report(compare(rows), out, columns)


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
    name: str, attention: FPSAttention, training: Training, residual: Residual | None = None
) -> list[Row]:
    """A row for each regime, and where there are several one for their mix. residual: None takes the size's default."""
    device = find_device()
    config, grid = sized(training.size, training.layers)
    every = densities(attention, grid)
    levels = SIGMAS if len(every) > 1 else {"all": SIGMAS["middle"]}
    compiled = training.compiled and device.type == "cuda"
    with device:
        encoders = _Encoded(config.channels), _States(config.text_dim)
        module = FlowModule(config, attention, *encoders, checkpointing=True, compiled=compiled, residual=residual)
        torch.nn.init.normal_(module.model.head.head.weight, std=0.02)
    clock = _Clock([*levels.values()], training)
    _fit(module, clock, _Latents((config.channels, *(g * p for g, p in zip(grid, config.patch, strict=True)))))
    drawn = attention.step_schedule.regime_index(spread_noise_levels(100, module.shift)).tolist()
    facts = {"compiled": compiled, "residual": module.model.residual, "model": training.size, "layers": config.layers}
    rows = []
    for (regime, sigma), seconds, peak in zip(levels.items(), clock.seconds, clock.peaks, strict=True):
        index = regime_at(attention, sigma)
        rows.append({
            "schedule": name,
            "regime": regime,
            "share": drawn.count(index) / len(drawn),
            "density": every[index],
            "step_seconds": mean(seconds),
            "all_step_seconds": seconds,
            "tokens_per_second": prod(grid) / mean(seconds),
            "peak_gb": peak,
            **facts,
            "tokens": prod(grid),
        })  # fmt: skip
    return rows if len(rows) == 1 else [*rows, _mix(rows)]


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


def _fit(module: FlowModule, clock: _Clock, data: Dataset) -> None:
    on_gpu = find_device().type == "cuda"
    trainer = L.Trainer(
        accelerator="cuda" if on_gpu else "cpu",
        devices=1,
        precision="bf16-mixed" if on_gpu else "32-true",
        max_steps=clock.steps,
        gradient_clip_val=1.0,
        callbacks=[AverageWeights(0.99), clock],
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
