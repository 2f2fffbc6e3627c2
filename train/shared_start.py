"""The start of a model that processes share: built without values, shared out, then filled tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fps_flex import FPSAttention
from fps_flex.wan import Wan, WanConfig
from fps_flex.wan.base import DTYPES
from fps_flex.wan.lora import add_adapter, below_adapter, trained
from fps_flex.wan.weights import Weights, build_empty, fill

from .building import Making, read_adapter_start
from .sharding import Sharding, put, shard


@dataclass(frozen=True)
class Start:
    """weights: None for random ones. random_state: of the generator when the model was built."""

    weights: Weights | None
    making: Making
    random_state: Tensor

    def fill(self, model: Wan, device: torch.device) -> None:
        """With the values that one process would begin with. Raises ValueError as `fill`."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.random_state)
            # all of it at once, on each process: who begins with random weights has a small model
            values = (
                Wan(model.config, model.attention).state_dict().items()
                if self.weights is None
                else self.weights.stream()
            )
            placed = ((below_adapter(model, name), tensor) for name, tensor in values)
            fill(model, placed, device, DTYPES[self.making.base])
            if self.making.lora:
                fill(model, self._adapter(model).items(), device, torch.float32)

    def _adapter(self, model: Wan) -> dict[str, Tensor]:
        given = read_adapter_start(self.making, self.weights, model.config)
        return given or new_adapter(model.config, self.making)


def share_out(start: Start, strategy: Sharding, model: Wan, average: Wan | None, teachers: Iterable[Wan]) -> None:
    """A model, its average and its teacher, which are on the meta device, to all processes."""
    for part in filter(None, (model, average, *teachers)):
        shard(part, strategy.mesh)
    start.fill(model, strategy.root_device)
    if average is not None:
        take_from(average, model)
    for teacher in teachers:
        if start.making.lora:
            take_from(teacher, model)
        else:
            fill(teacher, start.weights.stream(), strategy.root_device, torch.bfloat16)


def take_from(model: Wan, source: Wan) -> None:
    """Give a model another's values: of what that trains a copy, of what it doesn't the same memory."""
    for name, _ in list(model.named_parameters()):
        own = source.get_parameter(below_adapter(source, name))
        put(model, name, own.detach().clone() if own.requires_grad else own.detach(), requires_grad=False)


def new_adapter(config: WanConfig, making: Making) -> dict[str, Tensor]:
    """The first values of a LoRA's matrices, drawn as beside real weights: here each is a number, seen as a matrix."""
    model = build_empty(config, FPSAttention("dense"))
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        number = torch.zeros((), dtype=DTYPES[making.base])
        setattr(model.get_submodule(owner), leaf, nn.Parameter(number.expand(parameter.shape), requires_grad=False))
    add_adapter(model, making.lora)
    return {name: parameter.detach() for name, parameter in trained(model).items()}
