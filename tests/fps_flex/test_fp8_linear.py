"""A frozen layer in e4m3 on a CPU: its products against those of its restored weights, and what it rounds."""

import pytest
import torch

from fps_flex.engines import FLOAT8
from fps_flex.quant import E4M3_MAX
from fps_flex.wan.fp8_linear import Fp8Linear, quantize_rows, restore, round_rows
from tests.helpers.cases import relative_error

ROUNDING = {torch.float32: 2**-24, torch.bfloat16: 2**-8}  # once; sums over 48 numbers may be off by some more
E4M3 = 2**-4  # of rounding once: 3 bits behind the point


def make_layer(seed=0, rows=24, columns=48):
    torch.manual_seed(seed)
    weight, bias = 0.02 * torch.randn(rows, columns), torch.randn(rows)
    return Fp8Linear.of(weight, bias), weight, bias


@pytest.mark.parametrize("dtype", ROUNDING)
def test_output_and_gradient_are_those_of_the_restored_weights(dtype):
    layer, weight, bias = make_layer()
    stored = restore(layer.weight, layer.scale, torch.float64)
    x = torch.randn(2, 5, 48).to(dtype).requires_grad_()
    y = layer(x)
    assert y.shape == (2, 5, 24) and y.dtype == dtype
    assert relative_error(y, x.double() @ stored.T + bias.double()) < 4 * ROUNDING[dtype]
    gradient = torch.randn_like(y)
    y.backward(gradient)
    assert x.grad.dtype == dtype and relative_error(x.grad, gradient.double() @ stored) < 4 * ROUNDING[dtype]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in layer.parameters())
    assert relative_error(stored, weight) < E4M3 / 3**0.5


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_under_autocast_it_computes_as_a_plain_layer_does(stored):
    layer, _, bias = make_layer()
    layer.bias.data = bias.to(stored)
    plain = torch.nn.Linear(48, 24)
    plain.weight.data, plain.bias.data = restore(layer.weight, layer.scale, torch.float32), bias
    x, gradient = torch.randn(7, 48), torch.randn(7, 24).bfloat16()
    results = []
    for one in (layer, plain):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = one(leaf)
        y.backward(gradient)
        results.append((y, leaf.grad))
    (y, grad), (plain_y, plain_grad) = results
    assert y.dtype == plain_y.dtype == torch.bfloat16 and grad.dtype == plain_grad.dtype == torch.float32
    assert relative_error(y, plain_y) < 2**-7 and torch.equal(grad, plain_grad)


@pytest.mark.compiles
def test_compiled_it_gives_the_same():
    layer = make_layer()[0]
    x, gradient = torch.randn(7, 48), torch.randn(7, 24)
    results = []
    for one in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        y = one(leaf)
        y.backward(gradient)
        results.append((y.detach(), leaf.grad))
    assert all(torch.equal(eager, compiled) for eager, compiled in zip(*results, strict=True))


def test_a_row_of_zeros_and_rows_of_any_size_are_restored():
    x = torch.stack([torch.zeros(64), *(size * torch.randn(64) for size in (1e-30, 1e-18, 1e-12, 1.0, 1e30))])
    codes, scale = quantize_rows(x)
    assert codes.dtype == FLOAT8 and scale.dtype == torch.float32 and scale.isfinite().all() and (scale > 0).all()
    back = restore(codes, scale, torch.float64)
    assert back.isfinite().all() and not back[0].any()
    for row, original in zip(back[1:], x[1:], strict=True):
        assert relative_error(row, original) < E4M3 / 3**0.5
        assert row.abs().amax() == pytest.approx(original.double().abs().amax(), rel=2**-20)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_largest_number_of_a_row_gets_the_largest_code_and_none_is_nan(dtype):
    torch.manual_seed(0)
    x = torch.randn(500, 33).to(dtype)
    codes, _ = quantize_rows(x)
    largest = codes.float().abs().amax(1)
    assert codes.float().isfinite().all() and (largest == E4M3_MAX).all()


def test_no_number_up_to_the_largest_is_beyond_the_codes():
    """Each positive number that bf16 holds, and random ones in fp32; also where a bound is 3 % too small."""
    of_bf16 = torch.arange(1, 0x7F80, dtype=torch.int16).view(torch.bfloat16)
    of_fp32 = torch.randint(1, 0x7F800000, (2**20,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    for x in (of_bf16[:, None], of_fp32.view(torch.float32)[:, None]):
        codes = quantize_rows(x)[0].float()
        assert codes.isfinite().all() and (codes[x > 2.0**-109] == E4M3_MAX).all()
    x = torch.rand(10_000, 1) + 0.5
    assert (round_rows(1.03 * x, x)[0].float() == E4M3_MAX).all()


def test_a_bias_is_rounded_with_the_sum_and_not_after_it():
    """The sum is 15 / 16 + 2^-10, of which bf16 keeps no 2^-10."""
    layer = Fp8Linear.of(torch.ones(16, 16), torch.full((16,), -15 / 16), multiply_codes=True)
    x = torch.full((3, 16), 1 / 16).bfloat16()
    x[:, 7] = 2**-10
    assert torch.equal(layer(x), torch.full((3, 16), 2**-10).bfloat16())


def test_restored_shares_the_codes_and_leaves_the_layer_as_it_is():
    layer = Fp8Linear.of(torch.randn(16, 16), torch.zeros(16), multiply_codes=True)
    other = layer.restored()
    assert layer.multiply_codes and not other.multiply_codes
    assert other.weight is layer.weight and other.scale is layer.scale and other.bias is layer.bias
