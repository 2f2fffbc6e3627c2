"""Speed-up against density."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def draw_speed(rows: list[dict[str, Any]], out: Path, title: str) -> None:
    """A line a method: the module's speed-up over the fastest dense rival, solid, and the kernel's, dotted."""
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    sparse = [row for row in rows if row["window"] is not None and "module_speedup" in row]
    densities = sorted({row["density"] for row in sparse})
    if len(densities) > 1:
        axes.plot(densities, [1 / d for d in densities], "k--", linewidth=1, label="1 / density")
    for i, method in enumerate(dict.fromkeys(row["method"] for row in sparse)):
        mine = sorted((row["density"], row["module_speedup"], row["kernel_speedup"]) for row in sparse
                      if row["method"] == method)  # fmt: skip
        density, module, kernel = zip(*mine, strict=True)
        axes.plot(density, module, "o-", color=f"C{i}", label=method)
        axes.plot(density, kernel, ".:", color=f"C{i}", alpha=0.6)
    axes.set(xscale="log", yscale="log", xlabel="density", ylabel="speed-up over the fastest dense attention")
    axes.set_title(f"{title}\nsolid: raster to raster; dotted: kernel alone", fontsize=9)
    axes.set_xticks(densities, [f"{d:.2f}" for d in densities])
    axes.minorticks_off()
    ticks = [t for t in (0.5, 1, 2, 3, 4, 6, 8, 10) if axes.get_ylim()[0] <= t <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{t:g}x" for t in ticks])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(out, dpi=130)
