"""A linear layer in e4m3 as torchao 0.18 computes it for inference: scales in the input's dtype, a true division."""

from fps_flex.engines import FLOAT8
from fps_flex.quant import E4M3_MAX
from fps_flex.wan.fp8_linear import multiply


def round_as_torchao(x):
    """Of rows [n, m]."""
    scale = (x.abs().amax(dim=-1, keepdim=True) / E4M3_MAX).float()
    return (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(FLOAT8), scale


def apply_as_torchao(layer, x):
    """x [n, i], in bf16."""
    return multiply(round_as_torchao(x), round_as_torchao(layer.weight), layer.bias)
