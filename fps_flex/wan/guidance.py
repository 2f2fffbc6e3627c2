"""The two passes of classifier-free guidance on two processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from .collectives import Group, all_to_all
from .flow import Velocity

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class OnePassEach:
    """group: two processes, the first of which follows the text."""

    group: Group

    def __call__(
        self, velocity: Velocity, text: Float[Tensor, "b l e"], no_text: Float[Tensor, "b l e"]
    ) -> tuple[Float[Tensor, "b c f h w"], Float[Tensor, "b c f h w"]]:
        """The velocities with and without the text, on both."""
        own = velocity(no_text if self.group.rank else text)
        rows = (len(own),) * 2
        with_text, without = all_to_all(own.repeat(2, *[1] * (own.ndim - 1)), rows, rows, self.group).chunk(2)
        return with_text, without
