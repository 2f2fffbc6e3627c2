"""Linear layers in e4m3 on a GPU: products of codes against the same codes multiplied in fp64."""

import pytest
import torch
import torch.nn.functional as F

from fps_flex.compile import compiled as compiled_as_blocks
from fps_flex.wan.fp8_ffn import Fp8FeedForward, fuse_feed_forwards, quantize_gelu
from fps_flex.wan.fp8_frozen import FrozenFeedForward, apply_to_one, freeze
from fps_flex.wan.fp8_linear import Fp8Linear, quantize_rows, restore
from fps_flex.wan.lora import Lora, add_adapter, trained
from tests.helpers.cases import relative_error
from tests.helpers.fp8_feed_forward import expected, make_feed_forward

pytestmark = pytest.mark.gpu

BF16 = 2**-8  # of rounding the output to bf16; sums are in fp32 or nearly so


@pytest.mark.parametrize(("rows", "inside", "outside"), [(48, 64, 32), (257, 512, 1024), (4096, 1536, 8960)])
@pytest.mark.parametrize("compiled", [False, True])
def test_both_products_are_those_of_the_codes(rows, inside, outside, compiled):
    torch.manual_seed(0)
    weight, bias = 0.02 * torch.randn(outside, inside, device="cuda"), torch.randn(outside, device="cuda")
    layer = Fp8Linear.of(weight, bias, multiply_codes=True)
    x = torch.randn(rows, inside, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    y = (torch.compile(layer) if compiled else layer)(x)
    gradient = torch.randn_like(y)
    y.backward(gradient)

    stored = restore(layer.weight, layer.scale, torch.float64)
    rounded = restore(*quantize_rows(x.detach()), torch.float64)
    assert relative_error(y, rounded @ stored.T + bias.double()) < BF16
    scaled = restore(*quantize_rows(gradient.float() * layer.scale.T), torch.float64)
    assert relative_error(x.grad, scaled @ layer.weight.double()) < BF16


@pytest.mark.parametrize("sizes", [(48, 64, 160), (4096, 1536, 8960)])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_feed_forward_network_is_that_of_the_codes(sizes, compiled):
    """Sums in fp32 move what is rounded next: now and then to the neighbouring code, a sixteenth away."""
    plain, x, gradient = make_feed_forward(1.0, 1e-6, *sizes, device="cuda")
    module, leaf = Fp8FeedForward(*plain), x.clone().requires_grad_()
    y = (torch.compile(module) if compiled else module)(leaf)
    results = y, *torch.autograd.grad(y, [leaf, *module.parameters()], gradient)
    for result, right in zip(results, expected(plain, x, gradient), strict=True):
        assert relative_error(result, right) < 4 * BF16


def as_fp64(codes, scale):
    return codes.double() * scale.double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [64, 5120, 13_824])
@pytest.mark.parametrize("compiled", [False, True])
def test_codes_and_scales_are_those_of_a_cpu(compiled, width, dtype):
    """Tokens of any size, of zeros, and with an outlier; where a quotient is halfway, to ulps, either code is right.

    (Numbers in bf16 often are: products of a few bits.)
    """
    torch.manual_seed(0)
    x = torch.randn(300, width) * 10 ** (4 * torch.rand(300, 1) - 2)
    x[0], x[1, 5] = 0, 1e4
    x = x.to(dtype)
    function = compiled_as_blocks(quantize_rows) if compiled else quantize_rows
    codes, scale = (y.cpu().double() for y in function(x.cuda()))
    right, right_scale = (y.double() for y in quantize_rows(x))
    assert relative_error(scale, right_scale) < 2**-22 and codes.isfinite().all()
    quotient, between = x.double() / right_scale, (codes + right) / 2
    assert ((codes == right) | ((quotient - between).abs() <= 2**-21 * quotient.abs())).all()
    assert (codes.abs().amax(dim=1)[1:] == 448).all() and not codes[0].any()


@pytest.mark.parametrize("width", [64, 13_824])
@pytest.mark.parametrize("compiled", [False, True])
def test_codes_of_gelu_are_those_of_gelu(compiled, width):
    torch.manual_seed(0)
    x = (torch.randn(300, width) * 10 ** (3 * torch.rand(300, 1) - 2)).bfloat16()
    x[0], x[1] = 0, -3 - x[1].abs()
    function = compiled_as_blocks(quantize_gelu) if compiled else quantize_gelu
    codes, scale = (y.cpu() for y in function(x.cuda()))
    right = F.gelu(x.double(), approximate="tanh")
    assert codes.float().isfinite().all() and not codes[0].float().any()
    assert ((as_fp64(codes, scale) - right).abs() <= right.abs() * 2**-4 * 1.001 + scale * 2**-9 + 1e-7).all()
    rows = right.abs().amax(dim=1) > 1e-3
    assert (codes.float().abs().amax(dim=1)[rows] >= 416).all()  # 448 but where no channel is near GELU's dip


@pytest.mark.parametrize(("tokens", "inside", "between"), [(48, 64, 160), (4096, 1536, 8960)])
@pytest.mark.parametrize("compiled", [False, True])
@torch.no_grad()
def test_a_frozen_feed_forward_network_is_that_of_the_codes(compiled, tokens, inside, between):
    plain, x, gradient = make_feed_forward(1.0, 1.0, tokens, inside, between, device="cuda")
    with torch.enable_grad():
        right = expected(plain, x, gradient)[0]
    frozen = FrozenFeedForward(plain)
    y = (compiled_as_blocks(frozen.forward) if compiled else frozen)(x[None])[0]
    assert y.dtype == torch.bfloat16 and relative_error(y, right) < 4 * BF16


@pytest.mark.parametrize("compiled", [False, True])
@torch.no_grad()
def test_layers_that_share_an_input_have_products_of_their_own_codes_and_biases(compiled):
    torch.manual_seed(0)
    plain = [torch.nn.Linear(512, 512, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    for i, layer in enumerate(plain):
        layer.bias.fill_(i)
    layers = [freeze(layer) for layer in plain]
    x = torch.randn(2, 257, 512, device="cuda").bfloat16()
    function = compiled_as_blocks(apply_to_one) if compiled else apply_to_one
    for y, layer in zip(function(x, *layers), plain, strict=True):
        weight, rounded = (as_fp64(*quantize_rows(z.flatten(0, -2))) for z in (layer.weight, x))
        assert relative_error(y.flatten(0, 1), rounded @ weight.T + layer.bias.double()) < BF16


def test_rounding_costs_what_e4m3_rounds():
    """Of numbers with 3 bits behind the point: each factor by some 2^-4 / sqrt(3) at most, at random signs."""
    torch.manual_seed(0)
    weight, x = 0.02 * torch.randn(1024, 1024, device="cuda"), torch.randn(512, 1024, device="cuda").bfloat16()
    layer = Fp8Linear.of(weight, torch.zeros(1024, device="cuda"), multiply_codes=True)
    assert 0.01 < relative_error(layer(x), x.double() @ weight.double().T) < 2**0.5 * 2**-4 / 3**0.5


def tiny_model_of(base, linears):
    """A Wan of 64 channels per head, checkpointed, that isn't zero anywhere."""
    from fps_flex import FPSAttention
    from fps_flex.wan import Wan, WanConfig
    from fps_flex.wan.base import build_base

    torch.manual_seed(0)
    config = WanConfig(dim=256, ffn_dim=512, heads=4, layers=3, text_dim=64)
    attention = FPSAttention("fps", tile=(4, 6, 6), scale_format="pow2", engine="triton")
    state = Wan(config, attention).state_dict()
    state["head.head.weight"].normal_(std=0.02)
    model = build_base(config, attention, state.items(), base, linears, "cuda")
    model.checkpointing = True
    return model


def compare_compiled_gradients(model, bound):
    """One graph for all blocks against eager ones. Rounding flips where sums differ."""
    latents, text = torch.randn(1, 16, 8, 24, 24, device="cuda"), torch.randn(1, 16, 64, device="cuda")
    gradients = []
    for model.compiled in (False, True):
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(latents, torch.tensor([800.0], device="cuda"), text).float().square().mean()
        gradients.append(torch.autograd.grad(loss, list(trained(model).values())))
    for name, eager, compiled in zip(trained(model), *gradients, strict=True):
        assert relative_error(compiled, eager) < bound, name


@pytest.mark.parametrize(
    ("base", "linears", "bound"),
    [("bf16", "bf16", 0.05), ("fp8", "bf16", 0.05), ("fp8", "fp8", 0.15), ("bf16", "fp8", 0.15)],
)
def test_adapters_beside_compiled_blocks_get_the_gradients_of_eager_ones(base, linears, bound):
    model = tiny_model_of(base, linears)
    add_adapter(model, Lora(8))
    for name, parameter in trained(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    compare_compiled_gradients(model, bound)


@pytest.mark.parametrize("linears", ["fp8-ffn", "fp8"])
def test_weights_in_compiled_blocks_get_the_gradients_of_eager_ones(linears):
    model = tiny_model_of("fp32", linears)
    fuse_feed_forwards(model)
    compare_compiled_gradients(model, 0.15)
