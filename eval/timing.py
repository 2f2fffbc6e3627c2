"""Time, memory and the table of a measurement."""

from __future__ import annotations

import gc
import json
import resource
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from train.common.atomic import write_text

from .machine import name_device
from .markdown import head_of, line

PACKAGES = ("triton", "lightning", "flash-attn-4", "torchao", "diffusers", "sageattention")


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_once(work: Callable[[], Any]) -> float:
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def clock(work: Callable[[], Any], repeats: int, warmup: float = 0.0) -> list[float]:
    """Seconds of each of `repeats` calls, after one that compiles and as many as take `warmup` seconds.

    On a GPU by its own events, with nothing between the calls.
    """
    started = time.perf_counter()
    time_once(work)
    while time.perf_counter() - started < warmup:
        time_once(work)
    if not torch.cuda.is_available():
        return [time_once(work) for _ in range(repeats)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    wait()
    return [a.elapsed_time(b) / 1000 for a, b in zip(events, events[1:], strict=False)]


def forget_peak() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: torch.device) -> float:
    """Of the GPU's memory, or on a CPU of the whole process's since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def report(rows: Iterator[dict[str, Any]], out: Path | None, columns: tuple[str, ...]) -> None:
    """As `tabulate`, with how many times as fast as the first row each is."""

    def compare() -> Iterator[dict[str, Any]]:
        first = None
        for row in rows:
            first = first or row["step_seconds"]
            yield {**row, "speedup": first / row["step_seconds"]}

    tabulate(compare(), out, columns)


def tabulate(rows: Iterator[dict[str, Any]], out: Path | None, columns: tuple[str, ...]) -> None:
    """Print a Markdown table and write all as JSON, row by row as they are measured."""
    print(head_of(columns), flush=True)
    measured: list[dict[str, Any]] = []
    for row in rows:
        measured.append(row)
        print(line_of(row, columns), flush=True)
        if out:
            write_json(out, {"rows": measured})


def line_of(row: dict[str, Any], columns: tuple[str, ...]) -> str:
    cells = (row.get(name, "") for name in columns)
    return line(f"{x:.3g}" if isinstance(x, float) else x for x in cells)


def write_json(out: Path, measured: dict[str, Any]) -> None:
    """With the command, the device and the versions."""
    write_text(out, json.dumps({**describe_machine(), **measured}, indent=1) + "\n")


def describe_machine() -> dict[str, str]:
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "command": "python " + shlex.join(sys.orig_argv[1:]),
        "device": name_device(),
        "torch": torch.__version__,
        **{name: version for name, version in versions.items() if version},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
