"""A feed-forward network, and what rounding it to e4m3 as fp8_ffn.py says gives in fp64."""

import torch
import torch.nn.functional as F
from torch import nn

from fps_flex.wan.fp8_ffn import SLOPE
from fps_flex.wan.fp8_linear import quantize_rows, restore, round_rows


def make_feed_forward(size, of_gradient, tokens=40, inside=64, between=160, device="cpu"):
    """In fp32, with tokens of `size` and a gradient of the output in bf16."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(inside, between), nn.GELU("tanh"), nn.Linear(between, inside)).to(device)
    x, gradient = torch.randn(2, tokens, inside, device=device).bfloat16()
    return plain, size * x, of_gradient * gradient


def expected(plain, x, gradient):
    """Output, and gradients of x, the weights and biases; between two products in bf16."""

    def rounded(y, largest=None):
        return restore(*(quantize_rows(y) if largest is None else round_rows(y, largest)), torch.float64)

    up, _, down = plain
    hidden = (rounded(x) @ rounded(up.weight).T + up.bias.bfloat16().double()).bfloat16()
    activated = F.gelu(hidden.double(), approximate="tanh")
    y = rounded(activated.float()) @ rounded(down.weight).T + down.bias.bfloat16().double()

    (up_codes, up_scale), (down_codes, down_scale) = (quantize_rows(layer.weight) for layer in (up, down))
    behind = (rounded(gradient.float() * down_scale.T) @ down_codes.double()).bfloat16()
    leaf = hidden.double().requires_grad_()
    (before,) = torch.autograd.grad(F.gelu(leaf, approximate="tanh"), leaf, behind.double())
    steepest = SLOPE * (behind.float() * up_scale.T).abs().amax(-1, keepdim=True)
    of_input = rounded(before.float() * up_scale.T, steepest) @ up_codes.double()
    g = gradient.double()
    return y, of_input, before.T @ x.double(), before.sum(0), g.T @ activated, g.sum(0)
