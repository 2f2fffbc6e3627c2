"""Time against the number of tokens, under a window of fixed size."""

from __future__ import annotations

from math import log
from pathlib import Path
from statistics import linear_regression
from typing import Any

from train.common.console import check_writable
from train.common.work import find_device

from ..markdown import head_of
from ..timing import clock, line_of, write_json
from .kernel import Bench
from .sizes import CONFIGS, Size, Triple, block_of

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
    if len(set(widths)) < 2:
        raise ValueError(f"widths are {list(widths)}, expected at least two")
    if out:
        check_writable(out.parent, "--out")
    device = find_device()
    frames, rows = (5, 8) if size == "tiny" else (21, 45)
    print(head_of(COLUMNS), flush=True)
    measured: list[dict[str, Any]] = []
    for width in widths:
        grid, config = (frames, rows, width), CONFIGS[size]
        bench = Bench(device, config.heads, config.head_dim, grid, tile, block_of(size), backward=False)
        cases = list(bench.ours(window))
        unknown = set(methods) - {case.method for case in cases}
        if unknown or not methods:
            known = ", ".join(case.method for case in cases)
            raise ValueError(f"methods are {', '.join(methods) or 'empty'}, expected some of {known}")
        for case in cases:
            if case.method not in methods:
                continue
            case.seconds["module"] = clock(case.module, repeats, 0.3 if device.type == "cuda" else 0.0)
            row = {**case.row(), "grid": bench.grid, "tokens": bench.tokens}
            measured.append(row)
            print(line_of(row, COLUMNS), flush=True)
        del bench
    exponents = {method: exponent([row for row in measured if row["method"] == method]) for method in methods}
    for method, power in exponents.items():
        print(f"{method}: time grows as tokens to the power of {power:.3f}")
    if out:
        write_json(out, {"size": size, "tile": tile, "window": window, "exponents": exponents, "rows": measured})


def exponent(rows: list[dict[str, Any]]) -> float:
    """The slope of log time over log tokens, by least squares."""
    return linear_regression([log(row["tokens"]) for row in rows], [log(row["module_ms"]) for row in rows]).slope
