import numpy as np
import pytest
import torch

from docs.golden import method
from fps_flex import TileLayout
from fps_flex.quant import channel_scales, quantize, round_e4m3, scale_of, slot_scales, tile_groups
from tests.helpers import oracle
from tests.helpers.cases import CASES

FORMATS = ["fp32", "pow2"]


def groups_of(layout, granularities):
    return torch.stack([tile_groups(layout, granularity) for granularity in granularities])


def same_bits(x, expected):
    return np.array_equal(x.numpy().view(np.int32), np.asarray(expected).view(np.int32))


def test_rounding_equals_the_table_of_e4m3_values():
    values = method.decode(np.arange(0x7F)).astype(np.float64)
    middles = (values[:-1] + values[1:]) / 2
    x = np.concatenate([values, middles, np.nextafter(middles, 0), np.nextafter(middles, 1e9), [449, 1e30, np.inf]])
    x = np.concatenate([x, -x]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(np.inf))])
    assert len(values) == 127 and values[-1] == 448
    assert same_bits(round_e4m3(torch.from_numpy(x)), method.round_e4m3(x))
    assert round_e4m3(torch.tensor([torch.nan])).isnan().all()


@pytest.mark.parametrize("scale_format", FORMATS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case.seed}")
def test_tiles_equal_the_independent_implementation_bit_for_bit(case, scale_format):
    layout = TileLayout(case.grid, case.tile, case.block)
    q, k, v = case.qkv(layout.tokens)
    q[0, 0, method.tokens_of_tile((0, 0, 0), case.grid, case.tile)] = 0
    codes, scales = oracle.quantized(case, q.numpy(), k.numpy(), v.numpy(), scale_format)

    for x, its_codes, its_scales in zip((q, k), codes, scales, strict=False):
        slots = layout.order(x, dim=2)
        scale = slot_scales(slots, layout, groups_of(layout, case.granularities), scale_format)
        assert same_bits(scale.squeeze(-1), its_scales[..., layout.tile_of_slot.numpy()])
        assert same_bits(layout.unorder(quantize(slots, scale), dim=2), its_codes)


@pytest.mark.parametrize("scale_format", FORMATS)
@pytest.mark.parametrize("case", CASES[:16], ids=lambda case: f"case{case.seed}")
def test_channels_equal_the_independent_implementation_bit_for_bit(case, scale_format):
    layout = TileLayout(case.grid, case.tile, case.block)
    q, k, v = case.qkv(layout.tokens)
    v[0, :, :, 0] = 0
    (*_, codes), (*_, scales) = oracle.quantized(case, q.numpy(), k.numpy(), v.numpy(), scale_format)
    slots = layout.order(v, dim=2)
    scale = channel_scales(slots, layout, scale_format)
    assert same_bits(scale, scales)
    assert same_bits(layout.unorder(quantize(slots, scale), dim=2), codes)


@pytest.mark.parametrize("scale_format", FORMATS)
def test_pads_change_no_scale(scale_format):
    layout = TileLayout((5, 5, 5), (2, 3, 2), 8)
    x = layout.order(torch.randn(2, 2, layout.tokens, 4), dim=2)
    padded = x.masked_fill(~layout.valid[:, None], 1e4)
    groups = groups_of(layout, (1, "head"))
    assert torch.equal(slot_scales(x, layout, groups, scale_format), slot_scales(padded, layout, groups, scale_format))
    assert torch.equal(channel_scales(x, layout, scale_format), channel_scales(padded, layout, scale_format))


@pytest.mark.parametrize("carrier", [torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_every_carrier_holds_the_same_codes(carrier):
    x = torch.randn(1, 1, 64, 8) * 50
    scale = torch.tensor(0.3)
    assert torch.equal(quantize(x, scale, carrier).float(), quantize(x, scale))


def test_bfloat16_input_is_divided_in_fp32():
    x = (torch.randn(4096) * 100).bfloat16()
    scale = torch.tensor(0.7)
    expected = method.round_e4m3(x.float().numpy() / np.float32(0.7))
    assert same_bits(quantize(x, scale).float(), expected)


def test_gradients_pass_the_rounding_straight_through():
    x = torch.randn(3, 5).requires_grad_()
    scale = torch.rand(3, 1) + 0.1
    weights = torch.randn(3, 5)
    (quantize(x, scale) * weights).sum().backward()
    assert torch.equal(x.grad, weights / scale)


def test_scales_of_zero_infinity_nan_and_the_smallest_numbers():
    amax = torch.tensor([0.0, torch.inf, torch.nan, 1e-45, 448.0, 449.0])
    exact, pow2 = scale_of(amax), scale_of(amax, "pow2")
    assert exact[0] == pow2[0] == 1 and exact[3] == pow2[3] == 1 and exact[4] == pow2[4] == 1
    assert exact[1].isinf() and pow2[1].isinf() and exact[2].isnan() and pow2[2].isnan()
    assert pow2[5] == 2 and exact[5] == np.float32(449) / np.float32(448)


@pytest.mark.parametrize("granularity", [0, -1, 1.5, "tile", True])
def test_an_unknown_granularity_is_named(granularity):
    layout = TileLayout((4, 4, 4), (2, 2, 2), 8)
    with pytest.raises(ValueError, match=f"granularity is {granularity!r}, expected a whole number of tiles"):
        tile_groups(layout, granularity)
