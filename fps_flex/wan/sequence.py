"""How a video's tokens are shared among processes, from the first block to the last.

Wan knows three words of it: `split` keeps this process's share of the slots, `attend` gives a layer's attention between
shares, the only place where anything is exchanged, and `gather` puts the shares together again. `Whole` shares nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..algorithm import Plan
from ..attention import FPSAttention
from ..tiles import Triple

if TYPE_CHECKING:
    from jaxtyping import Float

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Call:
    """What of a forward pass decides how its tokens are shared.

    sigma: on the CPU where nothing shall wait for a GPU. heads, head_dim, dtype: of q, k and v. layer: which one's
    schedule holds, and plan is of; None for those that have none of their own.
    """

    attention: FPSAttention
    plan: Plan
    sigma: Float[Tensor, " b"]
    heads: int
    head_dim: int
    dtype: torch.dtype
    layer: int | None = None

    def in_layer(self, layer: int) -> Call:
        """This one, or that of a layer with a schedule of its own."""
        plan = self.plan.of_layer(layer)
        return self if plan is self.plan else replace(self, plan=plan, layer=layer)

    @cached_property
    def regimes(self) -> tuple[int, ...]:
        """The index of each sample's regime. Waits for a GPU where sigma is on one."""
        return tuple(self.attention.regime_index(self.sigma, self.layer).tolist())

    @property
    def windows(self) -> tuple[Triple, ...]:
        """In tiles, of all regimes of the attention."""
        return tuple(regime.window_in_tiles(self.plan.layout.tiles) for regime in self.attention.regimes)

    @property
    def is_quantized(self) -> bool:
        """Whether all samples are."""
        return all(self.attention.regimes[i].granularity is not None for i in self.regimes)


class Share(Protocol):
    """One process's part in one forward pass."""

    def attend(self, layer: int) -> Attend:
        """A layer's attention of this process's queries, over slots in tile order."""
        ...

    def split(self, x: Float[Tensor, "..."], dim: int = 1) -> Float[Tensor, "..."]:
        """The slots of this process, out of all of them along `dim`."""
        ...

    def gather(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b slots d"]:
        """All slots, from those of each process."""
        ...


class Sequence(Protocol):
    """How the tokens of each forward pass are shared."""

    def share(self, call: Call) -> Share:
        """Raises ValueError where the call can't be shared so."""
        ...


@dataclass(frozen=True)
class Whole:
    """Each process has all tokens of its videos."""

    def share(self, call: Call) -> Share:
        return All(call)


@dataclass(frozen=True)
class All:
    """All slots are this process's."""

    call: Call

    def attend(self, layer: int) -> Attend:
        return partial(self.call.attention, plan=self.call.plan.of_layer(layer))

    def split(self, x: Float[Tensor, "..."], dim: int = 1) -> Float[Tensor, "..."]:
        return x

    def gather(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b slots d"]:
        return x
