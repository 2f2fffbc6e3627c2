"""Work that is shared out to processes: this one's device, waiting for the others, and progress."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .ranks import rank_and_world, speaks

Item = TypeVar("Item")
PATIENCE = timedelta(days=365)
FIRST_SAYS = 20.0  # seconds, of which a busy machine may need many
# what gloo says of a process that has ended, and what NCCL and the processes' store do
GLOO = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe")
OTHERS = ("remote process exited", "ncclRemoteError", "Failed to recv, got 0 bytes", "socket has failed to connect")


def wait_for_the_first() -> None:
    """Before a refusal is said: the first process mostly says the same, and its end ends this one before it does."""
    if not speaks():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which torchrun ends the others: nothing is left to say
        time.sleep(FIRST_SAYS)


def tells_of_a_lost_process(reason: str) -> bool:
    """Whether what gloo, NCCL or the processes' store says is that another one has ended."""
    words = GLOO + OTHERS if "gloo" in reason.lower() else OTHERS
    return any(said in reason for said in words)


def threads_beside(device: torch.device, environment: Mapping[str, str]) -> int | None:
    """Threads for what is left to the CPU, where a GPU does the work; None leaves them as they are.

    Two: threads for all cores spin between the small tensors that a step copies, and slow it down.
    """
    asked = any(environment.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    return None if device.type == "cpu" or asked else min(2, torch.get_num_threads())


def find_device() -> torch.device:
    """This process's GPU, which is made the current one, or the CPU. Beside a GPU this process has few threads."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", rank_and_world()[0]))
    device = torch.device("cuda", number % torch.cuda.device_count())  # also where processes share one
    torch.cuda.set_device(device)
    if threads := threads_beside(device, os.environ):
        torch.set_num_threads(threads)
    return device


def compute_dtype(device: torch.device) -> torch.dtype:
    """Of inference there."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def wait_for_all() -> None:
    """Until every process is here, however long the slowest takes; torchrun ends all of them when one fails."""
    if rank_and_world()[1] > 1:
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
        dist.barrier()


def leave_together(group: dist.ProcessGroup | None = None) -> None:
    """Meet once more, then part: a process that ends before the others have may be aborted by threads of its own."""
    with suppress(RuntimeError):  # one that is gone already
        dist.barrier(group)
    dist.destroy_process_group()


def progress_bar(enabled: bool = True) -> Progress:
    """For tasks whose descriptions say what is done, with the time that is left."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), console=Console(stderr=True), disable=not enabled,
    )  # fmt: skip


def for_each(title: str, items: list[Item], done: Callable[[Item], bool], work: Callable[[Item], None]) -> None:
    """Do the work that isn't done yet, shared out to the processes; returns when all of them are through."""
    rank, world = rank_and_world()
    todo = [item for item in items[rank::world] if not done(item)]
    with progress_bar(rank == 0 and bool(todo)) as progress:
        bar = progress.add_task(title, total=len(todo))
        gc.freeze()  # what is there already needn't be looked through below
        for item in todo:
            work(item)
            gc.collect()  # decoders lie in reference cycles: without this they pile up
            progress.advance(bar)
    wait_for_all()
