"""What DDP's own way with compiled graphs would do to a block's."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.backends.distributed import DDPOptimizer
from torch.nn.parallel import DistributedDataParallel

from fps_flex.compile import compiled
from tests.helpers.together import free_ports


class InBlocks(nn.Module):
    """More parameters than DDP's first bucket of gradients holds."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(512, 512) for _ in range(3)))
        self.run = compiled(lambda x: self.layers(x))

    def forward(self, x):
        return self.run(x)


@pytest.fixture
def alone():
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_ports(1)[0]}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.compiles
def test_a_graph_stays_whole_inside_ddp(alone, monkeypatch):
    cut = []
    real = DDPOptimizer.compile_fn
    monkeypatch.setattr(DDPOptimizer, "compile_fn", lambda *args, **options: cut.append(1) or real(*args, **options))
    model, x = InBlocks(), torch.randn(2, 512)
    torch.testing.assert_close(DistributedDataParallel(model)(x), model.layers(x))
    assert not cut
