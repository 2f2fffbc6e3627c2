"""The pictures of what was measured: the velocity's error over steps, and attention's by layer, step and head."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from train.common.pictures import save_figure

from .candidates import Kind
from .result import Sensitivity

TITLES: dict[Kind, str] = {"quantised": "quantised alone", "sparse": "sparse alone", "joint": "joint"}
STYLES = ("-", "--", ":", "-.")  # of granularities
LEAST = 1e-12  # relative MSE that a logarithmic axis shows


def draw_steps(path: Path, measured: Sensitivity) -> None:
    """Relative MSE, SNR and cosine similarity of the velocity over steps, per candidate (paper, Fig. 5)."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    rows = figure.subplots(2, 3, sharex=True, sharey="row")
    candidates = measured.list_candidates()
    windows = [*dict.fromkeys(one.tiles for one in candidates)]
    scales = sorted({one.regime.granularity for one in candidates}, key=lambda x: (x is not None, str(x)))
    cosine = np.array(measured.velocity.cosine)
    for column, (kind, title) in enumerate(TITLES.items()):
        for i, one in enumerate(candidates):
            if one.kind == kind:
                style = {
                    "color": f"C{windows.index(one.tiles) % 10}", "marker": ".", "linewidth": 1.3,
                    "linestyle": STYLES[scales.index(one.regime.granularity) % len(STYLES)],
                }  # fmt: skip
                label = f"{one} ({one.density:.2f})"
                rows[0, column].plot(measured.steps, measured.velocity_mse[:, i].clip(LEAST), label=label, **style)
                rows[1, column].plot(measured.steps, cosine[:, i], **style)
        rows[0, column].set(title=title, yscale="log")
        rows[1, column].set(xlabel="step of the sampler (0: noise)")
    rows[0, 0].set_ylabel("velocity: relative MSE")
    rows[1, 0].set_ylabel("velocity: cosine similarity")
    _add_snr(rows[0, 2])
    for axes in rows.flat:
        axes.grid(alpha=0.3)
    for column, axes in enumerate(rows[0]):
        handles, labels = axes.get_legend_handles_labels()
        rows[1, column].legend(
            handles, labels, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False
        )
    figure.suptitle("window in tiles, tiles per axis that share a scale (density)", fontsize=9, y=0.005, va="bottom")
    save_figure(figure, path)


def _add_snr(axes: Axes) -> None:
    """A second axis, on the right: -10 log10 of the relative MSE."""
    least, most = axes.get_ylim()
    twin = axes.twinx()
    twin.set_ylim(-10 * np.log10(least), -10 * np.log10(most))
    twin.set_ylabel("SNR in dB")


def draw_layers(path: Path, measured: Sensitivity) -> None:
    """Heat maps of attention's relative MSE: layer by step for each kind of candidate, and layer by head for joint."""
    errors = measured.attention_mse.clip(LEAST)
    kinds = np.array([one.kind for one in measured.list_candidates()])
    present = [kind for kind in get_args(Kind) if kind in kinds]
    of_kind = {kind: _geometric_mean(errors[:, kinds == kind], axis=1) for kind in present}
    maps = {TITLES[kind]: _geometric_mean(x, axis=2).T for kind, x in of_kind.items()}  # [layer, step]
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    axes = figure.subplots(1, len(maps) + 1)
    for one, (title, values) in zip(axes, maps.items(), strict=False):
        _draw_map(figure, one, values, f"{title}: layer by step")
        _label_steps(one, measured.steps)
    last, heads = [*of_kind.items()][-1]
    _draw_map(figure, axes[-1], _geometric_mean(heads, axis=0), f"{TITLES[last]}: layer by head")
    axes[-1].set_xlabel("head")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("layer")
    figure.suptitle("attention output: relative MSE, geometric mean over candidates", fontsize=10)
    save_figure(figure, path)


def _draw_map(figure: Figure, axes: Axes, values: np.ndarray, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    norm = LogNorm(values.min(), max(values.max(), 1.01 * values.min()))
    picture = axes.imshow(values, norm=norm, aspect="auto", origin="lower", interpolation="nearest", cmap="viridis")
    figure.colorbar(picture, ax=axes)


def _label_steps(axes: Axes, steps: list[int]) -> None:
    shown = range(0, len(steps), -(-len(steps) // 10))
    axes.set_xticks([*shown], [str(steps[i]) for i in shown])
    axes.set_xlabel("step of the sampler (0: noise)")


def _geometric_mean(values: np.ndarray, axis: int) -> np.ndarray:
    return np.exp(np.log(values).mean(axis))
