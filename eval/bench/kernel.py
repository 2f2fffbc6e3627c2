"""Attention alone: ours, from raster order to raster order and the kernel by itself, and every dense rival present."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fps_flex import FPSAttention, Regime, StepSchedule, density
from fps_flex.algorithm import prepare
from fps_flex.checks import as_whole
from fps_flex.engines import run
from fps_flex.masks import as_windows, tile_mask
from train.common.atomic import MARK, write_text
from train.common.pictures import save_figure
from train.common.work import compute_dtype, find_device

from ..markdown import head_of
from ..timing import Row, check_out, clock, forget_peak, line_of, peak_gb, write_report
from .exact import exact_rows, relative_error
from .rivals import dense_rivals
from .sizes import CONFIGS, GRIDS, TILES, Size, Triple, block_of, tell_of_a_cpu

Work = Callable[[], Any]

WINDOWS: dict[Size, tuple[Triple, ...]] = {
    "tiny": ((5, 2, 1),),
    "1.3B": ((3, 4, 1), (3, 4, 2), (3, 4, 4)),
    "14B": ((6, 6, 1), (6, 6, 3), (6, 6, 5)),
}
COLUMNS = (
    "method", "window", "density", "tile_share", "work_share", "pad_share", "kernel_ms", "kernel_tflops",
    "kernel_speedup", "module_ms", "module_speedup", "peak_gb", "error",
)  # fmt: skip

logger = logging.getLogger(__name__)


def kernel(
    size: Size = "14B",
    tile: Triple | None = None,
    windows: tuple[Triple, ...] | None = None,
    backward: bool = False,
    rounds: int = 3,
    repeats: int = 5,
    out: Path | None = None,
) -> None:
    """One layer's attention: dense rivals, and ours under several windows of tiles.

    Each is measured in every round, so that what changes over time meets all alike; the figures are medians over all.
    Speed-ups are over the fastest dense bf16 rival of the run.

    Args:
        size: of the model whose heads and grid are taken: 1.3B at 480p, 14B at 720p, 81 frames each, or tiny.
        tile: tokens of a tile on (T, H, W); none takes (6, 8, 8) for 14B and (7, 9, 6) for 1.3B.
        windows: tiles that a query tile sees on (T, H, W); none takes three of falling sparsity.
        backward: the backward pass too; float8 has none.
        rounds: over all that is measured.
        repeats: calls a round.
        out: JSON file to write after every round; a Markdown table and a plot go beside it.

    Raises ValueError for less than one round or call.
    """
    as_whole("rounds", rounds)
    as_whole("repeats", repeats)
    tell_of_a_cpu(size)
    check_out(out, {".md": head_of(COLUMNS), ".png": MARK})
    bench = Bench(size, tile, backward)
    cases = [*bench.dense(), *(case for window in windows or WINDOWS[size] for case in bench.ours(window))]
    for finished in range(1, rounds + 1):
        measure(cases, repeats, first=finished == 1)
        rows = summarise(cases)
        write_report(out, rows, **bench.facts, backward=backward, rounds=finished, repeats=repeats)
        table = "\n".join([head_of(COLUMNS), *(line_of(row, COLUMNS) for row in rows)])
        if out:
            write_text(out.with_suffix(".md"), table + "\n")
            draw_speed(rows, out.with_suffix(".png"), f"Wan2.1 {size}, {bench.tokens:,} tokens, tile {bench.tile}")
    print("\n" + table)


@dataclass
class Case:
    """One thing to measure. prepare: makes the call of the kernel alone, where the module is more than that."""

    method: str
    module: Work
    flops: float
    facts: dict[str, Any]
    prepare: Callable[[], Work] | None = None
    check: Callable[[], float] | None = None
    window: Triple | None = None
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"kernel": [], "module": []})

    def row(self) -> Row:
        row = {"method": self.method, "window": self.window, **self.facts}
        for name, seconds in self.seconds.items():
            if seconds:
                row[f"{name}_ms"] = 1000 * median(seconds)
                row[f"{name}_ms_range"] = [1000 * min(seconds), 1000 * max(seconds)]
        if self.seconds["kernel"]:
            row["kernel_tflops"] = self.flops / median(self.seconds["kernel"]) / 1e12
        return row


class Bench:
    """Random q, k, v of one layer in the memory order in which a linear layer leaves them, and calls over them."""

    def __init__(self, size: Size, tile: Triple | None, backward: bool = False, grid: Triple | None = None) -> None:
        """tile: None takes the paper's for 14B. grid: None takes the size's."""
        heads, dim = CONFIGS[size].heads, CONFIGS[size].head_dim
        self.grid, self.block, self.backward = grid or GRIDS[size], block_of(size), backward
        self.tile, self.tokens = tile or ((6, 8, 8) if size == "14B" else TILES[size]), prod(self.grid)
        self.facts = {
            "size": size, "grid": self.grid, "tile": self.tile, "heads": heads, "head_dim": dim, "tokens": self.tokens,
        }  # fmt: skip
        self.device = device = find_device()
        self.pair = 4 * heads * dim * (3.5 if backward else 1)  # operations a (query, key) pair
        generator = torch.Generator(device).manual_seed(0)
        drawn = {"device": device, "dtype": compute_dtype(device), "generator": generator}
        *self.qkv, self.grad = (torch.randn(1, self.tokens, heads, dim, **drawn).transpose(1, 2) for _ in range(4))

    def dense(self) -> Iterator[Case]:
        for name, attention in dense_rivals(self.device, self.backward).items():
            facts = {"density": 1.0, "tile_share": 1.0, "work_share": 1.0, "pad_share": 0.0}
            yield Case(name, self._call(attention, *self.qkv, self.grad), self.pair * self.tokens**2, facts)

    def ours(self, window: Triple, methods: tuple[str, ...] | None = None) -> Iterator[Case]:
        """methods: None takes all. Raises ValueError for none, and an unknown one."""
        known = self._methods(window)
        if methods is not None and not (methods and {*methods} <= {*known}):
            raise ValueError(f"methods are {', '.join(methods) or 'empty'}, expected some of {', '.join(known)}")
        return (self._case(name, x, window) for name, x in known.items() if methods is None or name in methods)

    def _methods(self, window: Triple) -> dict[str, FPSAttention]:
        def fps(granularity: int | str | None, **options: Any) -> FPSAttention:
            return FPSAttention(StepSchedule((), (Regime(window, granularity),)), self.tile, self.block, **options)

        methods = {
            "sparse only": fps(None),
            "power-of-two scales": fps(1, scale_format="pow2"),
            "fp32 scales": fps(1),
            "power-of-two scales, K not smoothed": fps(1, scale_format="pow2", smooth_k=False),
            "fp32 scales, K not smoothed": fps(1, smooth_k=False),
            "power-of-two scales, int8": fps(1, scale_format="pow2", codes="int8"),
            "power-of-two scales, rotated": fps(1, scale_format="pow2", rotate="hadamard"),
        }
        if self.device.type == "cuda":
            methods["sparse only, Triton"] = fps(None, engine="triton")
            if not self.backward:
                methods["float8, both scales"] = fps(1, carrier="float8")
                methods["float8, both scales, K not smoothed"] = fps(1, carrier="float8", smooth_k=False)
                methods["float8, a scale a head"] = fps("head", carrier="float8")
        return methods

    def _case(self, name: str, attention: FPSAttention, window: Triple) -> Case:
        plan = attention.plan(self.grid, torch.full((1,), 0.5, device=self.device))
        layout = plan.layout
        blocks = (plan.kernel_block_mask.kv_num_blocks + plan.kernel_block_mask.full_kv_num_blocks).sum().item()
        pairs = blocks * self.block**2
        facts = {
            "density": density(layout, window).item(),
            "tile_share": tile_mask(layout, as_windows(window, layout)).float().mean().item(),
            "work_share": pairs / self.tokens**2,
            "pad_share": layout.pad_share,
            "engine": attention.engine_for(self.qkv[0]),
        }

        def module(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention.over_tokens(q, k, v, plan)

        def kernel_alone() -> Work:
            with torch.no_grad():
                call = prepare(attention.graph_key, *(layout.order(x, dim=2) for x in self.qkv), plan)
            block_mask = plan.block_mask(facts["engine"])

            def alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return run(facts["engine"], q, k, v, block_mask, call.score_mod, call.softmax_scale)

            return self._call(alone, call.q, call.k, call.v, layout.order(self.grad, dim=2))

        def check() -> float:
            tiles = layout.tile_of_slot[-1].item() + 1
            rows, expected = exact_rows(*self.qkv, layout, window, [0, tiles // 2, tiles - 1])
            with torch.no_grad():
                return relative_error(module(*self.qkv)[:, :, rows], expected)

        work = self._call(module, *self.qkv, self.grad)
        return Case(name, work, self.pair * pairs, facts, kernel_alone, check, window)

    def _call(self, attention: Callable, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> Work:
        def forward() -> Tensor:
            with torch.no_grad():
                return attention(q, k, v)

        def both() -> tuple[Tensor, ...]:
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            return torch.autograd.grad(attention(*leaves), leaves, grad)

        return both if self.backward else forward


def measure(cases: list[Case], repeats: int, first: bool) -> None:
    """One round over all cases. One that fails says so in its row, and the rest go on."""
    warmup = 0.5 if torch.cuda.is_available() else 0.0
    for case in cases:
        if "failed" in case.facts:
            continue
        try:
            if first:
                _look_once(case)
            case.seconds["module"] += clock(case.module, repeats, warmup)
            if case.prepare is not None:
                work = case.prepare()
                case.seconds["kernel"] += clock(work, repeats, warmup)
                del work
        except (RuntimeError, ValueError, TypeError) as error:
            case.facts["failed"] = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            logger.warning("%s: %s", case.method, case.facts["failed"])
        if first:
            print(line_of(case.row(), COLUMNS), flush=True)


def _look_once(case: Case) -> None:
    """Error, and peak memory; q, k, v and the output's gradient, which lie there anyway, count."""
    case.module()
    if case.check is not None:
        case.facts["error"] = case.check()
    forget_peak()
    case.module()
    case.facts["peak_gb"] = peak_gb(find_device())


def summarise(cases: list[Case]) -> list[Row]:
    """All rows, with speed-ups over the fastest dense rival."""
    dense = [median(case.seconds["module"]) for case in cases if case.window is None and case.seconds["module"]]
    for case in cases:
        for name, seconds in case.seconds.items():
            if seconds and dense:
                case.facts[f"{name}_speedup"] = min(dense) / median(seconds)
    return [case.row() for case in cases]


def draw_speed(rows: list[dict[str, Any]], out: Path, title: str) -> None:
    """A line a method: the module's speed-up over the fastest dense rival, solid, and the kernel's, dotted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    sparse = [row for row in rows if row["window"] is not None and "module_speedup" in row]
    densities = sorted({row["density"] for row in sparse})
    if len(densities) > 1:
        axes.plot(densities, [1 / d for d in densities], "k--", linewidth=1, label="1 / density")
    for i, method in enumerate(dict.fromkeys(row["method"] for row in sparse)):
        mine = sorted((row["density"], row["module_speedup"], row["kernel_speedup"]) for row in sparse
                      if row["method"] == method)  # fmt: skip
        density, module, kernel = zip(*mine, strict=True)
        axes.plot(density, module, "o-", color=f"C{i}", label=method)
        axes.plot(density, kernel, ".:", color=f"C{i}", alpha=0.6)
    axes.set(xscale="log", yscale="log", xlabel="density", ylabel="speed-up over the fastest dense attention")
    axes.set_title(f"{title}\nsolid: raster to raster; dotted: kernel alone", fontsize=9)
    axes.set_xticks(densities, [f"{d:.2f}" for d in densities])
    axes.minorticks_off()
    ticks = [t for t in (0.5, 1, 2, 3, 4, 6, 8, 10) if axes.get_ylim()[0] <= t <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{t:g}x" for t in ticks])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, out)
