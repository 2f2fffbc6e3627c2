"""Strips of a reference and of what is compared with it, each with its difference beneath."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from train.common.pictures import draw_contact_sheet

from .pairs import Row
from .scores import Scores
from .similarity import read_frames

if TYPE_CHECKING:
    from jaxtyping import Float

STRIPS = 18  # of the sheet, about
PICTURES = 8  # of each strip
AMPLIFIED = 8  # differences: what an eye would hardly see


def draw_side_by_side(path: Path, rows: list[Row], scores: Scores, summaries: list[dict[str, Any]]) -> None:
    """Of the first videos of one size and length. summaries: of each row."""
    reference, *others = rows
    shown: list[tuple[Float[Tensor, "3 f h w"], str]] = []
    for i, video in enumerate(scores.videos[: max(1, STRIPS // (2 * len(rows) - 1))]):
        frames = len(scores.of[others[0].name][video.name]["mse"])
        first = _read_strip(reference.file(video), frames)
        if shown and first.shape != shown[0][0].shape:
            continue
        shown.append((2 * first - 1, f"{reference.name}: {video.caption}"))
        for row, summary in zip(others, summaries[1:], strict=True):
            strip, numbers = _read_strip(row.file(video), frames), summary["videos"][i]
            caption = f"PSNR {numbers['psnr']:.2f} dB" + (f", SSIM {numbers['ssim']:.3f}" if "ssim" in numbers else "")
            shown.append((2 * strip - 1, f"{row.name}: {caption}"))
            difference = (AMPLIFIED * (strip - first).abs()).clamp(max=1)
            shown.append((2 * difference - 1, f"|{row.name} - {reference.name}| x {AMPLIFIED}"))
    strips, captions = zip(*shown, strict=True)
    draw_contact_sheet(path, torch.stack(strips), list(captions), columns=PICTURES)


def _read_strip(path: Path, frames: int) -> Float[Tensor, "3 f h w"]:
    """Up to PICTURES frames, spread over the video, in 0 to 1."""
    count = min(PICTURES, frames)
    wanted = {i * (frames - 1) // max(1, count - 1) for i in range(count)}
    kept = [frame for i, frame in enumerate(islice(read_frames(path), frames)) if i in wanted]
    return torch.from_numpy(np.stack(kept)).permute(3, 0, 1, 2).float() / 255
