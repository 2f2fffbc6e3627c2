"""What FP8 costs in accuracy, at each granularity.

python -m docs.make.accuracy --out docs/results/accuracy-cpu.json
python -m docs.make.accuracy --checkpoint runs/tiny/checkpoints/last.ckpt --out docs/results/accuracy-tiny-cpu.json
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from eval.bench.exact import relative_error
from eval.generate.jobs import Options
from eval.generate.models import TextToVideo, open_model
from eval.timing import Row, report
from fps_flex import FPSAttention, Regime, StepSchedule
from fps_flex.algorithm import prepare
from fps_flex.checks import Triple
from fps_flex.quant import CodeFormat, Granularity, ScaleFormat
from fps_flex.reference import Precision, reference_attention
from fps_flex.wan.flow import euler_sample
from fps_flex.wan.sequence import All, Attend, Call, Share, Whole
from train.common.console import cli_errors, run_command
from train.common.work import find_device

COLUMNS = ("inputs", "rounded", "codes", "smooth_k", "rotate", "granularity", "scales", "p", "error")
RANDOM = ("gaussian", "smooth", "outliers", "offset in q")
OUTLIER = 20.0

Qkv = tuple[Tensor, Tensor, Tensor]


def accuracy(
    grid: Triple = (12, 16, 24),
    tile: Triple = (6, 8, 8),
    heads: int = 2,
    dim: int = 128,
    seed: int = 0,
    checkpoint: str | None = None,
    out: Path | None = None,
) -> None:
    """Errors of rounding Q, K and V: kinds of codes, smoothing, rotation, and then granularities, scales and P.

    Inputs are Gaussian; `smooth`, alike in space and time as a video's are; with `outliers`: four of K's channels have
    a mean of 20 and all others one of up to a few; with the same in Q (`offset in q`), which nothing takes off; or what
    the layers of a checkpoint compute. `rounded` says which of Q, K and V are: V's part no code of Q and K saves.

    Args:
        grid: tokens on (T, H, W), of random inputs.
        tile: tokens of a tile on (T, H, W), of random inputs.
        heads: attention heads, of random inputs.
        dim: channels of a head, of random inputs.
        seed: of the inputs.
        checkpoint: measure the q, k and v of each layer of this model, half way through a video, not random ones.
        out: JSON file to write.
    """
    if checkpoint is None:
        sizes = {"grid": grid, "tile": tile, "heads": heads, "head_dim": dim}
        cases = ((name, _draw(name, grid, heads, dim, seed, find_device()), FPSAttention(tile=tile)) for name in RANDOM)
    else:
        model = open_model(Options(checkpoint))
        grid, sizes = model.grid(model.clip.size), {"checkpoint": checkpoint}
        cases = ((f"layer {i}", qkv, model.attention) for i, qkv in enumerate(qkv_of(model, seed)))
    rows = (row for name, qkv, base in cases for row in _measure(name, qkv, base, grid))
    report(rows, out, COLUMNS, **sizes, seed=seed)


def _measure(name: str, qkv: Qkv, base: FPSAttention, grid: Triple) -> Iterator[Row]:
    """base: whose tile and block are taken."""
    everything = torch.ones((), dtype=torch.bool, device=qkv[0].device)
    exact = reference_attention(*qkv, lambda b, h, i, j: everything)

    def row(rounded: str, granularity: Granularity = 1, p: Precision = "fp32", **options: Any) -> Row:
        options = {"smooth_k": True, "codes": "e4m3", "rotate": None, "scale_format": "fp32", **options}
        schedule = StepSchedule((), (Regime(granularity=granularity),))
        attention = FPSAttention(schedule, base.tile, base.block, engine="eager", **options)
        error = relative_error(_rounded(attention, qkv, grid, rounded, p), exact)
        said = (options[x] for x in ("codes", "smooth_k", "rotate"))
        return dict(zip(COLUMNS, (name, rounded, *said, granularity, options["scale_format"], p, error), strict=True))

    yield row("v")
    kinds = product(("q k v", "q k"), get_args(CodeFormat), (False, True), (None, "hadamard"))
    for rounded, codes, smooth_k, rotate in kinds:
        yield row(rounded, codes=codes, smooth_k=smooth_k, rotate=rotate)
    for granularity, scales, p in product((1, 2, "head"), get_args(ScaleFormat), get_args(Precision)):
        if (granularity, scales, p) != (1, "fp32", "fp32"):  # which is among those above
            yield row("q k v", granularity, p, scale_format=scales)


def _rounded(attention: FPSAttention, qkv: Qkv, grid: Triple, rounded: str, p: Precision) -> Tensor:
    """The attention with some of q, k and v rounded and the others as they are."""
    plan = attention.plan(grid, torch.full((1,), 0.5, device=qkv[0].device))
    q, k, v = (plan.layout.order(x, dim=2) for x in qkv)
    call = prepare(attention.graph_key, q, k, v, plan)
    if rounded == "q k":
        call = replace(call, v=v, v_scale=None)
    if rounded == "v":
        call = replace(call, q=q, k=k, score_mod=None, softmax_scale=None)
    mask_mod = plan.oracle_block_mask.mask_mod
    out = reference_attention(call.q, call.k, call.v, mask_mod, call.score_mod, call.softmax_scale, p)
    return plan.layout.unorder(out if call.v_scale is None else out * call.v_scale, dim=2)


@dataclass(frozen=True)
class Recorder(Whole):
    """Keeps each layer's q, k and v, in slots, of the last forward pass."""

    qkv: dict[int, Qkv] = field(default_factory=dict)

    def share(self, call: Call) -> Share:
        return RecordingShare(call, self.qkv)


@dataclass(frozen=True)
class RecordingShare(All):
    qkv: dict[int, Qkv]

    def attend(self, layer: int) -> Attend:
        attend = super().attend(layer)

        def record(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.qkv[layer] = q, k, v
            return attend(q, k, v)

        return record


@torch.no_grad()
def qkv_of(model: TextToVideo, seed: int, steps: int = 20) -> Iterator[Qkv]:
    """q, k and v [1, H, tokens, D] of each layer in fp32, at the middle one of a video's steps."""
    device, size = find_device(), model.codec.latent_size(model.clip.size)
    wan, text = model.load(device), model.text([""], device)
    wan.compiled, wan.sequence = False, (recorder := Recorder())
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, model.codec.channels, *size, generator=generator).to(device)
    denoised = euler_sample(lambda x, sigma: wan(x, 1000 * sigma, text), noise, steps, model.shift or 5.0)
    next(islice(denoised, steps // 2, None))
    layout = wan.attention.plan(model.grid(model.clip.size), torch.zeros(1, device=device)).layout
    for _, qkv in sorted(recorder.qkv.items()):
        q, k, v = (layout.unorder(x.float(), dim=2) for x in qkv)
        yield q, k, v


def _draw(name: str, grid: Triple, heads: int, dim: int, seed: int, device: torch.device) -> Qkv:
    generator = torch.Generator(device).manual_seed(seed)
    tokens = prod(grid)

    def draw() -> Tensor:
        return torch.randn(1, heads, tokens, dim, device=device, generator=generator)

    q, k, v = draw(), draw(), draw()
    if name == "smooth":
        q, k, v = (_smooth(x, grid) for x in (q, k, v))
    if name in ("outliers", "offset in q"):
        mean = torch.randn(1, heads, 1, dim, device=device, generator=generator)
        mean[..., torch.randperm(dim, device=device, generator=generator)[:4]] = OUTLIER
        q, k = (q, k + mean) if name == "outliers" else (q + mean, k)
    return q, k, v


def _smooth(x: Tensor, grid: Triple) -> Tensor:
    """Noise at a quarter of the grid's resolution, and half as much of the full one; of unit variance."""
    volume = x.mT.reshape(-1, 1, *grid)
    coarse = torch.nn.functional.avg_pool3d(volume, 4, 4) * 8
    coarse = torch.nn.functional.interpolate(coarse, size=grid, mode="trilinear")
    mixed = coarse + 0.5 * volume
    return (mixed / mixed.std()).reshape(x.mT.shape).mT


def command(args: list[str] | None = None) -> None:
    """args: the command line, without the command; by default this process's own."""
    with cli_errors("stopped; what was measured before is written"):
        run_command(accuracy, args, as_positional=False, prog="python -m docs.make.accuracy")


if __name__ == "__main__":
    command()
