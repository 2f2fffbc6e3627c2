"""Processes as rows of a mesh, (data, sequence): those of a row train on one clip together."""

from __future__ import annotations

from datetime import timedelta

import lightning as L
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from fps_flex.wan import Wan
from fps_flex.wan.auto import Exchange, sequence_over

DATA, SEQUENCE = "data_parallel", "tensor_parallel"  # as Lightning names a mesh's dimensions


class InSequences:
    """A strategy, whose processes are such a mesh once they have found each other.

    sequence: processes in a row; their number must be a multiple of it. exchange: how they meet in attention.
    """

    device_mesh: DeviceMesh
    sequence: int
    exchange: Exchange

    def join(self, model: Wan) -> None:
        """Have a model share its tokens with those of its row."""
        if self.sequence > 1:
            model.sequence = sequence_over(self.device_mesh[SEQUENCE].get_group(), self.exchange)


class Replicated(InSequences, DDPStrategy):
    """DDP: each process holds all of the model. timeout: of all that they wait for each other in."""

    def __init__(
        self, sequence: int = 1, exchange: Exchange = "auto", timeout: timedelta | None = default_pg_timeout
    ) -> None:
        super().__init__(timeout=timeout, gradient_as_bucket_view=True)  # else gradients are there twice
        self.sequence, self.exchange = sequence, exchange

    def setup_environment(self) -> None:
        super().setup_environment()
        rows = self.world_size // self.sequence
        self.device_mesh = init_device_mesh(
            self.root_device.type, (rows, self.sequence), mesh_dim_names=(DATA, SEQUENCE)
        )
        limit_waits(self._timeout, self.device_mesh)

    def _setup_model(self, model: Module) -> DistributedDataParallel:
        """It would move all of a batch to the GPU, and noise levels, which decide on the pass, are read on the CPU."""
        replica = super()._setup_model(model)
        replica.device_ids = None
        return replica


def limit_waits(timeout: timedelta | None, *meshes: DeviceMesh) -> None:
    """A mesh's groups have PyTorch's own limit, whatever the first group has."""
    for group in (group for mesh in meshes for group in mesh.get_all_groups()):
        _set_pg_timeout(timeout, group)


def place(trainer: L.Trainer) -> tuple[int, int]:
    """Which clips of a global batch are this process's: its data rank, and how many there are."""
    strategy = trainer.strategy
    if isinstance(strategy, InSequences):
        data = strategy.device_mesh[DATA]
        return data.get_local_rank(), data.size()
    return trainer.global_rank, trainer.world_size
