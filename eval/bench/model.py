"""One forward pass of the transformer: ours in each regime, and stock diffusers, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import torch.distributed as dist

from fps_flex import FPSAttention, Regime, StepSchedule
from fps_flex.checks import Triple, as_whole
from fps_flex.quant import ScaleFormat
from fps_flex.wan import Wan
from fps_flex.wan.auto import sequence_over
from fps_flex.wan.linears import Linears, check_linears, quantize_linears
from train.common.work import compute_dtype, find_device

from ..generate.sampling import build_scheduler, list_regimes
from ..timing import Row, check_some, clock, compare, forget_peak, peak_gb, report
from .processes import Exchanged, Processes, check_exchanges, join, predict
from .rivals import random_stock
from .sizes import GRIDS, SIGMAS, Level, Size, attention_of, draw_inputs, levels_of, random_wan, sized, tell_of_a_cpu

Way = Literal["one", "ulysses", "halo"]
Forward = Callable[[torch.Tensor], torch.Tensor]
Named = tuple[str, FPSAttention | None]  # a schedule, and what attends; None is diffusers' own model

STOCK = ("stock", "stock compiled")
COLUMNS = ("model", "regime", "density", "step_seconds", "speedup", "peak_gb")
TOGETHER = ("parallel", *COLUMNS, "exchanged_mb", "predicted_mb")
STEPS, SHIFT, PASSES = 50, 5.0, 2  # the paper's sampling: 50 steps, each with and without the prompt


def model(
    size: Size = "14B",
    schedules: tuple[str, ...] = ("stock", "stock compiled", "sdpa", "fps"),
    linears: tuple[Linears, ...] = ("bf16",),
    scale_format: ScaleFormat = "pow2",
    window: Triple | None = None,
    tile: Triple | None = None,
    compiled: bool = True,
    layers: int | None = None,
    repeats: int = 3,
    parallel: tuple[Way, ...] = ("one",),
    out: Path | None = None,
) -> None:
    """One forward pass of one video with random weights in bf16 (fp32 on a CPU), in each regime of each schedule.

    From those follows what a video of 50 UniPC steps with guidance takes, without its VAE and text encoder.

    Args:
        size: of the model: 1.3B at 480p, 14B at 720p, 81 frames each, or tiny.
        schedules: presets; sdpa, the stock dense attention in our model; stock and "stock compiled", diffusers' own
            model. The first is the baseline.
        linears: of our model, each measured: bf16, fp8-ffn or fp8.
        scale_format: of our quantisation.
        window: tiles that a query tile sees on (T, H, W) at all noise levels, a scale per tile: a schedule more.
        tile: of presets and the window, tokens on (T, H, W); none takes (7, 9, 6), of tiny (1, 4, 4).
        compiled: run our blocks through torch.compile (on a GPU).
        layers: fewer blocks than the model has.
        repeats: forward passes measured, after those that compile.
        parallel: one (a GPU), ulysses or halo (all GPUs that torchrun has started, on the same video); each measured,
            the last two of our model alone, with the bytes that attention brings the GPU that gets most of them.
        out: JSON file to write.

    Raises ValueError for an unknown schedule, as `check_linears`, for a tile that is larger than the grid, and for one
    that nothing is cut into.
    """
    as_whole("repeats", repeats)
    check_some(schedules=schedules, linears=linears, parallel=parallel)
    for kind in linears:
        check_linears(kind, find_device())
    if "halo" in parallel and "sdpa" in schedules:
        raise ValueError("parallel is halo, and schedule sdpa attends to a video as one tile: leave either out")
    attentions = _attentions(size, schedules, window, {"scale_format": scale_format}, tile)
    processes = join(parallel, None, "model")
    bench = _Bench(size, layers, repeats, processes)
    check_exchanges(parallel, [x for _, x in attentions if x], bench.config, bench.grid, processes)
    tell_of_a_cpu(size)
    rows = compare(bench.rows(attentions, linears, compiled, parallel))
    report(rows, out, COLUMNS if processes.count == 1 else TOGETHER, size=size, layers=bench.config.layers)


def _attentions(
    size: Size, schedules: tuple[str, ...], window: Triple | None, options: dict[str, Any], tile: Triple | None
) -> list[Named]:
    """Those that are measured, in order. Raises ValueError for a tile that none of them has, or that has no place."""
    if tile is not None:
        if window is None and set(schedules) <= {*STOCK, "sdpa"}:
            raise ValueError(f"tile is {tile}, and {', '.join(schedules)} has none: add a preset or a window")
        options = options | {"tile": tile}
    made: list[Named] = [(x, None if x in STOCK else attention_of(size, x, **options)) for x in schedules]
    if window is not None:
        throughout = StepSchedule((), (Regime(window, granularity=1),))
        made.append((f"window {window}", attention_of(size, throughout, **options)))
    for _, attention in made:
        if attention is not None:
            attention.plan(GRIDS[size], torch.zeros(1))
    return made


class _Bench:
    """One video's latents and text states, and the models that take them, one at a time in memory."""

    def __init__(self, size: Size, layers: int | None, repeats: int, processes: Processes) -> None:
        self.size, self.repeats, self.device, self.processes = size, repeats, find_device(), processes
        torch.manual_seed(0)  # the same video for all processes
        self.config, self.grid = sized(size, layers), GRIDS[size]
        self.latents, self.text = draw_inputs(self.config, self.grid, self.device, compute_dtype(self.device))

    def rows(
        self,
        attentions: list[Named],
        linears: tuple[Linears, ...],
        compiled: bool,
        parallel: tuple[Way, ...],
    ) -> Iterator[Row]:
        for schedule, attention in attentions:
            if attention is None:
                yield from self.processes.first_alone(partial(self._stock, schedule))
                continue
            for kind, way in product(linears, parallel):
                ours = partial(self._ours, f"{schedule}, {kind}", attention, kind, compiled, way)
                yield from self.processes.first_alone(ours) if way == "one" else ours()

    def _stock(self, name: str) -> Iterator[Row]:
        """diffusers' own transformer; "stock compiled" has its blocks compiled as its documentation does it."""
        stock = random_stock(self.config, self.device)
        if name == "stock compiled":
            stock.compile_repeated_blocks(fullgraph=True)
        level = Level("all", SIGMAS["middle"], 0, 1.0)

        def forward(timestep: torch.Tensor) -> torch.Tensor:
            timestep = timestep.to(self.device, non_blocking=True)
            return stock(self.latents, timestep, self.text, return_dict=False)[0]

        yield {"parallel": "one"} | self._measure(name, level, forward)

    def _ours(self, name: str, attention: FPSAttention, linears: Linears, compiled: bool, way: Way) -> Iterator[Row]:
        """Each regime, and from them a whole video."""
        torch.manual_seed(0)
        wan = random_wan(self.config, attention, self.device)
        wan.compiled = compiled and self.device.type == "cuda"
        quantize_linears(wan, linears)
        if way != "one":
            wan.sequence = sequence_over(dist.group.WORLD, way)
        label = {"parallel": self.processes.name(way)}
        # all are timed before any bytes are counted, since a profiler counts
        timed = [
            (x, self._measure(name, x, lambda t: wan(self.latents, t, self.text)))
            for x in levels_of(attention, self.grid)
        ]
        for level, row in timed:
            yield label | row | ({} if way == "one" else self._together(wan, level, way, row["peak_gb"]))
        seconds = {level.index: row["step_seconds"] for level, row in timed}
        yield label | _whole_video(name, attention, seconds)

    @torch.inference_mode()
    def _together(self, wan: Wan, level: Level, way: Way, peak: float) -> dict[str, Any]:
        exchanged, timestep = Exchanged(), torch.tensor([1000 * level.sigma])
        with exchanged.counted():
            wan(self.latents, timestep, self.text)
        predicted = predict(wan, self.grid, level.sigma, way, self.processes)[0]
        return self.processes.most(peak_gb=peak, exchanged_mb=exchanged.bytes / 1e6, predicted_mb=predicted / 1e6)

    def _measure(self, name: str, level: Level, forward: Forward) -> Row:
        timestep = torch.tensor([1000 * level.sigma])
        forget_peak()
        with torch.inference_mode():
            seconds = clock(lambda: forward(timestep), self.repeats)
        return {
            "model": name,
            "regime": level.regime,
            "density": level.density,
            "step_seconds": median(seconds),
            "all_step_seconds": seconds,
            "peak_gb": peak_gb(self.device),
        }


def _whole_video(name: str, attention: FPSAttention, seconds: dict[int, float]) -> Row:
    """The sum over the regimes in force at each step; its step_seconds are the mean, to compare with the others.

    seconds: of a pass, by the regime's index.
    """
    regimes = list_regimes(attention, build_scheduler("unipc", STEPS, SHIFT))
    total = PASSES * sum(seconds[regime] for regime in regimes)
    times = {"step_seconds": total / (PASSES * STEPS), "video_seconds": total}
    return {"model": name, "regime": f"{STEPS} steps x {PASSES}", "density": "", **times, "peak_gb": ""}
