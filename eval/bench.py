"""Measure on the machine at hand, in the real sizes with random weights: training steps, a forward pass, reading data.

python -m eval.bench train --size 1.3B
python -m eval.bench model --size 14B
python -m eval.bench data
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fps_flex import WAN_1_3B, WAN_14B, WAN_TINY, FPSAttention, Plan, Wan, WanConfig, density
from fps_flex.weights import fill
from train.cached import CachedClip, Index, write_index
from train.callbacks import AverageWeights
from train.codecs import Codec, TextEncoder
from train.data import VideoData
from train.module import FlowModule

from .timing import find_device, forget_peak, peak_gb, report, time_once, wait

Triple = tuple[int, int, int]
Size = Literal["tiny", "1.3B", "14B"]

CONFIGS = {"tiny": WAN_TINY, "1.3B": WAN_1_3B, "14B": WAN_14B}
GRIDS = {"tiny": (5, 8, 8), "1.3B": (21, 30, 52), "14B": (21, 45, 80)}  # 81 frames at 480p and at 720p
TILES = {"tiny": (1, 4, 4), "1.3B": (7, 9, 6), "14B": (7, 9, 6)}
TEXT_TOKENS = 512
SIGMAS = {"early": 0.99, "middle": 0.8, "late": 0.3}  # one noise level in each regime of the fps preset


def train(
    size: Size = "1.3B",
    schedules: tuple[str, ...] = ("sdpa", "dense", "fps"),
    layers: int | None = None,
    steps: int = 5,
    warmup: int = 2,
    out: Path | None = None,
) -> None:
    """Full fine-tuning as `train.fit` does it: Lightning, fp32 weights, bf16 autocast, checkpointing, AdamW, EMA.

    Latents and text states are random, as if they had been encoded before. The first steps, which compile, don't count.

    Args:
        size: of the model: 1.3B at 480p, 14B at 720p, 81 frames each, or tiny.
        schedules: presets to compare, and sdpa, the stock dense attention; the first is the baseline.
        layers: fewer blocks than the model has.
        steps: optimizer steps measured.
        warmup: optimizer steps before them.
        out: JSON file to write.
    """
    rows = (_measure_training(size, schedule, layers, steps, warmup) for schedule in schedules)
    report(rows, out, ("schedule", "density", "step_seconds", "tokens_per_second", "peak_gb", "speedup"))


def model(
    size: Size = "14B",
    schedules: tuple[str, ...] = ("sdpa", "dense", "fps"),
    layers: int | None = None,
    repeats: int = 3,
    out: Path | None = None,
) -> None:
    """One forward pass of one video in bf16 (fp32 on a CPU), in each regime of each schedule.

    Args:
        size: of the model: 1.3B at 480p, 14B at 720p, 81 frames each, or tiny.
        schedules: presets to compare, and sdpa, the stock dense attention; the first is the baseline.
        layers: fewer blocks than the model has.
        repeats: forward passes measured, after one that compiles.
        out: JSON file to write.
    """
    rows = (row for schedule in schedules for row in _measure_forward(size, schedule, layers, repeats))
    report(rows, out, ("schedule", "regime", "density", "step_seconds", "peak_gb", "speedup"))


def data(size: Size = "1.3B", clips: int = 32, seconds: float = 10.0, out: Path | None = None) -> None:
    """Reading a prepared data set of random latents and text states, in this process, on one core.

    Args:
        size: of the model whose latents are read.
        clips: in the set.
        seconds: to read for.
        out: JSON file to write.
    """
    torch.set_num_threads(1)
    config, grid = _sized(size, None)
    frames, rows, columns = (g * p for g, p in zip(grid, config.patch, strict=True))
    with TemporaryDirectory() as folder:
        _write_random_set(Path(folder), clips, (config.channels, frames, rows, columns), config.text_dim)
        held = VideoData(folder, batch_size=1, workers=0)
        held.setup()
        batches = iter(held.train_dataloader())
        read, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            read += len(next(batches)["latents"])
        taken = (time.perf_counter() - started) / read
    row = {
        "model": size,
        "clips_read": read,
        "step_seconds": taken,
        "tokens_per_second": grid[0] * grid[1] * grid[2] / taken,
    }
    report(iter([row]), out, ("model", "clips_read", "step_seconds", "tokens_per_second"))


def _write_random_set(folder: Path, clips: int, latents: tuple[int, ...], text_dim: int) -> None:
    """One shard, with prompts as long as they can be."""
    (folder / "shards").mkdir()
    names = [f"clip{i}" for i in range(clips)]
    tensors = {f"{name}/latents": torch.randn(latents, dtype=torch.bfloat16) for name in names}
    tensors |= {f"{name}/text": torch.randn(TEXT_TOKENS, text_dim, dtype=torch.bfloat16) for name in names}
    save_file(tensors, folder / "shards/0.safetensors")
    save_file({"text": torch.zeros(1, text_dim)}, folder / "empty_prompt.safetensors")
    cached = [CachedClip(name, "shards/0.safetensors", (81, 480, 832), "", name == "clip0") for name in names]
    write_index(Index(folder, 16.0, {}, {}, TEXT_TOKENS, cached))


def _measure_training(size: Size, schedule: str, layers: int | None, steps: int, warmup: int) -> dict[str, Any]:
    device = find_device()
    config, grid = _sized(size, layers)
    latents = tuple(g * p for g, p in zip(grid, config.patch, strict=True))
    with device:
        module = FlowModule(config, _attention(size, schedule), _Encoded(config.channels), _States(config.text_dim))
        torch.nn.init.normal_(module.model.head.head.weight, std=0.02)
    module.model.checkpointing = True
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
    regimes = [module.model.attention.step_schedule.regime(sigma).item() for sigma in clock.sigmas[warmup:]]
    return {
        "schedule": schedule,
        "regimes_drawn": regimes,
        "density": mean([_densities(module.model.attention, grid)[regime] for regime in regimes]),
        "step_seconds": mean(seconds),
        "all_step_seconds": seconds,
        "tokens_per_second": tokens / mean(seconds),
        "peak_gb": peak_gb(device),
        "model": size,
        "layers": config.layers,
        "tokens": tokens,
    }


def _measure_forward(size: Size, schedule: str, layers: int | None, repeats: int) -> Iterator[dict[str, Any]]:
    device = find_device()
    config, grid = _sized(size, layers)
    forget_peak()
    wan = random_wan(config, _attention(size, schedule), device)
    latents = torch.randn(1, config.channels, *(g * p for g, p in zip(grid, config.patch, strict=True)), device=device)
    text = torch.randn(1, TEXT_TOKENS, config.text_dim, device=device)
    densities = _densities(wan.attention, grid)
    levels = SIGMAS if len(densities) > 1 else {"all": 0.8}
    for name, sigma in levels.items():
        regime = wan.attention.step_schedule.regime(torch.tensor([sigma])).item()
        timestep = torch.tensor([1000 * sigma], device=device)
        with torch.inference_mode():
            seconds = [time_once(lambda t=timestep: wan(latents, t, text)) for _ in range(repeats + 1)][1:]
        yield {
            "schedule": schedule,
            "regime": name,
            "density": densities[regime],
            "step_seconds": median(seconds),
            "all_step_seconds": seconds,
            "peak_gb": peak_gb(device),
            "model": size,
            "layers": config.layers,
            "tokens": grid[0] * grid[1] * grid[2],
        }


def random_wan(config: WanConfig, attention: FPSAttention, device: torch.device) -> Wan:
    """Random weights, drawn on the device: bf16 on a GPU, with what `fill` keeps in fp32, and fp32 on a CPU."""
    with torch.device("meta"):
        wan = Wan(config, attention)
    drawn = ((name, 0.02 * torch.randn(x.shape, device=device)) for name, x in wan.state_dict().items())
    fill(wan, drawn, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    return wan


class _Latents(Dataset):
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"video": torch.randn(self.shape), "prompt": "", "name": f"random {index}"}


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


def _sized(size: Size, layers: int | None) -> tuple[WanConfig, Triple]:
    config = CONFIGS[size]
    return replace(config, layers=layers or config.layers), GRIDS[size]


def _attention(size: Size, schedule: str) -> FPSAttention:
    block = 16 if size == "tiny" else 128
    if schedule == "sdpa":
        return _Sdpa("dense", tile=GRIDS[size], block=block)
    return FPSAttention(schedule, tile=TILES[size], block=block)


class _Sdpa(FPSAttention):
    """PyTorch's dense attention, for its time only: the few pads of one tile as large as the grid are not masked."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


def _densities(attention: FPSAttention, grid: Triple) -> list[float]:
    layout = attention.plan(grid, torch.zeros(1)).layout
    return density(layout, attention.step_schedule.windows(layout.tiles)).tolist()


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    auto_cli([train, model, data])
