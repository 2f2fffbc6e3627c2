"""A trained feed-forward network in e4m3, forward and backward towards its input, in fewer passes over its channels.

Layer by layer, GELU and its derivative are computed twice, once for the largest value of a token's channels and once
to round them. Here the extremes of x say what GELU's is, as it falls to its dip and rises from there; of the derivative
a bound takes that value's place, its slope's peak. A looser scale costs little while the codes' range holds.
"""

from __future__ import annotations

from math import pi
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .fp8_linear import Codes, multiply, multiply_columns, quantize_rows, round_rows

if TYPE_CHECKING:
    from jaxtyping import Float

    from .model import Wan

CUBIC, SQRT_8_PI = 0.044715, (8 / pi) ** 0.5  # of GELU's tanh form, as a sigmoid's argument
DIP, SLOPE = -0.7525, 1.130  # where GELU in its tanh form is least, and its steepest slope, rounded up


def fuse_feed_forwards(model: Wan) -> None:
    """Put the blocks' feed-forward networks on e4m3 as one function each, in place; parameters and names stay."""
    for block in model.blocks:
        block.ffn = Fp8FeedForward(*block.get_submodule("ffn").children())


class Fp8FeedForward(nn.Sequential):
    """Linear, GELU (tanh), linear: inputs of both and gradients are rounded per token.

    Weights are rounded once, per row, for both directions; their gradients are products in bf16, as in
    linears.compute_in_fp8. On GPUs that have float8.
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
        ctx.dtype = up.dtype
        up, up_scale = quantize_rows(up)
        down, down_scale = quantize_rows(down)
        hidden = multiply(quantize_rows(x), (up, up_scale), up_bias)
        ctx.save_for_backward(x, hidden, up, up_scale, down, down_scale)
        return multiply(quantize_gelu(hidden), (down, down_scale), down_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "m i"]) -> tuple[Tensor, ...]:
        """The scales of the weights' rows go into what is multiplied by them, and the codes stay."""
        x, hidden, up, up_scale, down, down_scale = ctx.saved_tensors
        behind = multiply_columns(quantize_rows(gradient.float() * down_scale.t()), down)
        activated, slope = gelu(hidden.float())
        before = behind.float() * slope
        largest = SLOPE * (behind.float() * up_scale.t()).abs().amax(dim=-1, keepdim=True)
        of_input = multiply_columns(round_rows(before * up_scale.t(), largest), up)
        weights = before.bfloat16().t() @ x, gradient.t() @ activated.bfloat16()
        biases = before.sum(dim=0), gradient.float().sum(dim=0)
        of_up, of_down, of_up_bias, of_down_bias = (y.to(ctx.dtype) for y in (*weights, *biases))
        return of_input, of_up, of_up_bias, of_down, of_down_bias


def quantize_gelu(x: Float[Tensor, "m n"]) -> Codes:
    """Codes of GELU(x), whose largest magnitude is at the largest x, or where the row's range is nearest to the dip."""
    top, bottom = x.amax(dim=-1, keepdim=True).float(), x.amin(dim=-1, keepdim=True).float()
    lowest = bottom.clamp_min(DIP).minimum(top)
    return round_rows(gelu(x.float())[0], gelu(top)[0].maximum(-gelu(lowest)[0]))


def gelu(x: Float[Tensor, "m n"]) -> tuple[Float[Tensor, "m n"], Float[Tensor, "m n"]]:
    """GELU in its tanh form, and its slope: by a sigmoid, which takes a GPU a fraction of what tanh does."""
    share = torch.sigmoid(SQRT_8_PI * (x + CUBIC * x**3))
    return x * share, share + x * share * (1 - share) * (SQRT_8_PI * (1 + 3 * CUBIC * x**2))
