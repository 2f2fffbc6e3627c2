"""How much of what sparse and quantised attention costs a LoRA won back by distillation, level by level.

python -m docs.make.distilled runs/tiny-lora/checkpoints/last.ckpt --out docs/results/distilled-tiny-cpu.json
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from jsonargparse import ArgumentError
from torch import Tensor

from eval.generate.models import build
from eval.timing import Row, report
from fps_flex.wan import Wan
from fps_flex.wan.codecs import Codec, TextEncoder
from fps_flex.wan.dense import dense_attention
from fps_flex.wan.flow import add_noise, velocity_error
from fps_flex.wan.trained import read_training_checkpoint
from fps_flex.wan.weights import load_wan, read_settings
from train.common.console import run_command, stop
from train.common.refusals import one_line
from train.order import generator_of
from train.shapes import MovingShapes

LEVELS = tuple(i / 10 for i in range(1, 10))
COLUMNS = ("sigma", "before", "after", "ratio")


def distilled(run: str, clips: int = 32, seed: int = 1, out: Path | None = None) -> None:
    """Errors of the velocity as shares of the dense model's, without the LoRA and with it, each a mean over clips.

    Args:
        run: .ckpt of a LoRA that was distilled on moving shapes.
        clips: how many that it wasn't trained on.
        seed: of the clips and of their noise.
        out: JSON file to write.
    """
    settings = read_training_checkpoint(Path(run))["fps_flex"]
    if "lora" not in settings:
        raise ValueError(f"{run} is of a run that trained no LoRA, expected one of configs/tiny-lora.yaml")
    attention, base = read_settings(run)[1], settings["base"]["path"]
    models = [load_wan(path, x).eval() for path, x in ((base, dense_attention()), (base, attention), (run, attention))]
    clip = settings["clip"]
    parts = [build(run, settings[x], y, None) for x, y in (("codec", Codec), ("text", TextEncoder))]
    drawn = MovingShapes(clips, clip["frames"], clip["height"], clip["width"], seed=1_000 + seed)
    report(_rows(models, *parts, drawn, seed), out, COLUMNS, run=run, clips=clips)


@torch.no_grad()
def _rows(models: list[Wan], codec: Codec, encoder: TextEncoder, drawn: MovingShapes, seed: int) -> Iterator[Row]:
    latents = codec.encode(torch.stack([drawn[i]["video"] for i in range(len(drawn))]))
    text = encoder([drawn[i]["prompt"] for i in range(len(drawn))], torch.device("cpu"))
    noise = torch.randn(latents.shape, generator=generator_of(seed))
    errors = torch.tensor([_errors(models, latents, text, noise, sigma) for sigma in LEVELS])
    for sigma, (before, after) in [*zip(LEVELS, errors.tolist(), strict=True), ("mean", errors.mean(0).tolist())]:
        yield {"sigma": sigma, "before": before, "after": after, "ratio": after / before}


def _errors(models: list[Wan], latents: Tensor, text: Tensor, noise: Tensor, sigma: float) -> list[float]:
    """Of the models after the first against it."""
    levels = torch.full((len(latents),), sigma)
    teacher, *students = (model(add_noise(latents, noise, levels), 1000 * levels, text) for model in models)
    return [velocity_error(student, teacher).mean().item() for student in students]


if __name__ == "__main__":
    try:
        run_command(distilled, None, as_positional=True)
    except (ValueError, OSError, ArgumentError) as error:
        stop(one_line(error), code=2)
