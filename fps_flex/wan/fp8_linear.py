"""A frozen linear layer whose weights lie in e4m3: a byte per weight, and a scale per row.

What LoRA trains beside it needs the gradient of its input, but none of its weights; inference needs neither. Its
products are either those of the restored weights, in the input's dtype, or of the codes themselves, on a GPU's FP8
units.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..engines import FLOAT8
from ..quant import E4M3_MAX

if TYPE_CHECKING:
    from jaxtyping import Float

LEAST = 2.0**-110  # what an amax of zero counts as: far below gradients of a long clip's mean loss


Codes = tuple[Tensor, Tensor]  # in e4m3 [rows, n], and what each row's are times, in fp32 [rows, 1]


def quantize_rows(x: Float[Tensor, "rows n"]) -> Codes:
    return round_rows(x, x.abs().amax(dim=-1, keepdim=True))


def round_rows(x: Float[Tensor, "rows n"], largest: Float[Tensor, "rows 1"]) -> Codes:
    """largest: of a row's magnitudes, or a bound of them, to some 3 %.

    Nothing is clamped: scale, its reciprocal and the product are each rounded once, so that no |x| up to `largest` is
    above 448 (1 + 2^-22), and up to 464, halfway to the code that there isn't, 448 is the nearest.
    """
    scale = largest.float().clamp_min(LEAST) / E4M3_MAX
    return (x.float() * (1 / scale)).to(FLOAT8), scale


class Fp8Linear(nn.Linear):
    """x W^T + bias with W = scale * codes, all of it frozen.

    weight: the codes. multiply_codes: products of codes, with x and the gradient of the output rounded to e4m3 per
    row; otherwise those of the restored weights.
    """

    compute_dtype = torch.float32  # in which peft makes adapters, and not in that of the codes

    def __init__(
        self,
        codes: Float[Tensor, "o i"],
        scale: Float[Tensor, "o 1"],
        bias: Float[Tensor, " o"],
        multiply_codes: bool = False,
    ) -> None:
        nn.Module.__init__(self)  # and not nn.Linear's, which makes weights
        self.out_features, self.in_features = codes.shape
        self.weight, self.scale, self.bias = (nn.Parameter(x, requires_grad=False) for x in (codes, scale, bias))
        self.multiply_codes = multiply_codes

    @classmethod
    def of(cls, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"], multiply_codes: bool = False) -> Fp8Linear:
        return cls(*quantize_rows(weight), bias, multiply_codes)

    def restored(self) -> Fp8Linear:
        """The layer on the same codes that multiplies the restored weights."""
        layer = copy(self)
        layer.multiply_codes = False
        return layer

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """In x's dtype, or autocast's."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        product = _MultiplyCodes if self.multiply_codes else _MultiplyRestored
        y = product.apply(x.reshape(-1, self.in_features), self.weight, self.scale, self.bias)
        return y.view(*x.shape[:-1], self.out_features)

    def of_codes(self, x: Codes) -> Float[Tensor, "m o"]:
        """Of an input that is rounded already; in bf16, without gradients."""
        return multiply(x, (self.weight, self.scale), self.bias)


class _MultiplyRestored(torch.autograd.Function):
    """Keeps the codes for the backward, a half of what restored weights in bf16 take."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "m i"], codes: Tensor, scale: Tensor, bias: Tensor) -> Float[Tensor, "m o"]:
        ctx.save_for_backward(codes, scale)
        return F.linear(x, restore(codes, scale, x.dtype), bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "m o"]) -> tuple[Tensor, None, None, None]:
        codes, scale = ctx.saved_tensors
        return gradient @ restore(codes, scale, gradient.dtype), None, None, None


@torch._dynamo.allow_in_graph  # traced into, torch 2.11 takes what _scaled_mm returns for a constant: zero gradients
class _MultiplyCodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "m i"], codes: Tensor, scale: Tensor, bias: Tensor) -> Float[Tensor, "m o"]:
        ctx.save_for_backward(codes, scale)
        return multiply(quantize_rows(x), (codes, scale), bias).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "m o"]) -> tuple[Tensor, None, None, None]:
        """The sum is over W's rows, so their scales go into the gradient before it is rounded, and the codes stay."""
        codes, scale = ctx.saved_tensors
        return multiply_columns(quantize_rows(gradient.float() * scale.t()), codes).to(gradient.dtype), None, None, None


def restore(codes: Float[Tensor, "o i"], scale: Float[Tensor, "o 1"], dtype: torch.dtype) -> Float[Tensor, "o i"]:
    return (codes.float() * scale).to(dtype)


def multiply(a: Codes, b: Codes, bias: Float[Tensor, " n"] | None = None) -> Float[Tensor, "m n"]:
    """a b^T + bias, of rows of both, in bf16: the only dtype that products with a scale per row have."""
    bias = None if bias is None else bias.bfloat16()
    return torch._scaled_mm(a[0], b[0].t(), a[1], b[1].t(), bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True)


def multiply_columns(a: Codes, codes: Float[Tensor, "k n"]) -> Float[Tensor, "m n"]:
    """a codes, in bf16. The FP8 units take their second factor by columns, so that one is copied."""
    return multiply(a, (codes.t().contiguous(), torch.ones(codes.shape[1], 1, device=codes.device)))
