"""Processes under torchrun that are measured together, beside one of them alone, and what they send each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from fps_flex import FPSAttention
from fps_flex.checks import as_whole
from fps_flex.wan import Wan, WanConfig
from fps_flex.wan.traffic import halo_traffic, ulysses_traffic
from train.common.ranks import rank_and_world
from train.common.work import PATIENCE, compute_dtype, find_device

from .sizes import Triple, call_at, levels_of

Way = Literal["one", "shard", "ulysses", "halo"]
Result = TypeVar("Result")

TRAFFIC = {"ulysses": ulysses_traffic, "halo": halo_traffic}
SIZES = {"c10::BFloat16": 2, "float": 4, "unsigned char": 1}  # of the dtypes that travel, as a trace names them


@dataclass(frozen=True)
class Processes:
    """sequence: how many of them share a clip where clips are shared. talk: they meet over the CPU, where one that
    waits takes nothing of a GPU; None of one process.
    """

    rank: int = 0
    count: int = 1
    sequence: int = 1
    talk: dist.ProcessGroup | None = field(default=None, repr=False)

    def gather(self, value: Result) -> list[Result]:
        """Each one's value, on all of them."""
        values: list[Any] = [value] * self.count
        if self.talk is not None:
            dist.all_gather_object(values, value, group=self.talk)
        return values

    def first_alone(self, work: Callable[[], Iterable[Result]]) -> list[Result]:
        """What the first process's work gives while the others wait; these get an empty list."""
        result = [*work()] if self.rank == 0 else []
        self.gather(None)
        return result

    def most(self, **values: float) -> dict[str, Any]:
        """The largest of each value over the processes, and beside it those of each."""
        each = {name: self.gather(value) for name, value in values.items()}
        return {name: max(x) for name, x in each.items()} | {f"all_{name}": x for name, x in each.items()}

    def clips(self, way: Way) -> int:
        """That a step takes."""
        return {"one": 1, "shard": self.count}.get(way, self.count // self.sequence)

    def name(self, way: Way) -> str:
        return f"{way} {self.sequence}" if way in TRAFFIC else f"{way} {self.count}" if way == "shard" else way


def join(ways: Sequence[Way], sequence: int | None, command: str) -> Processes:
    """This process among those of a measurement.

    sequence: None puts all of them on a clip. command: as it is called under torchrun, for a line that says how.
    Raises ValueError where there are too few, or a number that sequences don't divide.
    """
    rank, count = rank_and_world()
    if count == 1:
        if several := [way for way in ways if way != "one"]:
            raise ValueError(
                f"parallel is {several[0]}, of several processes, and there is one: torchrun --nproc_per_node 2 -m -- "
                f"eval.bench {command} ..."
            )
        return Processes()
    sequence = count if sequence is None else as_whole("sequence", sequence)
    if count % sequence:
        raise ValueError(f"sequence is {sequence}, and there are {count} processes: expected a multiple of it")
    find_device()
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return Processes(rank, count, sequence, dist.new_group(backend="gloo", timeout=PATIENCE))


def check_exchanges(
    ways: Sequence[Way], attentions: Iterable[FPSAttention], config: WanConfig, grid: Triple, processes: Processes
) -> None:
    """Raises ValueError where a way can't share out what one of the attentions does, before anything is measured."""
    for attention, way in product(attentions, [way for way in ways if way in TRAFFIC]):
        for level in levels_of(attention, grid):
            try:
                TRAFFIC[way](call_at(attention, grid, level.sigma, config, torch.float32), processes.sequence)
            except ValueError as error:
                raise ValueError(f"{way} by a sequence of {processes.sequence}: {error}") from None


@dataclass
class Exchanged:
    """bytes: that attention brought this process from the others while it was counted; None before."""

    bytes: int | None = None

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Of all layers, forward and backward, compiled or not: as PyTorch's profiler meets them."""
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True, acc_events=True) as traced:
            yield
        with TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            traced.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
        self.bytes = sum(_received(x["args"]) for x in events if x.get("name") == "c10d::alltoall_base_")


def _received(event: dict[str, Any]) -> int:
    """Bytes from other processes of one all-to-all: output and input, group, rows from and to each process."""
    shape, dtype, rows = event["Input Dims"][0], event["Input type"][0], json.loads(event["Concrete Inputs"][3])
    if len(shape) < 4:  # not of heads: the model's output, once at its end
        return 0
    of_row = torch.Size(shape[1:]).numel() * SIZES[dtype]
    return (sum(rows) - rows[dist.get_rank() % len(rows)]) * of_row


def predict_step(
    model: Wan, teachers: Sequence[Wan], grid: Triple, sigma: float, way: Way, processes: Processes
) -> int:
    """Bytes that a training step brings this process in attention, by traffic.py.

    A layer of the model runs forward twice, as it is recomputed, and backward; a teacher's forward, by Ulysses.
    """
    forward, backward = predict(model, grid, sigma, way, processes)
    return 2 * forward + backward + sum(predict(x, grid, sigma, "ulysses", processes)[0] for x in teachers)


def predict(model: Wan, grid: Triple, sigma: float, way: Way, processes: Processes) -> tuple[int, int]:
    """Bytes that all layers bring this process in attention, forward and backward, by traffic.py."""
    rank, config, device = processes.rank % processes.sequence, model.config, find_device()
    dtype = model.patch_embedding.weight.dtype if device.type == "cpu" else compute_dtype(device)  # autocast's
    traffic = TRAFFIC[way](call_at(model.attention, grid, sigma, config, dtype), processes.sequence)
    return config.layers * traffic.forward[rank], config.layers * traffic.backward[rank]
