"""A process's part of a tensor, and what it writes of a checkpoint that several write together; fps_flex.wan.trained
reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fps_flex.wan.files import Spec
from fps_flex.wan.trained import META, OPTIMIZER, STATES, shard_name
from fps_flex.wan.writing import write_file


def local_part(tensor: Tensor) -> Tensor:
    """What of a tensor is on this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shared_as(local: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor, as part of one that is shared out as another is; it stays on its device.

    (`DTensor.from_local` would move it to the mesh's.)
    """
    return DTensor(local, like._spec, requires_grad=False) if isinstance(like, DTensor) else local


def write_share(checkpoint: dict[str, Any], folder: Path, rank: int, world: int) -> None:
    """This process's rows of all tensors, of which one at a time is in memory; the first process writes the rest too.

    checkpoint: whose tensors are shared out by their rows, or whole and the same on all processes.
    """
    tensors = {name: x for name, x in _tensors(checkpoint).items() if isinstance(x, DTensor) or rank == 0}
    parts = {name: local_part(x) for name, x in tensors.items()}
    specs = {name: Spec(tuple(x.shape), x.dtype) for name, x in parts.items()}
    write_file(folder / shard_name(rank + 1, world), specs, parts.__getitem__)
    if rank == 0:
        plain = {name: value for name, value in checkpoint.items() if name not in STATES}
        plain["optimizer_states"] = [x | {"state": {}} for x in checkpoint["optimizer_states"]]
        torch.save(plain | {"shards": world}, folder / META)


def _tensors(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    tensors = {f"{state}/{name}": x for state in STATES for name, x in checkpoint.get(state, {}).items()}
    (optimizer,) = checkpoint["optimizer_states"]
    for index, momentum in optimizer["state"].items():
        tensors |= {f"{OPTIMIZER}/{index}/{key}": x for key, x in momentum.items()}
    return tensors


def reason_of(error: Exception) -> str:
    """Why something can't be written or read, in a few words; torch's writer makes a RuntimeError of a full disk."""
    cause = error if isinstance(error, OSError) else error.__context__
    return getattr(cause, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
