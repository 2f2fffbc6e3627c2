"""Draw the rules that a port must keep: rounding, scales that tiles share, windows and regimes.

python -m docs.make.rules --out docs/rules.png
"""

from __future__ import annotations

from pathlib import Path

import torch
from jsonargparse import auto_cli
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fps_flex import TileLayout, preset
from fps_flex.masks import in_window
from fps_flex.quant import round_e4m3, tile_groups
from fps_flex.wan.flow import sampling_levels
from train.common.pictures import save_figure

BLUE, ORANGE = "#2a6f97", "#e76f51"
WINDOW = ListedColormap(["white", "#9cc3d5", BLUE])


def draw_rounding(axes: Axes) -> None:
    """Codes of x / scale near the top of the grid, where two neighbours are 32 apart; ties are marked."""
    x = torch.linspace(192, 480, 4000)
    axes.plot(x, round_e4m3(x), color=BLUE, linewidth=1.5)
    values = torch.tensor([208, 224, 240, 256, 288, 320, 352, 384, 416, 448.0])
    ties = (values[:-1] + values[1:]) / 2
    axes.plot(ties, round_e4m3(ties), "o", color=ORANGE, markersize=4, label="ties: to the even mantissa")
    axes.annotate("336 -> 320\n(half up: 352)", (336, 320), (352, 265), fontsize=8, arrowprops={"arrowstyle": "->"})
    axes.annotate("clamped", (464, 448), (440, 415), fontsize=8, arrowprops={"arrowstyle": "->"})
    axes.set(xlabel="x / scale, in fp32", ylabel="code", yticks=values[::1].tolist())
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
    axes.set_title("Rounding to e4m3: 8 steps an octave", fontsize=9)


def draw_groups(axes: Axes, layout: TileLayout, granularity: int) -> None:
    """One frame of tiles; those of one colour share a scale."""
    _, rows, columns = layout.tiles
    groups = tile_groups(layout, granularity)[: rows * columns].view(rows, columns)
    axes.imshow(groups, cmap="tab20", alpha=0.75)
    for row in range(rows):
        for column in range(columns):
            axes.text(column, row, int(groups[row, column]), ha="center", va="center", fontsize=8)
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="w", linewidth=1))
    axes.set(xticks=[], yticks=[], xlabel="tiles on W", ylabel="tiles on H")
    axes.set_title(f"Granularity {granularity}: group (h // {granularity}, w // {granularity})", fontsize=9)


def draw_windows(axes: Axes, tiles: int, window: int) -> None:
    """The key tiles of every query tile on one axis, and where FastVideo's kernel keeps one more."""
    index = torch.arange(tiles)
    size = torch.tensor(window)
    seen = in_window(index[:, None], index, size, torch.tensor(tiles)).int()
    axes.imshow(seen + torch.eye(tiles, dtype=torch.int32) * seen, cmap=WINDOW, vmin=0, vmax=2)
    half = window // 2
    center = index.clamp(half, tiles - 1 - half)
    wider = ((center[:, None] - index).abs() <= half) & (seen == 0)
    for query, key in wider.nonzero().tolist():
        axes.text(key, query, "x", ha="center", va="center", color=ORANGE, fontsize=10, fontweight="bold")
    for query in range(tiles):
        start = int(seen[query].argmax())
        axes.text(tiles - 0.3, query, f"{start}..{start + window - 1}", fontsize=7, va="center")
    axes.set(xlabel="key tile", ylabel="query tile", xticks=index.tolist(), yticks=index.tolist())
    axes.tick_params(labelsize=7)
    extra = " (x: a kernel that keeps w + 1)" if window % 2 == 0 else ""
    axes.set_title(f"Window {window} of {tiles} tiles: {window} in every row{extra}", fontsize=9)


def draw_regimes(axes: Axes) -> None:
    """Noise level of each of 50 evenly spaced steps, as Euler's are, and the regime that it meets."""
    schedule = preset("fps")
    sigma = sampling_levels(50, schedule.shift)[:-1]
    regime = schedule.regime_index(sigma)
    for i, (name, color) in enumerate(zip(("early", "middle", "late"), ("#9cc3d5", ORANGE, BLUE), strict=True)):
        steps = (regime == i).nonzero().flatten()
        label = f"{name}: steps {steps[0]} to {steps[-1]}, W window {schedule.regimes[i].window[2]:g}, granularity "
        axes.bar(steps, sigma[steps], 0.8, color=color, label=label + str(schedule.regimes[i].granularity))
    axes.set(xlabel="step of 50, evenly spaced, shift 5", ylabel="sigma")
    axes.legend(fontsize=7, loc="upper right")
    axes.set_ylim(0, 1.35)
    axes.set_title("Regimes of the fps preset: progress 0.3 and 0.7 begin the next", fontsize=9)


def main(out: Path = Path("docs/rules.png")) -> None:
    """Draw the rules that a port must keep: rounding, scales that tiles share, windows and regimes.

    Args:
        out: the PNG to write.
    """
    layout = TileLayout((2, 10, 14), (2, 2, 2), 8)
    figure = Figure(figsize=(15, 8), layout="constrained")
    (rounding, groups, coarse), (odd, even, regimes) = figure.subplots(2, 3)
    draw_rounding(rounding)
    draw_groups(groups, layout, 2)
    draw_groups(coarse, layout, 4)
    draw_windows(odd, 7, 3)
    draw_windows(even, 7, 4)
    draw_regimes(regimes)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, out)


if __name__ == "__main__":
    auto_cli(main)
