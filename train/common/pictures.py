"""Pictures of a run: contact sheets, walls of videos and loss curves."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch.nn.functional as F
from einops import rearrange
from matplotlib.figure import Figure

from .atomic import MARK, beside

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def side_by_side(videos: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "3 f rows cols"]:
    """Videos in two columns, whole pixels repeated until a frame is some 256 pixels high; even sizes."""
    columns = min(2, len(videos))
    videos = videos[: len(videos) // columns * columns]
    zoom = max(1, round(256 / videos.shape[-2]))
    videos = videos.repeat_interleave(zoom, -2).repeat_interleave(zoom, -1)
    wall = rearrange(videos, "(row col) c f h w -> c f (row h) (col w)", col=columns)
    return wall[..., : wall.shape[-2] // 2 * 2, : wall.shape[-1] // 2 * 2]


def draw_contact_sheet(path: Path, videos: Float[Tensor, "b 3 f h w"], captions: list[str], columns: int = 8) -> None:
    """A row a video, with its caption, of up to `columns` frames spread over its length."""
    frames, _, width = videos.shape[2:]
    shown = [i * (frames - 1) // max(1, min(columns, frames) - 1) for i in range(min(columns, frames))]
    gap = max(1, width // 24)
    strips = F.pad((videos[:, :, shown] + 1) / 2, (0, gap), value=1.0)
    strips = rearrange(strips, "b c f h w -> b h (f w) c")[:, :, :-gap].clamp(0, 1)
    figure = Figure(figsize=(12, (12 * strips.shape[1] / strips.shape[2] + 0.3) * len(videos)), layout="constrained")
    for axes, strip, caption in zip(figure.subplots(len(videos), squeeze=False)[:, 0], strips, captions, strict=False):
        axes.imshow(strip.numpy())
        axes.set_title(caption, loc="left", fontsize=9, parse_math=False)
        axes.set_axis_off()
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """The file appears whole or not at all."""
    kind = path.suffix.removeprefix(".")
    with beside(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # captions may be in any script
        figure.savefig(temporary, dpi=150, format=kind, metadata={"Software": MARK} if kind == "png" else None)


def draw_loss_curve(path: Path, losses: dict[str, dict[int, float]]) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, style in (("train/loss", {"alpha": 0.4}), ("val/loss", {"marker": "o"})):
        axes.plot(list(losses[name]), list(losses[name].values()), label=name, **style)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)
