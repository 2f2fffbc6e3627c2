"""How several processes train together, as a user asks for it: with all of the model each, or with a share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed import is_torchelastic_launched

from fps_flex.checks import Triple, require
from fps_flex.wan import Wan
from fps_flex.wan.auto import choose_exchange
from fps_flex.wan.sequence import Call
from fps_flex.wan.ulysses import divisors

from .common.sharing import SequenceParallel

MOST_TIMEOUT = 30 * 86400.0  # seconds
STRATEGIES = ("auto", "ddp")


@dataclass(frozen=True)
class Parallel(SequenceParallel):
    """How several processes, which --trainer.devices or torchrun starts, share the work.

    Args:
        shard: whether each holds a share of the weights, their average, gradients and momenta (FSDP2; checkpoints are
            folders), or all of them (DDP); none shards where there are several processes, trainer.strategy is auto and
            all weights are trained, not a LoRA.
        timeout: seconds that a process waits for another before the run ends; more than its longest save.

    Raises ValueError for a sequence below 1 and a timeout that isn't above 0.
    """

    shard: bool | None = None
    timeout: float = 1800.0

    def __post_init__(self) -> None:
        require("parallel.sequence", self.sequence, least=1)
        require("parallel.timeout", self.timeout, above=0, most=MOST_TIMEOUT)


def is_sharded(shard: bool | None, strategy: Any, accelerator: str, devices: Any, num_nodes: int, lora: Any) -> bool:
    """lora: None where all weights are trained. Other arguments: as of `Parallel` and the trainer's."""
    if shard is not None:
        return shard
    return strategy == "auto" and lora is None and count_processes(accelerator, devices, num_nodes) > 1


def check_parallel(sharded: bool, parallel: Parallel, processes: int, strategy: Any) -> None:
    """Raises ValueError for what doesn't go together, and for processes that can't be shared out so."""
    sequence, exchange = parallel.sequence, parallel.exchange
    named = str(getattr(strategy, "class_path", ""))
    if named.endswith((".Sharding", ".Replicated")):
        raise ValueError(f"trainer.strategy is {named}, expected auto or ddp: --parallel sets it up")
    if not sharded and named.endswith("ModelParallelStrategy"):
        raise ValueError("trainer.strategy is ModelParallelStrategy, which shares out nothing by itself: leave it at "
                         "auto, with parallel.shard true")  # fmt: skip
    if sharded and strategy != "auto":
        raise ValueError(
            f"parallel.shard is true, which is a strategy, and trainer.strategy is {strategy}: leave it out"
        )
    if sequence > 1 and strategy not in STRATEGIES:
        raise ValueError(
            f"parallel.sequence is {sequence}, which needs trainer.strategy auto or ddp, and that is {strategy}"
        )
    if processes % sequence:
        raise ValueError(
            f"parallel.sequence is {sequence}, and there are {processes} processes: expected a multiple of it, by "
            "--trainer.devices or torchrun"
        )
    if exchange != "auto" and sequence == 1:
        raise ValueError(
            f"parallel.exchange is {exchange}, of processes that train on a clip together, and parallel.sequence is 1: "
            "set that to their number, or leave both out"
        )


def check_sequence(parallel: Parallel, model: Wan, grid: Triple, has_teacher: bool) -> None:
    """Raises ValueError where the processes of a sequence can't share clips of so many tokens on (T, H, W)."""
    if parallel.sequence == 1:
        return
    sigma, config = torch.zeros(1), model.config
    plan = model.attention.plan(grid, sigma)
    call = Call(model.attention, plan, sigma, config.heads, config.head_dim, torch.float32)
    try:
        choose_exchange(parallel.exchange, call, parallel.sequence)
    except ValueError as error:
        raise ValueError(f"parallel.sequence is {parallel.sequence}: {error}") from None
    if not has_teacher:
        return
    whole = "the teacher of model.objective distill attends to a whole clip as one tile"
    if parallel.exchange == "halo":
        raise ValueError(f"parallel.exchange is halo, and {whole}: take auto or ulysses")
    if config.heads % parallel.sequence:
        raise ValueError(
            f"parallel.sequence is {parallel.sequence}, and {whole}, which only Ulysses shares, by its {config.heads} "
            f"heads: take {divisors(config.heads)}"
        )


def describe_processes(sharded: bool, parallel: Parallel, processes: int) -> list[str]:
    """In a line how they share the work; in none where there is one."""
    if processes == 1:
        return []
    model = "a share of the model each" if sharded else "all of the model each"
    clips = f", {parallel.sequence} of them on a clip" if parallel.sequence > 1 else ""
    return [f"processes  {processes}, with {model}{clips}"]


def launched_as(devices: Any, num_nodes: int) -> tuple[Any, int]:
    """Devices on a machine, and machines: where torchrun started this process, as many as it says, unless told."""
    if not is_torchelastic_launched():
        return devices, num_nodes
    here, everywhere = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    devices, num_nodes = here if devices == "auto" else devices, everywhere // here if num_nodes == 1 else num_nodes
    if (asked := _count(devices, "auto") * num_nodes) != everywhere:
        raise ValueError(
            f"torchrun started {everywhere} processes, and trainer.devices {devices} on trainer.num_nodes {num_nodes} "
            f"are {asked}: leave both out"
        )
    return devices, num_nodes


def count_processes(accelerator: str, devices: Any, num_nodes: int) -> int:
    if is_torchelastic_launched():
        return int(os.environ["WORLD_SIZE"])
    return _count(devices, accelerator) * num_nodes


def _count(devices: Any, accelerator: str) -> int:
    """What makes no sense counts as one: Lightning says what is wrong with it."""
    if isinstance(devices, list):
        return len(devices)
    text = str(devices).strip()
    if text in ("auto", "-1"):
        return torch.cuda.device_count() if accelerator != "cpu" and torch.cuda.is_available() else 1
    if "," in text:
        return len([x for x in text.split(",") if x.strip()])
    return int(text) if text.isdigit() and int(text) else 1
