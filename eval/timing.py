"""Time, memory and the table of a measurement."""

from __future__ import annotations

import gc
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch

from train.whole import write_text


def find_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_once(work: Callable[[], Any]) -> float:
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


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
    """Print a Markdown table and write all as JSON, row by row as they are measured."""
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns), flush=True)
    measured: list[dict[str, Any]] = []
    for row in rows:
        measured.append(row)
        row["speedup"] = measured[0]["step_seconds"] / row["step_seconds"]
        cells = (f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name]) for name in columns)
        print("| " + " | ".join(cells) + " |", flush=True)
        if out:
            write_text(out, json.dumps({**_describe_machine(), "rows": measured}, indent=1) + "\n")


def _describe_machine() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    command = "python -m eval.bench " + " ".join(sys.argv[1:])
    return {"command": command, "device": device, "torch": torch.__version__, "lightning": L.__version__}
