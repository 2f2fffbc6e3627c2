"""A block's layers in e4m3 for inference: each input is rounded once, however many layers take it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from ..compile import materialize
from .fp8_ffn import quantize_gelu
from .fp8_linear import Fp8Linear, quantize_rows
from .model import Attention

if TYPE_CHECKING:
    from jaxtyping import Float


def freeze(layer: nn.Module) -> nn.Module:
    """A linear layer in e4m3, frozen; another layer as it is."""
    if isinstance(layer, nn.Linear):
        return Fp8Linear.of(layer.weight, layer.bias, multiply_codes=True)
    return layer


def apply_to_one(x: Float[Tensor, "b s i"], *layers: nn.Module) -> list[Float[Tensor, "b s o"]]:
    """What each frozen layer makes of x, which is rounded once; in bf16, without gradients."""
    codes, scale = quantize_rows(x.flatten(0, 1))
    # a compiler would write each layer codes of its own
    codes = materialize(codes)
    return [cast(Fp8Linear, layer).of_codes((codes, scale)).view(*x.shape[:2], -1) for layer in layers]


class FrozenAttention(Attention):
    """An attention with its projections in e4m3; without gradients."""

    def __init__(self, attention: Attention) -> None:
        nn.Module.__init__(self)  # and not Attention's, which makes layers
        self.heads = attention.heads
        for name, layer in attention.named_children():
            setattr(self, name, freeze(layer))

    def _apply_linears(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if source is x:
            q, k, v = apply_to_one(x, self.q, self.k, self.v)
        else:
            (q,), (k, v) = apply_to_one(x, self.q), apply_to_one(source, self.k, self.v)
        return q, k, v


class FrozenFeedForward(nn.Sequential):
    """Linear, GELU (tanh), linear in e4m3; without gradients. GELU is bounded as fp8_ffn.py says."""

    def __init__(self, plain: nn.Sequential) -> None:
        super().__init__(*map(freeze, plain))

    def forward(self, x: Float[Tensor, "b s i"]) -> Float[Tensor, "b s i"]:
        """In bf16."""
        up, _, down = self
        (hidden,) = apply_to_one(x, up)
        return cast(Fp8Linear, down).of_codes(quantize_gelu(hidden.flatten(0, 1))).view(x.shape)
