"""Bytes that attention exchanges in one layer, with Ulysses and with the halo."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .collectives import Lengths
from .halo_tiles import Windows, deal_tiles, reach
from .sequence import Call
from .ulysses import cut_slots


@dataclass(frozen=True)
class Traffic:
    """Bytes that each process gets from the others, forward and backward; without the scales' (a tenth of a MB)."""

    forward: Lengths
    backward: Lengths

    def busiest(self, trains: bool) -> int:
        """Of the process that gets most. trains: count the backward too."""
        passes = (self.forward, self.backward) if trains else (self.forward,)
        return max(map(sum, zip(*passes, strict=True)))


def ulysses_traffic(call: Call, processes: int) -> Traffic:
    """q, k and v of the others' slots for the own heads, and the output of the others' heads for the own slots.

    Raises ValueError as `cut_slots`.
    """
    lengths = cut_slots(call, processes)
    of_slot = len(call.sigma) * call.heads // processes * call.head_dim * call.dtype.itemsize
    own_heads = [(sum(lengths) - own) * of_slot for own in lengths]
    own_slots = [own * (processes - 1) * of_slot for own in lengths]
    pairs = list(zip(own_heads, own_slots, strict=True))
    return Traffic(tuple(3 * a + b for a, b in pairs), tuple(a + 3 * b for a, b in pairs))


def halo_traffic(call: Call, processes: int) -> Traffic:
    """K and V of the others' tiles, and in the backward the gradients of the own ones.

    Raises ValueError as `deal_tiles`.
    """
    of_layer, of_most = (_windows_in_force(x) for x in (call, replace(call, layer=None)))
    owners = deal_tiles(call.plan.layout, of_most, processes).owner
    rows = reach(call.plan.layout, of_layer, owners, processes).rows
    values = 2 * len(call.sigma) * call.heads * call.head_dim
    size = 1 if call.is_quantized else call.dtype.itemsize
    forward = tuple(sum(row) * values * size for row in rows)
    return Traffic(forward, tuple(sum(column) * values * call.dtype.itemsize for column in zip(*rows, strict=True)))


def _windows_in_force(call: Call) -> Windows:
    return tuple(call.windows[i] for i in sorted(set(call.regimes)))
