"""One forward pass of the transformer: ours in each regime, and stock diffusers, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fps_flex import FPSAttention, preset
from fps_flex.flow import sampling_levels
from fps_flex.linears import Linears, quantize_linears
from fps_flex.quant import ScaleFormat
from train.console import check_writable

from ..timing import clock, find_device, forget_peak, head_of, line_of, peak_gb, write_json
from .sizes import SIGMAS, TEXT_TOKENS, Size, attention_of, densities, random_wan, regime_at, sized
from .stock import random_stock

STOCK = ("stock", "stock compiled")
COLUMNS = ("model", "regime", "density", "step_seconds", "speedup", "peak_gb")
STEPS, SHIFT, PASSES = 50, 5.0, 2  # the paper's sampling: 50 steps, each with and without the prompt


def model(
    size: Size = "14B",
    schedules: tuple[str, ...] = ("stock", "stock compiled", "sdpa", "fps"),
    linears: tuple[Linears, ...] = ("bf16",),
    scale_format: ScaleFormat = "pow2",
    compiled: bool = True,
    layers: int | None = None,
    repeats: int = 3,
    out: Path | None = None,
) -> None:
    """One forward pass of one video with random weights in bf16 (fp32 on a CPU), in each regime of each schedule.

    From those follows what a video of 50 steps with guidance takes, without its VAE and text encoder.

    Args:
        size: of the model: 1.3B at 480p, 14B at 720p, 81 frames each, or tiny.
        schedules: presets; sdpa, the stock dense attention in our model; stock and "stock compiled", diffusers' own
            model. The first is the baseline.
        linears: of our model, each measured: bf16, fp8-ffn or fp8.
        scale_format: of our quantisation.
        compiled: run our blocks through torch.compile (on a GPU).
        layers: fewer blocks than the model has.
        repeats: forward passes measured, after those that compile.
        out: JSON file to write.

    Raises ValueError for an unknown schedule.
    """
    for schedule in schedules:
        if schedule not in (*STOCK, "sdpa"):
            preset(schedule)
    if out:
        check_writable(out.parent, "--out")
    device = find_device()
    inputs = _inputs(size, layers, device)
    print(head_of(COLUMNS), flush=True)
    rows: list[dict[str, Any]] = []
    for row in _measure_all(size, schedules, linears, scale_format, compiled, layers, repeats, device, inputs):
        rows.append(row)
        row["speedup"] = rows[0]["step_seconds"] / row["step_seconds"]
        print(line_of(row, COLUMNS), flush=True)
        if out:
            write_json(out, {"size": size, "layers": sized(size, layers)[0].layers, "rows": rows})


def _measure_all(
    size: Size,
    schedules: tuple[str, ...],
    linears: tuple[Linears, ...],
    scale_format: ScaleFormat,
    compiled: bool,
    layers: int | None,
    repeats: int,
    device: torch.device,
    inputs: tuple[torch.Tensor, torch.Tensor],
) -> Iterator[dict[str, Any]]:
    config, grid = sized(size, layers)
    for schedule in schedules:
        if schedule in STOCK:
            forward = _stock(config, device, schedule == "stock compiled", inputs)
            yield from _measure(schedule, {"all": 0.8}, [1.0], forward, repeats, device)
            del forward  # before the next model comes
            continue
        for kind in linears:
            attention = attention_of(size, schedule, scale_format=scale_format)
            forward = _ours(config, attention, kind, compiled and device.type == "cuda", device, inputs)
            every = densities(attention, grid)
            levels = SIGMAS if len(every) > 1 else {"all": 0.8}
            held = [every[regime_at(attention, sigma)] for sigma in levels.values()]
            rows = list(_measure(f"{schedule}, {kind}", levels, held, forward, repeats, device))
            yield from rows
            yield _whole_video(f"{schedule}, {kind}", attention, rows)
            del forward


def _measure(
    name: str,
    levels: dict[str, float],
    held: list[float],
    forward: Callable[[torch.Tensor], torch.Tensor],
    repeats: int,
    device: torch.device,
) -> Iterator[dict[str, Any]]:
    for (regime, sigma), density in zip(levels.items(), held, strict=True):
        timestep = torch.tensor([1000 * sigma], device=device)
        forget_peak()
        with torch.inference_mode():
            seconds = clock(lambda t=timestep: forward(t), repeats)
        yield {
            "model": name,
            "regime": regime,
            "density": density,
            "step_seconds": median(seconds),
            "all_step_seconds": seconds,
            "peak_gb": peak_gb(device),
        }


def _whole_video(name: str, attention: FPSAttention, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The sum over the regimes in force at each step; its step_seconds are the mean, to compare with the others."""
    seconds = {regime_at(attention, SIGMAS.get(row["regime"], 0.8)): row["step_seconds"] for row in rows}
    regimes = attention.step_schedule.regime(sampling_levels(STEPS, SHIFT)[:-1]).tolist()
    total = PASSES * sum(seconds[regime] for regime in regimes)
    mean = total / (PASSES * STEPS)
    regime = f"{STEPS} steps x {PASSES}"
    return {"model": name, "regime": regime, "density": "", "step_seconds": mean, "video_seconds": total, "peak_gb": ""}


def _inputs(size: Size, layers: int | None, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    config, grid = sized(size, layers)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    frames, rows, columns = (g * p for g, p in zip(grid, config.patch, strict=True))
    latents = torch.randn(1, config.channels, frames, rows, columns, device=device, dtype=dtype)
    return latents, torch.randn(1, TEXT_TOKENS, config.text_dim, device=device, dtype=dtype)


def _ours(config: Any, attention: FPSAttention, linears: Linears, compiled: bool, device: Any, inputs: Any) -> Any:
    wan = random_wan(config, attention, device)
    wan.compiled = compiled
    quantize_linears(wan, linears)
    latents, text = inputs
    return lambda timestep: wan(latents, timestep, text)


def _stock(config: Any, device: torch.device, compiled: bool, inputs: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """diffusers' own transformer, with its blocks compiled as its documentation does it."""
    stock = random_stock(config, device)
    if compiled:
        stock.compile_repeated_blocks(fullgraph=True)
    latents, text = inputs
    return lambda timestep: stock(latents, timestep, text, return_dict=False)[0]
