"""Time against the number of tokens, under a window of fixed size."""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from pathlib import Path
from statistics import linear_regression

from fps_flex.checks import as_whole

from ..timing import Row, clock, report, write_report
from .kernel import Bench
from .sizes import Size, Triple, tell_of_a_cpu

COLUMNS = ("method", "grid", "tokens", "density", "pad_share", "module_ms")


def length(
    size: Size = "14B",
    tile: Triple = (6, 8, 8),
    window: Triple = (4, 6, 1),
    methods: tuple[str, ...] = ("power-of-two scales",),
    widths: tuple[int, ...] = (21, 40, 80, 160),
    repeats: int = 9,
    out: Path | None = None,
) -> None:
    """One layer's attention, raster to raster, over grids of growing width; the window stays as it is.

    Args:
        size: of the model whose heads are taken.
        tile: tokens of a tile on (T, H, W).
        window: tiles that a query tile sees on (T, H, W).
        methods: as `kernel` names them.
        widths: columns of tokens of each grid; it has 21 x 45 tokens otherwise (5 x 8 for tiny).
        repeats: calls measured.
        out: JSON file to write.

    Raises ValueError for fewer than two widths, or an unknown method.
    """
    as_whole("repeats", repeats)
    tell_of_a_cpu(size)
    if len(set(widths)) < 2:
        raise ValueError(f"widths are {list(widths)}, expected at least two")
    facts = {"size": size, "tile": tile, "window": window}

    def measure() -> Iterator[Row]:
        for width in widths:
            bench = Bench(size, tile, grid=(5, 8, width) if size == "tiny" else (21, 45, width))
            for case in bench.ours(window, methods):
                case.seconds["module"] = clock(case.module, repeats, 0.3 if bench.device.type == "cuda" else 0.0)
                yield {**case.row(), "grid": bench.grid, "tokens": bench.tokens}

    measured = report(measure(), out, COLUMNS, **facts)
    exponents = {method: exponent([row for row in measured if row["method"] == method]) for method in methods}
    for method, power in exponents.items():
        print(f"{method}: time grows as tokens to the power of {power:.3f}")
    write_report(out, measured, **facts, exponents=exponents)


def exponent(rows: list[Row]) -> float:
    """The slope of log time over log tokens, by least squares."""
    return linear_regression([log(row["tokens"]) for row in rows], [log(row["module_ms"]) for row in rows]).slope
