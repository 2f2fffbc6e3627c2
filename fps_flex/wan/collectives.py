"""What processes that share a video send each other. All of it can be compiled, and runs again under checkpointing.

A Group has PyTorch's name for them in place of its ProcessGroup, so that models can be copied and compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

Lengths = tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """The processes that share a video, and which of them this one is."""

    name: str
    rank: int
    size: int

    @classmethod
    def of(cls, group: dist.ProcessGroup) -> Group:
        return cls(group.group_name, group.rank(), group.size())


def all_to_all(x: Shaped[Tensor, "s ..."], received: Lengths, sent: Lengths, group: Group) -> Shaped[Tensor, "r ..."]:
    """The rows that each process has for this one, in the processes' order.

    sent, received: how many rows go to, and come from, each.
    """
    rows = functional.all_to_all_single(x.contiguous(), list(received), list(sent), cast(Any, group.name))
    return functional.wait_tensor(rows)


def all_max(x: Float[Tensor, "..."], group: Group) -> Float[Tensor, "..."]:
    """The largest of each value over the processes."""
    return functional.wait_tensor(functional.all_reduce(x.contiguous(), "max", cast(Any, group.name)))


def all_sum(x: Float[Tensor, "..."], group: Group) -> Float[Tensor, "..."]:
    """The sum of each value over the processes, without gradients."""
    return functional.wait_tensor(functional.all_reduce(x.contiguous(), "sum", cast(Any, group.name)))


class _Exchange(torch.autograd.Function):
    """all_to_all, whose gradients go back the way the rows came."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, received: Lengths, sent: Lengths, group: Group) -> Tensor:
        ctx.received, ctx.sent, ctx.group = received, sent, group
        return all_to_all(x, received, sent, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return all_to_all(grad, ctx.sent, ctx.received, ctx.group), None, None, None


def exchange(x: Float[Tensor, "s ..."], received: Lengths, sent: Lengths, group: Group) -> Float[Tensor, "r ..."]:
    """`all_to_all` with gradients."""
    return _Exchange.apply(x, received, sent, group)


class _Gather(torch.autograd.Function):
    """All parts, and in the backward the own part of what is the same on all processes, times their number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lengths: Lengths, group: Group) -> Tensor:
        ctx.lengths, ctx.group = lengths, group
        to_each = x.expand(group.size, *x.shape).flatten(0, 1)
        return all_to_all(to_each, lengths, (len(x),) * group.size, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.split(ctx.lengths)[ctx.group.rank] * ctx.group.size, None, None


def gather(x: Float[Tensor, "b s d"], lengths: Sequence[int], group: Group) -> Float[Tensor, "b slots d"]:
    """The parts of all processes along dim 1, in their order. lengths: of each part.

    All of them have the same loss afterwards, so that each of these has the same gradient. The backward gives a process
    its own part times their number: gradients of weights, averaged over all processes, are then those of one.
    """
    return _Gather.apply(x.transpose(0, 1), tuple(lengths), group).transpose(0, 1)
