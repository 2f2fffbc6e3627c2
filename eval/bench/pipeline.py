"""A denoising step of a stock diffusers pipeline, before and after `install(pipe.transformer, ...)`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from fps_flex import FPSAttention
from fps_flex.checks import as_whole
from fps_flex.choice import FASTEST
from fps_flex.diffusers import cut_tile, install, uninstall
from fps_flex.schedule import preset_of
from train.common.work import find_device

from ..generate.sampling import build_scheduler, list_regimes, mean_density
from ..timing import Row, check_out, compare, forget_peak, peak_gb, report, wait
from .rivals import random_stock
from .sizes import CONFIGS, SHIFTS, TEXT_TOKENS, Size, Triple, sized, tell_of_a_cpu

if TYPE_CHECKING:
    from diffusers import WanPipeline

VIDEOS = {"tiny": (17, 64, 96), "1.3B": (81, 480, 832), "14B": (81, 720, 1280)}  # frames, rows, columns
ATTENTIONS = {"tiny": FPSAttention(tile=(2, 2, 3), block=16), "1.3B": FASTEST, "14B": FASTEST}
COLUMNS = ("attention", "blocks", "density", "step_seconds", "over_stock", "peak_gb", "warmup_seconds")
RECORDED = ("scale_format", "carrier", "codes", "smooth_k", "rotate")


def pipeline(
    size: Size = "1.3B",
    attention: FPSAttention | None = None,
    steps: int = 10,
    guidance: float = 5.0,
    compiled: bool = True,
    layers: int | None = None,
    out: Path | None = None,
) -> None:
    """A step inside a stock diffusers pipeline, before and after `install`; with guidance it is two forward passes.

    The steps of a whole run are measured, early, middle and late, after two that compile. Text states are random.

    Args:
        size: of the model: 1.3B at 480p, 14B at 720p, 81 frames each, or tiny.
        attention: what is installed; none takes install's defaults.
        steps: of the run measured.
        guidance: 1 for one forward pass a step.
        compiled: measure with compile_repeated_blocks too.
        layers: fewer blocks than the model has.
        out: JSON file to write.
    """
    as_whole("steps", steps)
    check_out(out)
    tell_of_a_cpu(size)
    attention = cut_tile(attention or ATTENTIONS[size], _grid(size))
    attention.plan(_grid(size), torch.zeros(1))
    report(compare(_Run(attention, size, layers, steps, guidance).rows(compiled)), out, COLUMNS)


def _grid(size: Size) -> Triple:
    frames, height, width = VIDEOS[size]
    return CONFIGS[size].grid(((frames - 1) // 4 + 1, height // 8, width // 8))


class _Run:
    """A pipeline of random weights, measured stock and with FPS attention, eager and compiled."""

    def __init__(self, attention: FPSAttention, size: Size, layers: int | None, steps: int, guidance: float) -> None:
        from diffusers import WanPipeline

        self.attention, self.size, self.steps, self.guidance = attention, size, steps, guidance
        stock = random_stock(sized(size, layers), find_device())
        self.pipe = WanPipeline(None, None, None, build_scheduler("unipc", 1, SHIFTS[size]), stock)
        self.pipe.set_progress_bar_config(disable=True)
        self.text = torch.randn(1, TEXT_TOKENS, CONFIGS[size].text_dim, device=find_device())

    def rows(self, compiled: bool) -> Iterator[Row]:
        options = {field.name: getattr(self.attention, field.name) for field in fields(self.attention)}
        for blocks in ("eager", "compiled") if compiled else ("eager",):
            if blocks == "compiled":
                self.pipe.transformer.compile_repeated_blocks(fullgraph=True)
            stock = self._measure("stock", blocks)
            yield {**stock, "density": 1.0, "over_stock": 1.0}
            install(self.pipe.transformer, **options)
            row = self._measure(preset_of(self.attention.schedule) or "own schedule", blocks) | self._describe()
            uninstall(self.pipe.transformer)
            steps = [*zip(row["regimes"], row["all_step_seconds"], strict=True)]
            means = {regime: mean(x for other, x in steps if other == regime) for regime, _ in steps}
            row["step_seconds_by_regime"] = means
            yield {**row, "over_stock": stock["step_seconds"] / row["step_seconds"]}

    def _measure(self, attention: str, blocks: str) -> Row:
        forget_peak()
        started = time.perf_counter()
        self._generate(2)
        warmup = time.perf_counter() - started
        seconds = self._generate(self.steps)
        return {
            "attention": attention,
            "blocks": blocks,
            "step_seconds": mean(seconds),
            "all_step_seconds": seconds,
            "warmup_seconds": warmup,
            "peak_gb": peak_gb(find_device()),
            "model": self.size,
            "video": VIDEOS[self.size],
            "layers": len(self.pipe.transformer.blocks),
            "guidance": self.guidance,
        }

    def _generate(self, steps: int) -> list[float]:
        """Seconds of each step. Raises RuntimeError for latents that are not finite: their times would mean nothing."""
        frames, height, width = VIDEOS[self.size]
        wait()
        ends = [time.perf_counter()]

        def note(pipe: WanPipeline, step: int, timestep: torch.Tensor, kept: dict[str, Any]) -> dict[str, Any]:
            wait()
            ends.append(time.perf_counter())
            return kept

        latents = self.pipe(
            prompt_embeds=self.text,
            negative_prompt_embeds=-self.text,
            height=height,
            width=width,
            num_frames=frames,
            num_inference_steps=steps,
            guidance_scale=self.guidance,
            callback_on_step_end=note,
            output_type="latent",
        ).frames
        if not latents.isfinite().all():
            raise RuntimeError("the latents are not finite")
        return [b - a for a, b in zip(ends, ends[1:], strict=False)]

    def _describe(self) -> Row:
        """The regime of each step, and the mean density in them."""
        grid, scheduler = _grid(self.size), self.pipe.scheduler
        layout = self.attention.plan(grid, torch.zeros(1)).layout
        return {
            "density": mean_density(self.attention, grid, scheduler, len(self.pipe.transformer.blocks)),
            "regimes": list_regimes(self.attention, scheduler),
            "tile": layout.tile,
            "tokens": layout.tokens,
            "pad_share": layout.pad_share,
            **{name: getattr(self.attention, name) for name in RECORDED},
        }
