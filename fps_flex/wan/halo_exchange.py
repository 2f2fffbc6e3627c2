"""How K and V of tiles at the border of a process's share travel, and their gradients back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor

from ..engines import FLOAT8
from ..quant import CodeFormat
from .collectives import Group, Lengths, all_to_all

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

NAN_IN_INT8 = -128.0


@dataclass(frozen=True)
class Wire:
    """How K and V travel.

    sent, received: slots to and from each process. moves: whether any process gets any. as_bytes: they are codes, a
    byte each. codes: K's kind; V's are e4m3.
    """

    sent: Lengths
    received: Lengths
    group: Group
    moves: bool
    as_bytes: bool
    codes: CodeFormat = "e4m3"


def receive(
    k: Float[Tensor, "b h s d"], v: Float[Tensor, "b h s d"], sent_rows: Tensor, wire: Wire
) -> tuple[Float[Tensor, "b h kv d"], Float[Tensor, "b h kv d"]]:
    """K and V of the own slots, and behind them those of the others."""
    return _Receive.apply(k, v, sent_rows, wire) if wire.moves else (k, v)


class _Receive(torch.autograd.Function):
    """What each process computes for the others' K and V goes back to these in the backward, and is added there."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, sent_rows: Tensor, wire: Wire) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(sent_rows)
        ctx.wire, ctx.dtype = wire, k.dtype
        pair = (to_bytes(k, wire.codes), to_bytes(v, "e4m3")) if wire.as_bytes else (k, v)
        own = [rearrange(x, _SLOTS_FIRST) for x in pair]
        sent = torch.stack([x.index_select(0, sent_rows) for x in own], dim=1)
        others = all_to_all(sent, wire.received, wire.sent, wire.group).unbind(1)
        k, v = (rearrange(torch.cat(both), _SLOTS_THIRD) for both in zip(own, others, strict=True))
        if wire.as_bytes:
            k, v = from_bytes(k, wire.codes, ctx.dtype), from_bytes(v, "e4m3", ctx.dtype)
        return k, v

    @staticmethod
    def backward(ctx: Any, k_grad: Tensor, v_grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (sent_rows,), wire = ctx.saved_tensors, ctx.wire
        lengths = [k_grad.shape[2] - sum(wire.received), sum(wire.received)]
        grads = [rearrange(x, _SLOTS_FIRST).split(lengths) for x in (k_grad, v_grad)]
        others = torch.stack([x for _, x in grads], dim=1)
        back = all_to_all(others, wire.sent, wire.received, wire.group).unbind(1)
        added = (_add(own, sent_rows, rows, wire.sent) for (own, _), rows in zip(grads, back, strict=True))
        k, v = (rearrange(x, _SLOTS_THIRD) for x in added)
        return k, v, None, None


_SLOTS_FIRST, _SLOTS_THIRD = "b h s d -> s b h d", "s b h d -> b h s d"


def to_bytes(codes: Float[Tensor, "..."], kind: CodeFormat) -> UInt8[Tensor, "..."]:
    """int8 has no NaN: -128 stands for it, which is no code."""
    if kind == "int8":
        return codes.nan_to_num(NAN_IN_INT8).to(torch.int8).view(torch.uint8)
    return codes.to(FLOAT8).view(torch.uint8)


def from_bytes(held: UInt8[Tensor, "..."], kind: CodeFormat, dtype: torch.dtype) -> Float[Tensor, "..."]:
    if kind == "int8":
        codes = held.view(torch.int8).to(dtype)
        return codes.masked_fill(codes == NAN_IN_INT8, float("nan"))
    return held.view(FLOAT8).to(dtype)


def _add(
    own: Float[Tensor, "s b h d"], places: Tensor, rows: Float[Tensor, "r b h d"], lengths: Lengths
) -> Float[Tensor, "s b h d"]:
    """own, and to its rows at `places` those that came; in fp32 or finer. lengths: of the rows of each process."""
    total = own.to(torch.promote_types(own.dtype, torch.float32))
    for place, part in zip(places.split(lengths), rows.split(lengths), strict=True):  # each place once, so in one order
        total = total.index_add(0, place, part.to(total.dtype))
    return total.to(own.dtype)
