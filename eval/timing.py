"""Time, memory and the report of a measurement, and what ran: the device, the versions, the checkout's commit."""

from __future__ import annotations

import gc
import logging
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from train.common.atomic import check_ours, write_json
from train.common.console import check_writable
from train.common.ranks import rank_and_world

from .markdown import head_of, line

Row = dict[str, Any]  # what was measured, by name

PACKAGES = ("triton", "lightning", "flash-attn-4", "torchao", "diffusers", "sageattention")
ROOT = Path(__file__).resolve().parent.parent
CPUS = Path("/proc/cpuinfo")

logger = logging.getLogger(__name__)


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
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else host_peak_gb()


def host_peak_gb() -> float:
    """Of the whole process's memory since it started."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def limit_memory(gpu_gb: float | None) -> None:
    """Let this process take no more of the GPU's memory; None lets it take all.

    Raises ValueError for more than there is.
    """
    if not torch.cuda.is_available():
        if gpu_gb is not None:
            logger.warning("gpu_gb is %g, and there is no GPU here: nothing is limited", gpu_gb)
        return
    total = torch.cuda.get_device_properties(0).total_memory / 1e9
    if gpu_gb is not None and gpu_gb > total:
        raise ValueError(f"gpu_gb is {gpu_gb:g}, expected at most the {total:.1f} of this GPU")
    torch.cuda.set_per_process_memory_fraction(1.0 if gpu_gb is None else gpu_gb / total)


def compare(rows: Iterable[Row]) -> Iterator[Row]:
    """With how many times as fast as the first row each is, by clips where a step takes several; rows of what failed
    as they are.
    """
    first = None
    for row in rows:
        if "step_seconds" not in row:
            yield row
            continue
        of_clip = row["step_seconds"] / row.get("clips", 1)
        first = first or of_clip
        yield {**row, "speedup": first / of_clip}


def report(rows: Iterable[Row], out: Path | None, columns: tuple[str, ...], **facts: Any) -> list[Row]:
    """Print a Markdown table and write all as JSON, row by row as they are measured; returns the rows.

    Of several processes that measure together the first one says it. facts: what else the JSON says. Raises ValueError
    before the first row where it can't be written.
    """
    if rank_and_world()[0] > 0:
        return [*rows]
    check_out(out)
    print(head_of(columns), flush=True)
    measured: list[Row] = []
    for row in rows:
        measured.append(row)
        print(line_of(row, columns), flush=True)
        write_report(out, measured, **facts)
    return measured


def check_some(**choices: tuple[str, ...]) -> None:
    """Raises ValueError for an empty one; it is named."""
    for name, values in choices.items():
        if not values:
            raise ValueError(f"{name} is empty, expected at least one")


def check_out(out: Path | None, beside: dict[str, str] | None = None) -> None:
    """Raises ValueError where a report can't be written, or something is there that is none.

    beside: what is written with it, by its ending, and what of it is in its first bytes.
    """
    beside = beside or {}
    if out is None:
        return
    if not out.name or out.suffix in beside:
        raise ValueError(f"--out is {out}, expected the name of a JSON file")
    check_writable(out.parent, "--out")
    check_ours(out, '"command":')
    for suffix, mark in beside.items():
        check_ours(out.with_suffix(suffix), mark)


def write_report(out: Path | None, rows: list[Row], **facts: Any) -> None:
    """JSON with the command, the device and the versions; nothing where `out` is None."""
    if out:
        write_json(out, {**describe_machine(), **facts, "rows": rows})


def line_of(row: Row, columns: tuple[str, ...]) -> str:
    cells = (row.get(name, "") for name in columns)
    return line(f"{x:.3g}" if isinstance(x, float) else x for x in cells)


def describe_machine() -> dict[str, str]:
    facts = {"command": find_command(), "device": name_device(), "torch": torch.__version__}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            facts[name] = version(name)
    return facts


def find_command() -> str:
    """What started this process, or all processes under torchrun, which runs each by a line of its own."""
    words, environment = sys.orig_argv[1:], os.environ
    if "TORCHELASTIC_RUN_ID" not in environment:
        return shlex.join(["python", *words])
    launch = ["torchrun", "--nproc_per_node", environment["LOCAL_WORLD_SIZE"]]
    if (hosts := environment.get("GROUP_WORLD_SIZE", "1")) != "1":
        launch += ["--nnodes", hosts]
    words = words[1:] if words[:1] == ["-u"] else words
    if words[:1] == ["-m"]:
        return shlex.join([*launch, "-m", "--", *words[1:]])
    if words and not words[0].startswith("-"):  # a script
        return shlex.join([*launch, "--", *words])
    return shlex.join([*launch, "--no-python", "--", "python", *words])


def name_device() -> str:
    """Of the GPU in use, or else of the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = CPUS.read_text().splitlines() if CPUS.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (named or [platform.processor()])[0] or platform.machine()


@cache
def find_commit() -> str | None:
    """Of the checkout that this runs from, with "+changes" where tracked files differ; None where it is no checkout."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:  # without locks, so that processes side by side don't meet at one
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"})
    except OSError:
        return None
    return done.stdout.strip() or None
