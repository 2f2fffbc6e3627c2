"""Plain dense attention, as a teacher's: PyTorch's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from ..algorithm import Plan
from ..attention import FPSAttention

if TYPE_CHECKING:
    from jaxtyping import Float


class DenseAttention(FPSAttention):
    """All pairs of tokens, unquantised, through PyTorch's scaled_dot_product_attention."""

    def __call__(
        self, q: Float[Tensor, "b h s d"], k: Float[Tensor, "b h s d"], v: Float[Tensor, "b h s d"], plan: Plan
    ) -> Float[Tensor, "b h s d"]:
        """The grid is one tile, so that its tokens come first and in raster order; pads give zeros."""
        tokens = plan.layout.tokens
        q, k, v = (x[:, :, :tokens] for x in (q, k, v))
        return F.pad(F.scaled_dot_product_attention(q, k, v), (0, 0, 0, plan.layout.slots - tokens))


def dense_attention(block: int = 128) -> DenseAttention:
    """block: slots of a block of the layout, as the other attentions of the model have it."""
    return DenseAttention("dense", tile=None, block=block)
