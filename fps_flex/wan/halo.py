"""The halo: each process has whole tiles, and gets the K and V of those of the others' that its windows reach.

K and V travel as codes, a byte each. Their scales don't: the largest magnitudes of each process's tiles are reduced
first, so that every process knows all scales, and before them the sums of K that its mean is of. Samples that aren't
quantised make all travel in q's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
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
    rotate,
    run_call,
)
from ..attention import FPSAttention
from ..compile import compiled, materialize
from ..engines import Chosen
from ..masks import pad_mask_mod, window_mask_mod
from ..quant import channel_amax, scale_of, scales_at_slots, tile_amax
from ..smoothing import centred_tile_amax, key_stats, mean_of_tokens
from .collectives import Group, all_max, all_sum, gather
from .halo_exchange import Wire, receive
from .halo_tiles import HaloTiles, SomeTiles, halo_tiles
from .sequence import Attend, Call

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Halo:
    """group: the processes that share each video."""

    group: Group

    def share(self, call: Call) -> HaloShare:
        """Tiles are dealt out for the layers that have no schedule of their own; all layers get theirs of these.

        Raises ValueError as `deal_tiles`.
        """
        in_force = frozenset(call.regimes)
        return HaloShare(call, halo_tiles(call.plan.layout, call.windows, in_force, self.group), self.group)


@dataclass(frozen=True)
class HaloShare:
    """call, tiles: of the layers that have no schedule of their own."""

    call: Call
    tiles: HaloTiles
    group: Group

    def attend(self, layer: int) -> Attend:
        call = self.call.in_layer(layer)
        if call is self.call:
            return self._attend
        dealt, in_force = frozenset(self.call.regimes), frozenset(call.regimes)
        return _attend_in(call, halo_tiles(call.plan.layout, call.windows, in_force, self.group, dealt), self.group)

    @cached_property
    def _attend(self) -> Attend:
        return _attend_in(self.call, self.tiles, self.group)

    def split(self, x: Float[Tensor, "..."], dim: int = 1) -> Float[Tensor, "..."]:
        return x.index_select(dim, self.tiles.own.chosen)

    def gather(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b slots d"]:
        return gather(x, self.tiles.lengths, self.group).index_select(1, self.tiles.place)


def _attend_in(call: Call, tiles: HaloTiles, group: Group) -> Attend:
    """Attention in a layer of a call. tiles: that this process has and gets in it."""
    index = torch.tensor(call.regimes).to(call.plan.layout.device, non_blocking=True)
    lists = tiles.lists.pick(index)
    plan = replace(
        call.plan,
        oracle_block_mask=lists.block_mask(
            tiles.own, window_mask_mod(tiles.own, tiles.windows[index], tiles.held), tiles.held
        ),
        kernel_block_mask=lists.block_mask(tiles.own, pad_mask_mod(tiles.held), tiles.held),
    )
    wire = Wire(tiles.sent, tiles.received, group, tiles.moves, call.is_quantized, call.attention.codes)
    return partial(attend, attention=call.attention, plan=plan, tiles=tiles, wire=wire)


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
    q, k = rotate(key, q, k, plan)
    scales = find_scales(key, q, k, v, plan, tiles, wire.group)
    own = encode(key, q, k, v, plan, replace(scales, k=scales.k[:, :, : tiles.own.slots]))
    k, v = receive(own.k, own.v, tiles.sent_rows, wire)
    coded = Coded(own.q, k, v, own.q_scale, one_if_unquantized(key, scales.k, plan), own.v_scale)
    return call_with_codes(key, coded) if key.has_score_mod else multiply(coded)


def find_scales(key: GraphKey, q: Tensor, k: Tensor, v: Tensor, plan: Plan, tiles: HaloTiles, group: Group) -> Scales:
    """`algorithm.find_scales` over all processes: Q's at the own slots, K's at all that this process holds."""
    of_k, k_mean = _amax_and_mean(key, k, tiles.own, group)
    amax = torch.cat([tile_amax(q, tiles.own), of_k, channel_amax(v, tiles.own).squeeze(2)], -1)
    count = plan.groups.shape[1]
    of_q, of_k, of_v = all_max(amax.float(), group).split([count, count, v.shape[-1]], dim=-1)
    q_scale = scales_at_slots(of_q, tiles.own, plan.groups, key.scale_format, key.codes)
    k_scale = scales_at_slots(of_k, tiles.held, plan.groups, key.scale_format, key.codes)
    return Scales(q_scale, k_scale, materialize(scale_of(of_v.unsqueeze(2), key.scale_format)), k_mean)


def _amax_and_mean(key: GraphKey, k: Tensor, own: SomeTiles, group: Group) -> tuple[Tensor, Tensor | None]:
    """amax of each own tile of K, less its mean over all processes' tokens where that is taken off, and the mean."""
    if not key.smooth_k:
        return tile_amax(k, own), None
    stats = key_stats(k, own)
    mean = mean_of_tokens(all_sum(stats.total, group), own.tokens)
    return centred_tile_amax(stats, mean, own), mean


def multiply(coded: Coded) -> KernelCall:
    """Codes times their scales, powers of two, which is exact; as `algorithm.fold` does before anything travels."""
    pairs = ((coded.q, coded.q_scale), (coded.k, coded.k_scale), (coded.v, coded.v_scale))
    q, k, v = (codes * scale.to(codes.dtype) for codes, scale in pairs)
    return KernelCall(q, k, v)
