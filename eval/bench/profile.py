"""Where a layer's attention, or a whole block, spends its time, kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from fps_flex import FPSAttention, Regime, StepSchedule, density
from fps_flex.checks import as_whole
from fps_flex.compile import compiled
from fps_flex.wan import WanConfig
from fps_flex.wan.flops import forward_flops
from fps_flex.wan.linears import Linears, check_linears, quantize_linears
from train.common.work import compute_dtype, find_device
from train.training_log import peak_flops

from ..timing import Row, check_out, name_device, report, wait, write_report
from .kernel import Bench
from .sizes import GRIDS, TEXT_TOKENS, TILES, Size, Triple, block_of, draw_inputs, random_wan, sized, tell_of_a_cpu

What = Literal["layer", "block"]
COLUMNS = ("ms", "share", "calls", "kernel")


def profile(
    size: Size = "14B",
    what: What = "layer",
    window: Triple = (6, 6, 1),
    method: str | None = None,
    tile: Triple | None = None,
    linears: Linears | None = None,
    backward: bool = False,
    top: int = 20,
    out: Path | None = None,
) -> None:
    """The kernels of one call, after two that compile and warm up.

    Args:
        size: of the model whose heads and grid are taken.
        what: layer, a layer's attention from raster to raster; or block, the forward pass of a block in power-of-two
            scales, compiled on a GPU, beside the operations and the bytes that it can't do without.
        window: tiles that a query tile sees on (T, H, W).
        method: of a layer, as `kernel` names them; none takes power-of-two scales.
        tile: tokens of a tile on (T, H, W); as `kernel`'s, of a block (7, 9, 6).
        linears: of a block: bf16, fp8-ffn or fp8, which none takes; a CPU has bf16 alone.
        backward: of a layer, the backward pass too.
        top: kernels listed, the slowest first.
        out: JSON file to write.

    Raises ValueError for an option of the other one, and as `check_linears`.
    """
    others = {"linears": linears} if what == "layer" else {"method": method, "backward": backward or None}
    if foreign := [name for name, value in others.items() if value is not None]:
        raise ValueError(f"{foreign[0]} is given, which says nothing of a {what}: leave it out, or choose another what")
    check_out(out)
    as_whole("top", top)
    tell_of_a_cpu(size)
    if what == "layer":
        method = method or "power-of-two scales"
        (case,) = Bench(size, tile, backward).ours(window, (method,))
        work, facts = case.module, {"method": method, "backward": backward}
    else:
        work, facts = _block(size, window, tile or TILES[size], linears or "fp8")
    rows = _kernels(work)
    report(rows[:top], None, COLUMNS)
    total = {"total_ms": sum(row["ms"] for row in rows)}
    print(", ".join(f"{name} {value:.4g}" for name, value in (total | facts).items() if isinstance(value, float)))
    write_report(out, rows, size=size, what=what, window=window, **facts, **total)


def _kernels(work: Callable[[], Any]) -> list[Row]:
    """Of the third call, the slowest first."""
    work()
    work()
    on_gpu = torch.cuda.is_available()
    with torch_profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as record:
        work()
        wait()
    averages = [(x.self_device_time_total if on_gpu else x.self_cpu_time_total, x) for x in record.key_averages()]
    total = sum(microseconds for microseconds, _ in averages)
    return [
        {"ms": microseconds / 1000, "share": microseconds / total, "calls": x.count, "kernel": x.key[:100]}
        for microseconds, x in sorted(averages, key=lambda pair: pair[0], reverse=True)
    ]


def _block(size: Size, window: Triple, tile: Triple, linears: Linears) -> tuple[Callable[[], Tensor], dict[str, Any]]:
    """A block's forward as the model calls it, and what it can't do without."""
    config, grid, device = sized(size, 1), GRIDS[size], find_device()
    check_linears(linears, device)
    schedule = StepSchedule((), (Regime(window, 1),))
    wan = random_wan(config, FPSAttention(schedule, tile, block_of(size), scale_format="pow2"), device).eval()
    quantize_linears(wan, linears)
    (block,), seen = wan.blocks, []
    handle = block.register_forward_pre_hook(lambda _, args, shared: seen.append((args, shared)), with_kwargs=True)
    latents, text = draw_inputs(config, grid, device, compute_dtype(device))
    with torch.inference_mode():
        wan(latents, torch.tensor([500.0]), text)
    handle.remove()
    (((x,), shared),) = seen
    run = compiled(_run) if device.type == "cuda" else _run
    share = density(wan.attention.plan(grid, torch.zeros(1)).layout, window).item()
    return torch.inference_mode()(lambda: run(block, x, **shared)), _floor(block, config, prod(grid), share, linears)


def _run(block: nn.Module, x: Tensor, **shared: Any) -> Tensor:
    return block(x, **shared)


def _floor(block: nn.Module, config: WanConfig, tokens: int, share: float, linears: Linears) -> dict[str, Any]:
    """Operations of a block's products and of its attention, and the bytes that no order of work can save.

    bytes: each weight once, and of every token, in two bytes a number, what each product and attention read and write:
    4 d of q, k and v, 4 d of attention, 2 d each of o and of cross-attention's q, attention and o, 2 (d + ffn_dim).
    floor_ms: of the operations at the GPU's peak, where that is known; twice bf16's for products in fp8.
    """
    one, two = (forward_flops(replace(config, layers=n), tokens, TEXT_TOKENS, share) for n in (1, 2))
    products, attention = two.linear - one.linear, two.attention - one.attention
    weights = sum(x.numel() * x.element_size() for x in block.parameters())
    moved = weights + 2 * tokens * (18 * config.dim + 2 * config.ffn_dim)
    facts = {"linears": linears, "product_tflop": products / 1e12, "attention_tflop": attention / 1e12}
    fp8 = {"bf16": 0.0, "fp8-ffn": 4.0 * tokens * config.dim * config.ffn_dim, "fp8": products}[linears]
    peak = peak_flops(name_device())
    floor = {"floor_ms": 1e3 * (products - fp8 / 2 + attention) / peak} if peak else {}
    return {**facts, "gigabytes": moved / 1e9, **floor}
