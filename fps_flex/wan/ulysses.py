"""Ulysses: each process has a part of the slots and all heads, and in attention all slots and a part of the heads.

Attention meets whole heads, so that it computes what one process would, bit for bit, and knows nothing of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from ..algorithm import Plan
from ..attention import FPSAttention
from .collectives import Group, Lengths, exchange, gather
from .sequence import Attend, Call

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Ulysses:
    """group: the processes that share each video."""

    group: Group

    def share(self, call: Call) -> UlyssesShare:
        """Raises ValueError as `cut_slots`."""
        return UlyssesShare(call, cut_slots(call, self.group.size), self.group)


@dataclass(frozen=True)
class UlyssesShare:
    """lengths: slots of each process, one part after the other."""

    call: Call
    lengths: Lengths
    group: Group

    def attend(self, layer: int) -> Attend:
        plan = self.call.plan.of_layer(layer)
        return partial(
            attend_to_own_heads, attention=self.call.attention, plan=plan, lengths=self.lengths, group=self.group
        )

    def split(self, x: Float[Tensor, "..."], dim: int = 1) -> Float[Tensor, "..."]:
        # a copy, so that the others' slots don't stay in memory
        return x.narrow(dim, sum(self.lengths[: self.group.rank]), self.lengths[self.group.rank]).clone()

    def gather(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b slots d"]:
        return gather(x, self.lengths, self.group)


def cut_slots(call: Call, processes: int) -> Lengths:
    """Slots of each process: whole blocks, as evenly as they go.

    Raises ValueError unless the processes divide the heads, and where there are more processes than blocks.
    """
    if call.heads % processes:
        fitting = ", ".join(str(n) for n in range(2, call.heads + 1) if call.heads % n == 0)
        raise ValueError(
            f"Ulysses deals {call.heads} heads out to {processes} processes, expected a number that divides them: take "
            f"{fitting}, or halo, which takes any number of heads"
        )
    layout = call.plan.layout
    blocks = layout.slots // layout.block
    if blocks < processes:
        raise ValueError(
            f"{processes} processes share {blocks} blocks of {layout.block} slots (grid {layout.grid}), expected at "
            "least one each: take fewer processes, or a smaller block"
        )
    return tuple(len(part) * layout.block for part in torch.arange(blocks).tensor_split(processes))


def attend_to_own_heads(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s d"],
    attention: FPSAttention,
    plan: Plan,
    lengths: Lengths,
    group: Group,
) -> Float[Tensor, "b h s d"]:
    """Attention over all slots, of which this process has its own, with all heads, before and after."""
    own = (lengths[group.rank],) * group.size
    rows = rearrange(torch.stack([q, k, v]), "three b (p h) s d -> (p s) three b h d", p=group.size)
    q, k, v = exchange(rows, lengths, own, group).permute(1, 2, 3, 0, 4).unbind()
    out = rearrange(attention(q, k, v, plan), "b h s d -> s b h d")
    return rearrange(exchange(out, own, lengths, group), "(p s) b h d -> b (p h) s d", p=group.size)
