"""The count of operations, against torch's own of the products that a model runs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fps_flex.wan import WAN_1_3B, WAN_14B, Wan, WanConfig
from fps_flex.wan.dense import dense_attention
from fps_flex.wan.flops import Flops, forward_flops, training_flops

SIZES = WanConfig(dim=24, ffn_dim=72, heads=2, layers=3, channels=4, text_dim=16, freq_dim=8)
GRID, TEXT = (4, 6, 10), 7  # 240 tokens, without pads


def count(backward):
    wan = Wan(SIZES, dense_attention(16))
    latents, text = torch.randn(1, 4, GRID[0], 2 * GRID[1], 2 * GRID[2]), torch.randn(1, TEXT, 16)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        out = wan(latents, torch.tensor([500.0]), text)
        if backward:
            out.square().mean().backward()
    return counter.get_total_flops()


def test_a_forward_pass_is_what_torch_counts():
    assert forward_flops(SIZES, 240, TEXT).total == count(backward=False)


def test_a_step_is_what_torch_counts_but_for_the_gradients_of_the_inputs_that_need_none():
    inputs = 2 * 240 * 16 * 24 + 2 * TEXT * 16 * 24 + 2 * 8 * 24  # of patches, text and the noise level's sinusoids
    assert training_flops(forward_flops(SIZES, 240, TEXT)) == count(backward=True) + inputs


def test_density_counts_attention_alone_and_frozen_weights_take_no_gradient():
    dense, half = (forward_flops(SIZES, 240, TEXT, density) for density in (1.0, 0.5))
    assert half == Flops(dense.linear, dense.attention / 2)
    assert dense.attention == 3 * 4 * 240**2 * 24
    assert training_flops(dense) - training_flops(dense, frozen=True) == dense.linear


@pytest.mark.parametrize(
    ("config", "tokens", "linear", "attention"),
    [(WAN_1_3B, 32_760, 8.52e13, 1.978e14), (WAN_14B, 75_600, 1.841e15, 4.682e15)],
)
def test_the_released_sizes(config, tokens, linear, attention):
    """Dense attention is 70 and 72 % of all."""
    found = forward_flops(config, tokens, 512)
    assert found.linear == pytest.approx(linear, rel=1e-3) and found.attention == pytest.approx(attention, rel=1e-3)
