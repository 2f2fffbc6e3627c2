"""Training steps, as train.fit takes them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fps_flex import FPSAttention
from fps_flex.quant import ScaleFormat
from fps_flex.wan.codecs import Codec, TextEncoder
from fps_flex.wan.model import Residual
from train.callbacks import AverageWeights
from train.common.console import check_writable
from train.common.work import find_device
from train.module import FlowModule

from ..timing import forget_peak, peak_gb, report, wait
from .sizes import TEXT_TOKENS, Size, Triple, attention_of, densities, sized


def train(
    size: Size = "1.3B",
    schedules: tuple[str, ...] = ("sdpa", "dense", "fps"),
    scale_formats: tuple[ScaleFormat, ...] = ("fp32", "pow2"),
    layers: int | None = None,
    steps: int = 5,
    warmup: int = 2,
    compiled: bool = True,
    out: Path | None = None,
) -> None:
    """Full fine-tuning as `train.fit` does it: Lightning, fp32 weights, bf16 autocast, checkpointing, AdamW, EMA.

    Latents and text states are random, as if they had been encoded before. The first steps, which compile, don't count.

    Args:
        size: of the model: 1.3B at 480p, 14B at 720p, 81 frames each, or tiny.
        schedules: presets to compare, and sdpa, the stock dense attention; the first is the baseline.
        scale_formats: of the schedules that quantise, each measured.
        layers: fewer blocks than the model has.
        steps: optimizer steps measured.
        warmup: optimizer steps before them.
        compiled: run blocks through torch.compile (on a GPU).
        out: JSON file to write.

    Raises ValueError for an unknown schedule.
    """
    if out:
        check_writable(out.parent, "--out")
    attentions = list(_attentions(size, schedules, scale_formats))
    compiled = compiled and find_device().type == "cuda"
    rows = (measure_training(name, size, attention, layers, steps, warmup, compiled) for name, attention in attentions)
    report(rows, out, ("schedule", "density", "step_seconds", "tokens_per_second", "peak_gb", "speedup"))


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
    size: Size,
    attention: FPSAttention,
    layers: int | None,
    steps: int,
    warmup: int,
    compiled: bool,
    residual: Residual | None = None,
) -> dict[str, Any]:
    """Steps of full fine-tuning, on random latents. residual: None takes the size's default."""
    device = find_device()
    config, grid = sized(size, layers)
    latents = tuple(g * p for g, p in zip(grid, config.patch, strict=True))
    with device:
        encoders = _Encoded(config.channels), _States(config.text_dim)
        module = FlowModule(config, attention, *encoders, checkpointing=True, compiled=compiled, residual=residual)
        torch.nn.init.normal_(module.model.head.head.weight, std=0.02)
    clock = _Clock()
    trainer = L.Trainer(
        accelerator=device.type,
        devices=1,
        precision="bf16-mixed" if device.type == "cuda" else "32-true",
        max_steps=warmup + steps,
        gradient_clip_val=1.0,
        callbacks=[AverageWeights(0.99), clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    forget_peak()
    trainer.fit(module, DataLoader(_Latents((config.channels, *latents))))
    seconds = clock.seconds[warmup:]
    tokens = grid[0] * grid[1] * grid[2]
    regimes = [attention.step_schedule.regime_index(sigma).item() for sigma in clock.sigmas[warmup:]]
    return {
        "schedule": name,
        "regimes_drawn": regimes,
        "density": mean([densities(attention, grid)[regime] for regime in regimes]),
        "step_seconds": mean(seconds),
        "all_step_seconds": seconds,
        "tokens_per_second": tokens / mean(seconds),
        "peak_gb": peak_gb(device),
        "compiled": compiled,
        "residual": module.model.residual,
        "model": size,
        "layers": config.layers,
        "tokens": tokens,
    }


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
    """Seconds of each optimizer step, and the noise level that it drew."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.sigmas: list[Tensor] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: FlowModule) -> None:
        pl_module.model.register_forward_pre_hook(lambda module, args: self.sigmas.append(args[1].cpu() / 1000))

    def on_train_batch_start(self, *args: Any) -> None:
        wait()
        self._start = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        wait()
        self.seconds.append(time.perf_counter() - self._start)
