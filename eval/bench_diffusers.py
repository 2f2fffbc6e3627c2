"""Time a diffusers WanPipeline of random weights, stock and after `install(pipe.transformer, "fps")`.

python -m eval.bench_diffusers --size 1.3B --out eval/results/diffusers.json
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Literal

import torch
from jsonargparse import ArgumentError, auto_cli

from fps_flex import WAN_1_3B, WAN_14B, WAN_TINY, FPSAttention, density
from fps_flex.diffusers import cut_tile, install, uninstall
from fps_flex.tiles import Triple
from train.console import check_writable, one_line, stop

from .sampling import build_scheduler, list_regimes
from .timing import find_device, forget_peak, peak_gb, report, wait

if TYPE_CHECKING:
    from diffusers import WanPipeline

Size = Literal["tiny", "1.3B", "14B"]

CONFIGS = {"tiny": WAN_TINY, "1.3B": WAN_1_3B, "14B": WAN_14B}
VIDEOS = {"tiny": (17, 64, 96), "1.3B": (81, 480, 832), "14B": (81, 720, 1280)}  # frames, rows, columns
SHIFTS = {"tiny": 3.0, "1.3B": 3.0, "14B": 5.0}  # diffusers' at 480p and at 720p
ATTENTIONS = {"tiny": FPSAttention(tile=(2, 2, 3), block=16), "1.3B": FPSAttention(), "14B": FPSAttention()}
TEXT_TOKENS = 512
COLUMNS = ("attention", "blocks", "density", "step_seconds", "over_stock", "peak_gb", "warmup_seconds")


def main(
    size: Size = "1.3B",
    attention: FPSAttention | None = None,
    steps: int = 10,
    guidance: float = 5.0,
    compiled: bool = True,
    layers: int | None = None,
    out: Path | None = None,
) -> None:
    """Seconds of a denoising step inside the pipeline's own call; with guidance, a step is two forward passes.

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
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1")
    if out:
        check_writable(out.parent, "--out")
    attention = cut_tile(attention or ATTENTIONS[size], _grid(size))
    attention.plan(_grid(size), torch.zeros(1))
    run = _Run(random_pipeline(size, layers), attention, size, steps, guidance)
    report(run.rows(compiled), out, COLUMNS)


def random_pipeline(size: Size, layers: int | None) -> WanPipeline:
    """On the GPU in bf16, with what diffusers keeps in fp32; on a CPU all in fp32."""
    from diffusers import WanPipeline, WanTransformer3DModel

    device, c = find_device(), CONFIGS[size]
    with device:
        transformer = WanTransformer3DModel(
            patch_size=c.patch,
            num_attention_heads=c.heads,
            attention_head_dim=c.head_dim,
            in_channels=c.channels,
            out_channels=c.channels,
            text_dim=c.text_dim,
            freq_dim=c.freq_dim,
            ffn_dim=c.ffn_dim,
            num_layers=layers or c.layers,
        )
    if device.type == "cuda":
        for name, parameter in transformer.named_parameters():
            if not any(kept in name for kept in transformer._keep_in_fp32_modules):
                parameter.data = parameter.data.to(torch.bfloat16)
    pipe = WanPipeline(None, None, None, build_scheduler("unipc", 1, SHIFTS[size]), transformer.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _grid(size: Size) -> Triple:
    frames, height, width = VIDEOS[size]
    return CONFIGS[size].grid(((frames - 1) // 4 + 1, height // 8, width // 8))


class _Run:
    """One pipeline, measured stock and with FPS attention, eager and compiled."""

    def __init__(self, pipe: WanPipeline, attention: FPSAttention, size: Size, steps: int, guidance: float) -> None:
        self.pipe, self.attention, self.size, self.steps, self.guidance = pipe, attention, size, steps, guidance
        self.text = torch.randn(1, TEXT_TOKENS, CONFIGS[size].text_dim, device=find_device())

    def rows(self, compiled: bool) -> Iterator[dict[str, Any]]:
        options = {field.name: getattr(self.attention, field.name) for field in fields(self.attention)}
        for blocks in ("eager", "compiled") if compiled else ("eager",):
            if blocks == "compiled":
                self.pipe.transformer.compile_repeated_blocks(fullgraph=True)
            stock = self._measure("stock", blocks)
            yield {**stock, "density": 1.0, "over_stock": 1.0}
            install(self.pipe.transformer, **options)
            row = self._measure(_name(self.attention), blocks) | self._describe()
            uninstall(self.pipe.transformer)
            by_regime: dict[int, list[float]] = {}
            for regime, seconds in zip(row["regimes"], row["all_step_seconds"], strict=True):
                by_regime.setdefault(regime, []).append(seconds)
            row["step_seconds_by_regime"] = {regime: mean(seconds) for regime, seconds in by_regime.items()}
            yield {**row, "over_stock": stock["step_seconds"] / row["step_seconds"]}

    def _measure(self, attention: str, blocks: str) -> dict[str, Any]:
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

    def _describe(self) -> dict[str, Any]:
        """The regime of each step, and the mean density in them."""
        regimes = list_regimes(self.attention, self.pipe.scheduler)
        layout = self.attention.plan(_grid(self.size), torch.zeros(1)).layout
        densities = density(layout, self.attention.step_schedule.windows(layout.tiles)).tolist()
        return {
            "density": mean(densities[regime] for regime in regimes),
            "regimes": regimes,
            "tile": layout.tile,
            "tokens": layout.tokens,
            "pad_share": layout.pad_share,
            "scale_format": self.attention.scale_format,
            "carrier": self.attention.carrier,
        }


def _name(attention: FPSAttention) -> str:
    return attention.schedule if isinstance(attention.schedule, str) else "own schedule"


def command(args: list[str] | None = None) -> None:
    """args: the command line, without the command; by default this process's own."""
    try:
        auto_cli(main, args=args, as_positional=False, exit_on_error=False, description=__doc__.splitlines()[0])
    except (ValueError, ArgumentError) as error:
        stop(one_line(error), code=2)
    except KeyboardInterrupt:
        stop("stopped; the rows measured so far are written", code=130)


if __name__ == "__main__":
    command()
