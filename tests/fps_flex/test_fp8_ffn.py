"""The feed-forward network in e4m3: against the same roundings in fp64, and against the network without them."""

import pytest
import torch
import torch.nn.functional as F

from fps_flex import FPSAttention
from fps_flex.engines import FLOAT8
from fps_flex.wan import WAN_TINY, Wan
from fps_flex.wan.fp8_ffn import DIP, SLOPE, Fp8FeedForward, fuse_feed_forwards, quantize_gelu
from tests.helpers.cases import relative_error
from tests.helpers.fp8_feed_forward import expected, make_feed_forward

BF16 = 2**-8


def run(module, x, gradient):
    """Output, and gradients of x and of the parameters."""
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    return y, *torch.autograd.grad(y, [leaf, *module.parameters()], gradient.to(y.dtype))


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("of_gradient", [1e-9, 1.0])
def test_output_and_gradients_are_those_of_the_codes(size, of_gradient):
    plain, x, gradient = make_feed_forward(size, of_gradient)
    for name, result, right in zip(
        ("y", "x", "up", "up bias", "down", "down bias"),
        run(Fp8FeedForward(*plain), x, gradient),
        expected(plain, x, gradient),
        strict=True,
    ):
        # sums in fp32 move what is rounded next: now and then to the neighbouring code, a sixteenth away
        assert result.isfinite().all() and relative_error(result, right) < 2 * BF16, name


def test_it_is_the_network_up_to_what_e4m3_rounds():
    plain, x, gradient = make_feed_forward(1.0, 1.0)
    for result, right in zip(run(Fp8FeedForward(*plain), x, gradient), run(plain, x.float(), gradient), strict=True):
        assert relative_error(result, right) < 2 * 2**-4 / 3**0.5


def test_gelu_falls_to_its_dip_and_rises_from_there_and_is_nowhere_steeper():
    x = torch.linspace(-6, 6, 200_001, dtype=torch.float64, requires_grad=True)
    y = F.gelu(x, approximate="tanh")
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert abs(x[y.argmin()] - DIP) < 1e-4 and SLOPE / 1.01 < slope.abs().max() < SLOPE
    assert (y[1:] >= y[:-1])[x[1:] > DIP + 1e-4].all() and (y[1:] <= y[:-1])[x[1:] < DIP - 1e-4].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("low", [-30, -6, -2, -0.75, -0.1, -1e-6, 0, 0.3])
@pytest.mark.parametrize("width", [0, 1e-4, 0.05, 1, 4])
def test_the_largest_gelu_of_a_row_gets_the_largest_code(low, width, dtype):
    """A row that spans the dip holds a number near it, as thousands of channels do."""
    torch.manual_seed(0)
    x = (low + width * torch.rand(50, 20_000)).to(dtype)
    codes, scale = quantize_gelu(x)
    right = F.gelu(x.double(), approximate="tanh")
    largest = codes.float().abs().amax(dim=1)
    assert codes.dtype == FLOAT8 and (largest[right.abs().amax(dim=1) > 1e-30] == 448).all()
    assert ((codes.double() * scale - right).abs() <= right.abs() / 16 + scale * 2**-9 + 1e-7).all()


def test_tokens_of_zeros_and_tokens_far_below_zero():
    plain, x, gradient = make_feed_forward(1.0, 1.0)
    plain[0].bias.data.zero_()
    x[0], x[1] = 0, -x[1].abs()
    plain[0].weight.data.abs_()  # of that token no channel is above zero
    results = run(Fp8FeedForward(*plain), x, gradient)
    assert relative_error(results[0][1], plain(x.float())[1]) < 0.1
    assert torch.equal(results[0][0], plain[2].bias.bfloat16()) and all(y.isfinite().all() for y in results)


def test_a_models_networks_are_replaced_and_keep_their_names_and_parameters():
    model = Wan(WAN_TINY, FPSAttention("dense"))
    before = dict(model.named_parameters())
    fuse_feed_forwards(model)
    assert all(isinstance(block.ffn, Fp8FeedForward) for block in model.blocks)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)


@pytest.mark.compiles
def test_compiled_it_gives_the_same():
    plain, x, gradient = make_feed_forward(1.0, 1.0)
    module = Fp8FeedForward(*plain)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    eager, other = run(module, x, gradient), [x.clone().requires_grad_()]
    y = compiled(other[0])
    results = y, *torch.autograd.grad(y, [other[0], *module.parameters()], gradient.to(y.dtype))
    assert all(torch.equal(*pair) for pair in zip(eager, results, strict=True))
