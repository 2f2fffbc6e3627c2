"""torch.compile as everything here uses it, and what a compiler has to be told.

Who compiles what, in one call of FPSAttention:

| called                                  | compiled                                                               |
|-----------------------------------------|------------------------------------------------------------------------|
| on a CPU, engine eager                  | nothing                                                                |
| on a CPU, engine triton                 | FlexAttention alone (engines.py); codes and scales are made eagerly    |
| on a GPU, blocks eager                  | the whole of algorithm.attend_slots or attend_tokens, as one graph     |
| on a GPU, blocks compiled (Wan)         | the block, one graph for all blocks; what is above is inlined in it    |
| in diffusers, blocks compiled           | the block, in which attention is one opaque node; inside it, as eager  |

Functions are compiled at module level, once, so that all layers and models share their graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

Function = TypeVar("Function", bound=Callable[..., Any])

DYNAMO: dict[str, Any] = {
    # every new shape is a graph, and past the limit torch.compile must fail, never turn dense
    "recompile_limit": 64,
    # inside DDP it would cut a block's graph wherever a bucket of gradients is full
    "optimize_ddp": False,
}

OPTIONS: dict[str, Any] = {
    # Inductor's own division on a GPU is approximate, which would flip FP8 codes
    "eager_numerics.division_rounding": True,
    # its search for tiles splits a head's channels where a gather is fused with their amax
    "triton.coalesce_tiling_analysis": False,
    # its reductions of mixed order left the gradients of a block's modulation unwritten (torch 2.11, an H100), without
    # a word, in whatever was in memory before
    "triton.mix_order_reduction": False,
}


def compiled(function: Function) -> Function:
    """torch.compile: one graph or an error, static shapes, and true division."""
    return cast(Function, limited(torch.compile(function, fullgraph=True, dynamic=False, options=OPTIONS)))


def limited(function: Function) -> Function:
    """A compiled function that is called under DYNAMO."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(DYNAMO):
            return function(*args, **kwargs)

    return cast(Function, call)


@torch.library.custom_op("fps_flex::touch", mutates_args=("x",), tags=(torch.Tag.flexible_layout,))
def _touch(x: Tensor) -> None:
    """Does nothing, which a compiler can't know. In any memory layout: x would be copied into one asked for."""


def materialize(x: Tensor) -> Tensor:
    """x itself, which a compiler then keeps in memory where it would compute it anew for every use.

    x: not a view of what others read too. FlexAttention needs it for what its mods read.
    """
    _touch(x)
    return x


def slots_innermost(v: Float[Tensor, "b h s d"]) -> Float[Tensor, "b h s d"]:
    """In memory as [B, H, D, S], as a float8 kernel reads V.

    The codes are put there once they are made, a byte each; rounding on the way would read V against its order.
    """
    return materialize(v).mT.contiguous().mT


def in_order_of_linears(
    function: Callable[..., Tensor], x: Float[Tensor, "b h s d"], *others: Any
) -> Float[Tensor, "b h s d"]:
    """function(x, *others), elementwise, with the result in memory as [B, S, H, D]. Tensors among others: [B, H, ...].

    That is how linear layers leave q, k and v: reads and writes then run side by side.
    """
    swapped = (other.transpose(1, 2) if isinstance(other, Tensor) else other for other in others)
    return function(x.transpose(1, 2), *swapped).transpose(1, 2)
