"""The residual stream in the dtype of the computation or in fp32: how much is rounded away, and what that costs.

python -m docs.make.residual --size 1.3B --out docs/results/residual-1.3b-480p-h100.json
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from math import prod
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from eval.bench.exact import relative_error
from eval.bench.rivals import build_stock, to_bf16
from eval.bench.sizes import SIGMAS, attention_of, draw_inputs, random_wan
from eval.bench.train import Case, Training
from eval.timing import Row, check_some, clock, forget_peak, peak_gb, report
from fps_flex import FPSAttention
from fps_flex.checks import as_whole
from fps_flex.quant import ScaleFormat
from fps_flex.wan import Wan, WanConfig
from fps_flex.wan.config import Residual
from fps_flex.wan.keys import to_diffusers
from fps_flex.wan.weights import build_empty, fill
from train.common.console import cli_errors, run_command
from train.common.work import compute_dtype, find_device

Part = Literal["error", "forward", "train"]
Inputs = tuple[Tensor, Tensor, Tensor]

COLUMNS = ("residual", "measured", "blocks", "error", "step_seconds", "peak_gb", "kept_gb")
GATE, SHARPNESS, HEAD = 0.1, 1.5, 0.02


def residual(
    parts: tuple[Part, ...] = ("error", "forward", "train"),
    schedule: str = "fps",
    scale_format: ScaleFormat = "pow2",
    rounds: int = 3,
    repeats: int = 3,
    seed: int = 0,
    out: Path | None = None,
    **options: Any,
) -> None:
    """Error, time and memory of the transformer with each kind of residual stream, on random weights.

    error: of the velocity, relative to that of the same weights all in fp32 without TF32; in training's way (fp32
    weights, bf16 autocast) and in inference's (bf16 weights), with and without torch.compile, and stock diffusers'
    likewise, against itself in fp32. Attention is dense there (PyTorch's own), so that FP8 hides nothing. forward: a
    pass with bf16 weights (fp32 on a CPU) at the highest noise levels. train: the mix of steps as `eval.bench train`
    measures it. kept_gb: what checkpointed blocks keep for the backward, a sample; from the sizes, not measured.

    All of 14B needs more memory than a GPU has in training, and minutes for its error: measure it forward, or with
    fewer layers.

    Args:
        parts: what to measure: error, forward, train.
        schedule: preset of the attention whose time and memory is measured, or sdpa, the stock dense one.
        scale_format: of its quantisation.
        rounds: times that each stream's passes are measured, in turn.
        repeats: forward passes measured in a round, after one that compiles.
        seed: of weights and inputs.
        out: JSON file to write.
        options: of `Training`.

    Raises ValueError for an unknown schedule, and where there is nothing to measure.
    """
    training = Training(**options)
    attention = attention_of(training.size, schedule, scale_format=scale_format)
    as_whole("rounds", rounds)
    as_whole("repeats", repeats)
    check_some(parts=parts)
    if "train" in parts:
        training.check([attention])
    torch.manual_seed(seed)
    bench = _Bench(training, attention, schedule)
    measure = {"error": bench.errors, "forward": lambda: bench.forward(rounds, repeats), "train": bench.train}
    report((row for part in parts for row in measure[part]()), out, COLUMNS)


class _Bench:
    def __init__(self, training: Training, attention: FPSAttention, schedule: str) -> None:
        self.training, self.attention, self.device = training, attention, find_device()
        self.compiled = training.compiled and self.device.type == "cuda"
        self.name = f"{schedule}, {attention.scale_format} scales" if attention.quantizes else schedule
        self.config, self.grid = training.config, training.grid
        self.facts = {"model": training.size, "layers": self.config.layers, "tokens": prod(self.grid)}

    def errors(self) -> Iterator[Row]:
        """Ours eager and compiled, then stock diffusers' of the same weights: its stream is the computation's."""
        inputs = self._draw("middle")
        wan = lively_wan(self.config, attention_of(self.training.size, "sdpa"), self.device)
        rounded = build_empty(self.config, wan.attention)
        fill(rounded, wan.state_dict().items(), self.device, torch.bfloat16)
        exact = exactly(wan, inputs)
        for compiled, stream in product((False, True) if self.compiled else (False,), get_args(Residual)):
            for model in (wan, rounded):
                model.residual, model.compiled = stream, compiled
            yield from self._compare(stream, compiled, exact, under_autocast(wan, inputs), in_bf16(rounded, inputs))
        stock = build_stock(self.config, self.device)
        stock.load_state_dict({to_diffusers(name): x for name, x in wan.state_dict().items()})

        def call(*inputs: Tensor) -> Tensor:
            return stock(*inputs, return_dict=False)[0]

        exact, velocity = exactly(call, inputs), under_autocast(call, inputs)
        to_bf16(stock)
        yield from self._compare("stock diffusers", False, exact, velocity, in_bf16(call, inputs))

    def _compare(self, stream: str, compiled: bool, exact: Tensor, *velocities: Tensor) -> Iterator[Row]:
        for way, velocity in zip(("autocast", "bf16 weights"), velocities, strict=True):
            yield self._row(stream, f"error, {way}", compiled, {"error": relative_error(velocity, exact)})

    def _row(self, stream: str, measured: str, compiled: bool, figures: Row) -> Row:
        blocks = "compiled" if compiled else "eager"
        return {"residual": stream, "measured": measured, "blocks": blocks, **self.facts, **figures}

    def forward(self, rounds: int, repeats: int) -> Iterator[Row]:
        """Both streams in turn, so that a GPU that slows down slows both."""
        wan = random_wan(self.config, self.attention, self.device)
        wan.compiled = self.compiled
        latents, timestep, text = self._draw("early", compute_dtype(self.device))
        seconds: dict[Residual, list[float]] = {stream: [] for stream in get_args(Residual)}
        peaks = {}
        for _ in range(rounds):
            for stream in seconds:
                wan.residual = stream
                forget_peak()
                with torch.inference_mode():
                    seconds[stream] += clock(lambda: wan(latents, timestep, text), repeats)
                peaks[stream] = peak_gb(self.device)  # of the last round: the first compiles
        for stream in seconds:
            times = {"step_seconds": median(seconds[stream]), "all_step_seconds": seconds[stream]}
            kept = {"peak_gb": peaks[stream], "kept_gb": self._kept_gb(stream), "schedule": self.name}
            yield self._row(stream, "forward", self.compiled, times | kept)

    def train(self) -> Iterator[Row]:
        for stream in get_args(Residual):
            row = Case(self.name, self.attention, self.training, residual=stream).measure()[-1]
            yield self._row(stream, "training step", self.compiled, {"kept_gb": self._kept_gb(stream)} | row)

    def _draw(self, regime: str, dtype: torch.dtype = torch.float32) -> Inputs:
        """Latents, timestep and text states of one video."""
        latents, text = draw_inputs(self.config, self.grid, self.device, dtype)
        return latents, torch.tensor([1000 * SIGMAS[regime]], device=self.device), text

    def _kept_gb(self, stream: Residual) -> float:
        slots = self.attention.plan(self.grid, torch.zeros(1)).layout.slots
        return self.config.layers * slots * self.config.dim * (4 if stream == "fp32" else 2) / 1e9


def lively_wan(config: WanConfig, attention: FPSAttention, device: torch.device) -> Wan:
    """Random fp32 weights with which the blocks matter: each moves the stream by a tenth, as gates near zero don't.

    As `Wan` draws them, but for the modulation (N(0, 0.1)), the norms of self-attention's q and k (1.5, so that a token
    looks at some more than at others) and the head (N(0, 0.02) in place of zero).
    """
    with device:
        wan = Wan(config, attention)
    for block in wan.blocks:
        nn.init.normal_(block.modulation, std=GATE)
        for norm in (block.self_attn.norm_q, block.self_attn.norm_k):
            nn.init.constant_(norm.weight, SHARPNESS)
    nn.init.normal_(wan.head.head.weight, std=HEAD)
    return wan.requires_grad_(False)


@torch.inference_mode()
def exactly(model: Callable[..., Tensor], inputs: Inputs) -> Tensor:
    """All in fp32. Products are without TF32 anyhow, convolutions (the patch embedding) only when told."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return model(*inputs)


@torch.inference_mode()
def under_autocast(model: Callable[..., Tensor], inputs: Inputs) -> Tensor:
    """As in training: fp32 weights."""
    with torch.autocast(inputs[0].device.type, torch.bfloat16):
        return model(*inputs)


@torch.inference_mode()
def in_bf16(model: Callable[..., Tensor], inputs: Inputs) -> Tensor:
    """As at inference: bf16 weights."""
    latents, timestep, text = inputs
    return model(latents.bfloat16(), timestep, text.bfloat16())


def command(args: list[str] | None = None) -> None:
    """args: the command line, without the command; by default this process's own."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    with cli_errors("stopped; what was measured before is written"):
        run_command(residual, args, as_positional=False, prog="python -m docs.make.residual")


if __name__ == "__main__":
    command()
