"""The pictures of a study: losses by noise level and by step, and the same prompts in every row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from train.common.pictures import draw_contact_sheet, save_figure

from .clips import load_shown
from .config import BASE
from .results import Results


def draw_levels(path: Path, results: Results) -> None:
    """Each row's loss at each noise level over that of the pretrained weights, in the mean over clips and seeds."""
    figure, axes = _axes("noise level sigma", "validation loss, times the base's")
    of = {row: np.mean([x.grid for x in seeds.values()], axis=(0, 1)) for row, seeds in results.of.items()}
    for row, losses in of.items():
        style = "-" if results.plan.rows[row].weights is None else "--"
        axes.plot(results.plan.study.measures.sigmas, losses / of[BASE], style, marker=".", label=row)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(fontsize=8)
    save_figure(figure, path)


def draw_curves(path: Path, results: Results) -> None:
    """val/loss of train.fit by step, a line a seed: each row with its own attention, at step 0 before any training."""
    figure, axes = _axes("step", "val/loss")
    for i, (row, seeds) in enumerate(results.of.items()):
        for number, measured in enumerate(x for x in seeds.values() if x.curve):
            curve = measured.curve
            label = "" if number else row
            axes.plot([*map(int, curve)], [*curve.values()], color=f"C{i}", marker=".", alpha=0.7, label=label)
    axes.legend(*axes.get_legend_handles_labels(), fontsize=8)
    save_figure(figure, path)


def draw_sheet(path: Path, results: Results) -> None:
    """A strip for each prompt and row, those of a prompt together, of each row's first seed; no file without any."""
    firsts = {row: seeds[min(seeds)] for row, seeds in results.of.items()}
    videos = {row: load_shown(results.plan, row, first.seed) for row, first in firsts.items()}
    shown = [
        (videos[row][i], f"{row}: {first.prompts[i]}")
        for i in range(results.plan.study.measures.shown)
        for row, first in firsts.items()
        if i in videos[row] and i < len(first.prompts)
    ]
    if shown:
        draw_contact_sheet(path, torch.stack([video for video, _ in shown]), [caption for _, caption in shown])
    else:
        path.unlink(missing_ok=True)


def _axes(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=across, ylabel=up)
    axes.grid(alpha=0.3)
    return figure, axes
