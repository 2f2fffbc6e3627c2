"""FSDP2: each process holds a share of the rows of every parameter, and has a block whole only while it computes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from fps_flex.compile import compiled
from fps_flex.wan import Wan
from fps_flex.wan.auto import Exchange
from fps_flex.wan.casting import check_finite
from fps_flex.wan.model import Block
from fps_flex.wan.streamed import rows_of
from fps_flex.wan.trained import read_training_checkpoint

from .common.atomic import part_of, put_in_place, recover, remove
from .offloaded import OffloadedAdamW
from .optimizers import check_momentum
from .sequences import InSequences, limit_waits
from .shares import local_part, reason_of, shared_as, write_share

_compiled_forward = compiled(Block.forward)


class Together(ValueError):
    """What went wrong on one process, on all of them."""


class Sharding(InSequences, ModelParallelStrategy):
    """Parameters are shared out to all processes.

    timeout: of all that they wait for each other in. mesh: all processes, in one dimension.
    """

    mesh: DeviceMesh

    def __init__(
        self, sequence: int = 1, exchange: Exchange = "auto", timeout: timedelta | None = default_pg_timeout
    ) -> None:
        super().__init__(tensor_parallel_size=sequence, timeout=timeout)
        self.sequence, self.exchange = sequence, exchange

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes // self.sequence
        super().setup_environment()
        self.mesh = init_device_mesh(self.root_device.type, (self.world_size,), mesh_dim_names=("all",))
        limit_waits(self._timeout, self.device_mesh, self.mesh)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Of this process's shares: nothing is gathered."""
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return getattr(optimizer, "_optimizer", optimizer).state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """A folder, written by all processes, that appears whole or not at all; what goes wrong is in the
        `checkpoint_io`'s error, on all of them.
        """
        path = Path(filepath)
        part, rank = part_of(path), self.global_rank
        self.checkpoint_io.error = None
        try:
            with self._together():
                if rank == 0:
                    remove(part)
                    part.mkdir(parents=True)
            with self._together():
                write_share(checkpoint, part, rank, self.world_size)
            with self._together():
                if rank == 0:
                    put_in_place(part, path)
        except Together as error:
            self.checkpoint_io.error = f"{path} can't be written ({error})"
            if rank == 0:
                recover(path)
                remove(part)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """A file or a folder, whatever wrote it; of tensors this process's rows alone are read, when they are put."""
        return read_training_checkpoint(Path(checkpoint_path))

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        state, own = checkpoint["state_dict"], self.lightning_module.state_dict()
        if other := sorted(name for name in own.keys() ^ state.keys() if strict or name in state):
            raise ValueError(f"the checkpoint and this configuration differ in {other[0]}")
        with self._together():
            for name in state:
                rows = _own_rows(state, name, own[name])
                check_finite(f"the checkpoint's {name}", rows)
                own[name].to_local().copy_(rows)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        (optimizer,), (state,) = self.optimizers, checkpoint["optimizer_states"]
        (group,) = optimizer.param_groups
        shares = {index: _Shares(index, momentum, group["params"][index]) for index, momentum in state["state"].items()}
        with self._together():
            momenta = shares if isinstance(optimizer, OffloadedAdamW) else {i: x.placed() for i, x in shares.items()}
            optimizer.load_state_dict({"state": momenta, "param_groups": state["param_groups"]})

    @contextmanager
    def _together(self) -> Iterator[None]:
        """What fails on one process fails on all, with the first one's reason. Raises Together."""
        reason = None
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            reason = reason_of(error)
        reasons: list[Any] = [None] * self.world_size
        dist.all_gather_object(reasons, reason)
        if first := next((x for x in reasons if x), None):
            raise Together(first)


def shard(model: Wan, mesh: DeviceMesh) -> None:
    """Share a model's parameters out to the processes of a mesh, in place; they may lie on the meta device.

    Blocks that are to be compiled are so inside the hooks that gather them, in one graph for all.
    """
    for block in model.blocks:
        if model.compiled:
            block.forward = partial(_compiled_forward, block)
        fully_shard(block, mesh=mesh)
    model.compiled = False
    # else the embeddings stay whole, and no DTensors, after a forward without a backward
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def whole(tensor: Tensor) -> Tensor:
    """A tensor, gathered from all processes where it is shared out to them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_finite_everywhere(tensors: Iterable[Tensor]) -> bool:
    """Whether no process holds a NaN or an infinite value in its parts; all must ask."""
    parts = [local_part(x) for x in tensors]
    local = [x for x in parts if x.numel()] or [torch.zeros(1, device=parts[0].device)]
    largest = torch.stack(torch._foreach_norm(local, torch.inf)).amax()
    bad = (~largest.isfinite()).int()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(bad, op=dist.ReduceOp.MAX)
    return not bad


def put(model: nn.Module, name: str, tensor: DTensor, requires_grad: bool) -> None:
    """In the place of a parameter."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad))


def _own_rows(state: Mapping[str, Tensor], name: str, like: DTensor) -> Tensor:
    """This process's rows of a tensor that is whole in a state dict."""
    rank, count, rows = like.device_mesh.get_local_rank(), like.device_mesh.size(), like.shape[0]
    start = min(rank * -(-rows // count), rows)
    return rows_of(state, name, start, start + like.to_local().shape[0])


class _Shares(Mapping[str, Tensor]):
    """This process's rows of a parameter's momenta, on the host, each read when it is asked for; and the step."""

    def __init__(self, index: int, momentum: Mapping[str, Tensor], parameter: DTensor) -> None:
        self._index, self._momentum, self._parameter = index, momentum, parameter

    def __getitem__(self, key: str) -> Tensor:
        rows = self._momentum[key] if key == "step" else _own_rows(self._momentum, key, self._parameter)
        check_momentum(f"the checkpoint's {key} of parameter {self._index}", key, rows)
        return rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._momentum)

    def __len__(self) -> int:
        return len(self._momentum)

    def placed(self) -> dict[str, Tensor]:
        """All of them, beside their parameter."""
        device = self._parameter.device
        return {k: x if k == "step" else shared_as(x.to(device), self._parameter) for k, x in self.items()}
