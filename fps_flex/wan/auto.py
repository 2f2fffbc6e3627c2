"""Ulysses or the halo, whichever sends less in the regimes that are in force."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.distributed as dist

from .collectives import Group
from .halo import Halo, without_flash
from .sequence import Call, Sequence, Share
from .traffic import halo_traffic, ulysses_traffic
from .ulysses import Ulysses

Exchange = Literal["auto", "ulysses", "halo"]

logger = logging.getLogger(__name__)


def sequence_over(group: dist.ProcessGroup, exchange: Exchange = "auto") -> Sequence:
    """What `Wan.sequence` is set to where the processes of a group share each video."""
    kinds: dict[str, Callable[[Group], Sequence]] = {"auto": Auto, "ulysses": Ulysses, "halo": Halo}
    return kinds[exchange](Group.of(group))


@dataclass(frozen=True)
class Auto:
    """group: the processes that share each video."""

    group: Group

    def share(self, call: Call) -> Share:
        """Says once for each choice why it is made. Raises ValueError where neither can share the call."""
        sizes, obstacles = {}, {}
        for name, count in (("ulysses", self._ulysses), ("halo", self._halo)):
            try:
                sizes[name] = count(call)
            except ValueError as error:
                obstacles[name] = str(error)
        if not sizes:
            raise ValueError("; ".join(obstacles.values()))
        taken = min(sizes, key=lambda name: sizes[name])
        self._say(call, taken, sizes, obstacles)
        return (Ulysses if taken == "ulysses" else Halo)(self.group).share(call)

    def _ulysses(self, call: Call) -> int:
        return ulysses_traffic(call, self.group.size).busiest(torch.is_grad_enabled())

    def _halo(self, call: Call) -> int:
        without_flash(call.attention, call.plan.layout.device.type)
        return halo_traffic(call, self.group.size).busiest(torch.is_grad_enabled())

    def _say(self, call: Call, taken: str, sizes: dict[str, int], obstacles: dict[str, str]) -> None:
        if dist.get_rank() == 0:
            regimes = ", ".join(map(str, sorted(set(call.regimes))))
            figures = [f"{name} {size / 1e6:,.1f}" for name, size in sizes.items()]
            reasons = [f"not {name}: {reason}" for name, reason in obstacles.items()]
            figures[0] = f"MB that a process gets in a layer: {figures[0]}"
            _say_once(self.group.size, regimes, taken, "; ".join([", ".join(figures), *reasons]))


@cache
def _say_once(processes: int, regimes: str, taken: str, reason: str) -> None:
    logger.info("a video on %d processes in regime %s: %s (%s)", processes, regimes, taken, reason)
