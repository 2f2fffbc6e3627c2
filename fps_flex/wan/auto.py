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
from .halo import Halo
from .sequence import Call, Sequence, Share
from .traffic import halo_traffic, ulysses_traffic
from .ulysses import Ulysses

Exchange = Literal["auto", "ulysses", "halo"]

logger = logging.getLogger(__name__)


def sequence_over(group: dist.ProcessGroup, exchange: Exchange = "auto") -> Sequence:
    """What `Wan.sequence` is set to where the processes of a group share each video."""
    kinds: dict[str, Callable[[Group], Sequence]] = {"auto": Auto, "ulysses": Ulysses, "halo": Halo}
    return kinds[exchange](Group.of(group))


def choose_exchange(exchange: Exchange, call: Call, processes: int) -> str:
    """Ulysses or the halo, as asked for, or what sends less.

    Raises ValueError where so many processes can't share the call so.
    """
    return _choose(exchange, *_weigh(call, processes))


def _weigh(call: Call, processes: int) -> tuple[dict[str, int], dict[str, str]]:
    """Bytes that the busiest process gets, with those of a backward that will be; of what can't share the call, why."""
    sizes, obstacles = {}, {}
    for name, count in (("ulysses", ulysses_traffic), ("halo", halo_traffic)):
        try:
            sizes[name] = count(call, processes).busiest(torch.is_grad_enabled())
        except ValueError as error:
            obstacles[name] = str(error)
    return sizes, obstacles


def _choose(exchange: Exchange, sizes: dict[str, int], obstacles: dict[str, str]) -> str:
    if exchange == "auto" and sizes:
        return min(sizes, key=lambda name: sizes[name])
    if exchange not in sizes:
        raise ValueError(obstacles.get(exchange) or "; ".join(obstacles.values()))
    return exchange


@dataclass(frozen=True)
class Auto:
    """group: the processes that share each video."""

    group: Group

    def share(self, call: Call) -> Share:
        """Says once for each choice why it is made. Raises ValueError where neither can share the call."""
        sizes, obstacles = _weigh(call, self.group.size)
        taken = _choose("auto", sizes, obstacles)
        self._say(call, taken, sizes, obstacles)
        return (Ulysses if taken == "ulysses" else Halo)(self.group).share(call)

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
