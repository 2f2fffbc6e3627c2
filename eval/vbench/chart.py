"""A picture of how runs differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from train.pictures import save_figure

from .paired import Difference
from .suite import DIMENSIONS


def draw_differences(path: Path, first: str, found: dict[str, dict[str, Difference]]) -> None:
    """A line a dimension: each run's paired difference from the one that is called `first`, with its interval."""
    names = [name for name in (*DIMENSIONS, "quality", "semantic", "total") if any(name in x for x in found.values())]
    figure = Figure(figsize=(8, 1.2 + 0.32 * len(names)), layout="constrained")
    axes = figure.subplots()
    for i, (label, differences) in enumerate(found.items()):
        known = {row: differences[name] for row, name in enumerate(names) if name in differences}
        means = np.array([100 * x.mean for x in known.values()])
        ends = [(x.mean, x.mean) if x.low is None else (x.low, x.high) for x in known.values()]
        bars = np.abs(100 * np.array(ends).reshape(-1, 2).T - means)
        rows = np.array([*known]) + 0.15 * (i - (len(found) - 1) / 2)
        axes.errorbar(means, rows, xerr=bars, fmt="o", markersize=4, label=label)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"paired difference from {first}, in percent points, with 95 % intervals")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4)
    save_figure(figure, path)
