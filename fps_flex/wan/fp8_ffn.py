"""A trained feed-forward network in e4m3, forward and backward towards its input, in fewer passes over its channels.

Layer by layer, GELU and its derivative are computed twice, once for the largest value of a token's channels and once
to round them. Here a bound takes that value's place, which needs neither: |GELU(x)| is at most GELU of the largest x or
the depth of its dip, and |GELU'| at most its slope's peak. A looser scale costs nothing while the codes' range holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .fp8_linear import multiply, quantize_rows, round_rows

if TYPE_CHECKING:
    from jaxtyping import Float

    from .model import Wan

DEPTH, SLOPE = 0.171, 1.130  # least value and steepest slope of GELU in its tanh form, rounded up


def fuse_feed_forwards(model: Wan) -> None:
    """Put the blocks' feed-forward networks on e4m3 as one function each, in place; parameters and names stay."""
    for block in model.blocks:
        block.ffn = Fp8FeedForward(*block.get_submodule("ffn").children())


class Fp8FeedForward(nn.Sequential):
    """Linear, GELU (tanh), linear: inputs of both and gradients rounded per token, weights per row or column.

    Gradients of weights are products in bf16, as elsewhere (linears.compute_in_fp8). On GPUs that have float8.
    """

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b i"]:
        """In bf16."""
        up, _, down = self
        y = _FeedForward.apply(x.reshape(-1, x.shape[-1]).bfloat16(), up.weight, up.bias, down.weight, down.bias)
        return y.view(x.shape)


@torch._dynamo.allow_in_graph  # traced into, torch 2.11 takes what _scaled_mm returns for a constant: zero gradients
class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
        """x [M, I], up [F, I], down [I, F]."""
        hidden = multiply(quantize_rows(x), quantize_rows(up), up_bias)
        ctx.save_for_backward(x, hidden, up, down)
        largest = F.gelu(hidden.amax(dim=-1, keepdim=True).float(), approximate="tanh").clamp_min(DEPTH)
        activated = round_rows(F.gelu(hidden.float(), approximate="tanh"), largest)
        return multiply(activated, quantize_rows(down), down_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "m i"]) -> tuple[Tensor, ...]:
        x, hidden, up, down = ctx.saved_tensors
        behind = multiply(quantize_rows(gradient), quantize_rows(down.t().contiguous()))
        largest = SLOPE * behind.abs().amax(dim=-1, keepdim=True)
        before = torch.ops.aten.gelu_backward(behind.float(), hidden.float(), approximate="tanh")
        of_input = multiply(round_rows(before, largest), quantize_rows(up.t().contiguous()))
        of_up = (before.bfloat16().t() @ x).type_as(up)
        of_down = (gradient.t() @ F.gelu(hidden, approximate="tanh")).type_as(down)
        return of_input, of_up, before.sum(dim=0).type_as(up), of_down, gradient.float().sum(dim=0).type_as(down)
