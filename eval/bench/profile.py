"""Where a layer's attention spends its time, kernel by kernel."""

from __future__ import annotations

from pathlib import Path

from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from fps_flex.checks import as_whole

from ..timing import check_out, report, wait, write_report
from .kernel import Bench
from .sizes import Size, Triple

COLUMNS = ("ms", "share", "calls", "kernel")


def profile(
    size: Size = "14B",
    window: Triple = (6, 6, 1),
    method: str = "power-of-two scales",
    tile: Triple | None = None,
    backward: bool = False,
    top: int = 20,
    out: Path | None = None,
) -> None:
    """The kernels of one call, raster to raster, after two that compile and warm up.

    Args:
        size: of the model whose heads and grid are taken.
        window: tiles that a query tile sees on (T, H, W).
        method: as `kernel` names them.
        tile: tokens of a tile on (T, H, W); as `kernel`'s.
        backward: the backward pass too.
        top: kernels listed, the slowest first.
        out: JSON file to write.
    """
    check_out(out)
    as_whole("top", top)
    bench = Bench(size, tile, backward)
    (case,) = bench.ours(window, (method,))
    work = case.module
    work()
    work()
    on_gpu = bench.device.type == "cuda"
    with torch_profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as record:
        work()
        wait()
    averages = [(x.self_device_time_total if on_gpu else x.self_cpu_time_total, x) for x in record.key_averages()]
    total = sum(microseconds for microseconds, _ in averages)
    rows = [
        {"ms": microseconds / 1000, "share": microseconds / total, "calls": x.count, "kernel": x.key[:100]}
        for microseconds, x in sorted(averages, key=lambda pair: pair[0], reverse=True)
    ]
    report(rows[:top], None, COLUMNS)
    write_report(out, rows, size=size, window=window, method=method, backward=backward)
