"""The halo: each process has whole tiles, and gets the K and V of those of the others' that its windows reach.

K and V travel as e4m3 codes, a byte each. Their scales don't: the largest magnitudes of each process's tiles are
reduced first, so that every process knows all scales. Samples that aren't quantised make all travel in q's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor

from ..algorithm import (
    Coded,
    GraphKey,
    KernelCall,
    Plan,
    Scales,
    call_with_codes,
    encode,
    one_if_unquantized,
    run_call,
)
from ..attention import FPSAttention
from ..compile import compiled, materialize
from ..engines import FLOAT8, Chosen
from ..masks import pad_mask_mod, window_mask_mod
from ..quant import channel_amax, scale_of, scales_at_slots, tile_amax
from .collectives import Group, Lengths, all_max, all_to_all, gather
from .halo_tiles import HaloTiles, Windows, halo_tiles
from .sequence import Attend, Call

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Halo:
    """group: the processes that share each video. For the engines eager and triton."""

    group: Group

    def share(self, call: Call) -> HaloShare:
        """Raises ValueError for the engine flash, and as `deal_tiles`."""
        attention = without_flash(call.attention, call.plan.layout.device.type)
        schedule, layout = attention.step_schedule, call.plan.layout
        regimes = regimes_in_force(call)
        tiles = halo_tiles(layout, tuple(schedule.windows(layout.tiles)), frozenset(regimes), self.group)
        index = torch.tensor(regimes, device=layout.device)
        lists = tiles.lists.pick(index)
        plan = replace(
            call.plan,
            oracle_block_mask=lists.block_mask(
                tiles.own, window_mask_mod(tiles.own, tiles.windows[index], tiles.held), tiles.held
            ),
            kernel_block_mask=lists.block_mask(tiles.own, pad_mask_mod(tiles.held), tiles.held),
        )
        wire = Wire(tiles.sent, tiles.received, self.group, tiles.moves, all_quantized(call))
        return HaloShare(partial(attend, attention=attention, plan=plan, tiles=tiles, wire=wire), tiles, self.group)


@dataclass(frozen=True)
class HaloShare:
    attend: Attend
    tiles: HaloTiles
    group: Group

    def split(self, x: Float[Tensor, "..."], dim: int = 1) -> Float[Tensor, "..."]:
        return x.index_select(dim, self.tiles.own.chosen)

    def gather(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b slots d"]:
        return gather(x, self.tiles.lengths, self.group).index_select(1, self.tiles.place)


@dataclass(frozen=True)
class Wire:
    """How K and V travel.

    sent, received: slots to and from each process. moves: whether any process gets any. as_bytes: they are codes, a
    byte each.
    """

    sent: Lengths
    received: Lengths
    group: Group
    moves: bool
    as_bytes: bool


def regimes_in_force(call: Call) -> list[int]:
    """The index of each sample's regime. Waits for a GPU where sigma is on one."""
    return call.attention.step_schedule.regime_index(call.sigma).tolist()


def windows_in_force(call: Call) -> Windows:
    windows = call.attention.step_schedule.windows(call.plan.layout.tiles)
    return tuple(windows[i] for i in sorted(set(regimes_in_force(call))))


def all_quantized(call: Call) -> bool:
    regimes = call.attention.step_schedule.regimes
    return all(regimes[i].granularity is not None for i in regimes_in_force(call))


@lru_cache(maxsize=16)
def without_flash(attention: FPSAttention, device: str) -> FPSAttention:
    """With auto, on a GPU, narrowed to triton. Raises ValueError for flash."""
    if attention.engine == "flash":
        raise ValueError(
            "engine is flash, the halo's keys need eager or triton: take engine triton or auto, or ulysses"
        )
    return replace(attention, engine="triton") if attention.engine == "auto" and device == "cuda" else attention


def attend(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s d"],
    attention: FPSAttention,
    plan: Plan,
    tiles: HaloTiles,
    wire: Wire,
) -> Float[Tensor, "b h s d"]:
    """Attention of this process's slots to all that their windows reach. plan: with BlockMasks of these."""
    run = _attend if attention.runs_inline(q) else _compiled_attend
    return run(attention.graph_key, attention.engine_for(q), q, k, v, plan, tiles, wire)


def _attend(
    key: GraphKey, engine: Chosen, q: Tensor, k: Tensor, v: Tensor, plan: Plan, tiles: HaloTiles, wire: Wire
) -> Float[Tensor, "b h s d"]:
    return run_call(engine, _prepare(key, q, k, v, plan, tiles, wire), plan.block_mask(engine), q.dtype)


_compiled_attend = compiled(_attend)


def _prepare(key: GraphKey, q: Tensor, k: Tensor, v: Tensor, plan: Plan, tiles: HaloTiles, wire: Wire) -> KernelCall:
    """`algorithm.prepare`, with the others' K and V behind the own ones."""
    if not key.quantizes:
        return KernelCall(q, *receive(k, v, tiles.sent_rows, wire))
    q_scale, k_scale, v_scale = find_scales(key, q, k, v, plan, tiles, wire.group)
    own = encode(key, q, k, v, plan, (q_scale, k_scale[:, :, : tiles.own.slots], v_scale))
    k, v = receive(own.k, own.v, tiles.sent_rows, wire)
    coded = Coded(own.q, k, v, own.q_scale, one_if_unquantized(key, k_scale, plan), own.v_scale)
    return call_with_codes(key, coded) if key.has_score_mod else multiply(coded)


def find_scales(key: GraphKey, q: Tensor, k: Tensor, v: Tensor, plan: Plan, tiles: HaloTiles, group: Group) -> Scales:
    """`algorithm.find_scales` over all processes: Q's at the own slots, K's at all that this process holds."""
    amax = torch.cat([tile_amax(q, tiles.own), tile_amax(k, tiles.own), channel_amax(v, tiles.own).squeeze(2)], -1)
    count = plan.groups.shape[1]
    of_q, of_k, of_v = all_max(amax.float(), group).split([count, count, v.shape[-1]], dim=-1)
    q_scale = scales_at_slots(of_q, tiles.own, plan.groups, key.scale_format)
    k_scale = scales_at_slots(of_k, tiles.held, plan.groups, key.scale_format)
    return q_scale, k_scale, materialize(scale_of(of_v.unsqueeze(2), key.scale_format))


def multiply(coded: Coded) -> KernelCall:
    """Codes times their scales, powers of two, which is exact; as `algorithm.fold` does before anything travels."""
    pairs = ((coded.q, coded.q_scale), (coded.k, coded.k_scale), (coded.v, coded.v_scale))
    q, k, v = (codes * scale.to(codes.dtype) for codes, scale in pairs)
    return KernelCall(q, k, v)


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
        own = _slots_first(*(x.to(FLOAT8).view(torch.uint8) if wire.as_bytes else x for x in (k, v)))
        others = all_to_all(own.index_select(0, sent_rows), wire.received, wire.sent, wire.group)
        k_held, v_held = _slots_last(torch.cat([own, others]))
        if wire.as_bytes:
            k_held, v_held = (x.view(FLOAT8).to(ctx.dtype) for x in (k_held, v_held))
        return k_held, v_held

    @staticmethod
    def backward(ctx: Any, k_grad: Tensor, v_grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (sent_rows,), wire = ctx.saved_tensors, ctx.wire
        grad = _slots_first(k_grad, v_grad)
        count = sum(wire.received)
        own, others = grad.split([len(grad) - count, count])
        parts = all_to_all(others, wire.sent, wire.received, wire.group).split(wire.sent)
        total = own.to(torch.promote_types(ctx.dtype, torch.float32))
        for rows, part in zip(sent_rows.split(wire.sent), parts, strict=True):  # no row is twice in one part
            total = total.index_add(0, rows, part.to(total.dtype))
        return *_slots_last(total.to(ctx.dtype)), None, None


def _slots_first(k: Tensor, v: Tensor) -> Tensor:
    return rearrange(torch.stack([k, v]), "two b h s d -> s two b h d")


def _slots_last(kv: Tensor) -> tuple[Tensor, Tensor]:
    k, v = rearrange(kv, "s two b h d -> two b h s d").unbind()
    return k, v
