"""A block's layers in e4m3 for inference: against their codes in fp64, and against torchao's rounding."""

import re
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._inductor.utils import run_and_get_code

from fps_flex import FPSAttention
from fps_flex.compile import compiled
from fps_flex.engines import FLOAT8
from fps_flex.wan import WAN_TINY, Wan
from fps_flex.wan.fp8_frozen import FrozenAttention, FrozenFeedForward
from fps_flex.wan.fp8_linear import Fp8Linear, quantize_rows, restore
from fps_flex.wan.linears import PARTS, quantize_linears
from fps_flex.wan.model import Attention
from tests.helpers.cases import relative_error
from tests.helpers.fp8_feed_forward import expected, make_feed_forward
from tests.helpers.torchao_rounding import apply_as_torchao

BF16 = 2**-8
CONFIG = replace(WAN_TINY, layers=2, channels=16)


@pytest.fixture
def float8(monkeypatch):
    """A CPU, whose products of codes are those of a GPU, only slow."""
    monkeypatch.setattr("fps_flex.wan.linears.has_float8", lambda device: True)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def make_attention(dim=96, heads=2):
    torch.manual_seed(0)
    attention = Attention(replace(CONFIG, dim=dim, heads=heads)).bfloat16()
    for norm in (attention.norm_q, attention.norm_k):
        norm.float().weight.data.uniform_(0.5, 2)
    return attention


def of_codes(layer, x):
    """A layer's output of x by the codes of both, in fp64."""
    weight, rounded = (restore(*quantize_rows(y.flatten(0, -2)), torch.float64) for y in (layer.weight, x))
    return (rounded @ weight.T + layer.bias.double()).view(*x.shape[:-1], -1)


@pytest.mark.parametrize("of_text", [False, True])
def test_projections_are_those_of_the_codes(of_text):
    attention = make_attention()
    x, text = torch.randn(2, 11, 96).bfloat16(), torch.randn(2, 7, 96).bfloat16()
    source = text if of_text else x
    q, k, v = FrozenAttention(deepcopy(attention))._project(x, source)
    rights = [
        of_codes(layer, given) for layer, given in ((attention.q, x), (attention.k, source), (attention.v, source))
    ]
    for i, norm in enumerate((attention.norm_q, attention.norm_k)):
        rights[i] = F.rms_norm(rights[i], (96,), norm.weight.double(), norm.eps)
    for y, right in zip((q, k, v), rights, strict=True):
        assert y.dtype == torch.bfloat16 and relative_error(y.flatten(2), right) < 2 * BF16


def test_what_attention_returns_is_projected_by_codes():
    attention = make_attention()
    x = torch.randn(2, 2, 11, 48).bfloat16()
    right = of_codes(attention.o, x.transpose(1, 2).flatten(2))
    assert relative_error(FrozenAttention(deepcopy(attention))._merge(x), right) < BF16


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_a_feed_forward_network_is_that_of_the_codes(size):
    """Sums in fp32 move what is rounded next: now and then to the neighbouring code, a sixteenth away."""
    plain, x, gradient = make_feed_forward(size, 1.0)
    with torch.enable_grad():
        right = expected(plain, x, gradient)[0]
    assert relative_error(FrozenFeedForward(plain)(x[None])[0], right) < 2 * BF16


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("outlier", [1, 100])
def test_it_is_no_less_accurate_than_torchao(size, outlier):
    """The mean over 40 networks, of which chance moves one by 3 %, and so the mean by half a percent."""
    ratios = []
    for seed in range(40):
        torch.manual_seed(seed)
        plain = nn.Sequential(nn.Linear(64, 160), nn.GELU("tanh"), nn.Linear(160, 64)).bfloat16()
        x = (size * torch.randn(64, 64)).bfloat16()
        x[:, 5] *= outlier
        right = deepcopy(plain).double()(x.double())
        hidden = F.gelu(apply_as_torchao(plain[0], x), approximate="tanh")
        theirs = relative_error(apply_as_torchao(plain[2], hidden), right)
        ratios.append(relative_error(FrozenFeedForward(plain)(x[None])[0], right) / theirs)
    assert sum(ratios) / len(ratios) < 1.015


def test_a_token_of_zeros_is_the_bias_and_not_nan():
    """torchao's scale of it is 0, and its codes NaN."""
    attention = make_attention()
    x = torch.randn(1, 5, 96).bfloat16()
    x[0, 2] = 0
    v = FrozenAttention(deepcopy(attention))._project(x, x)[2].flatten(2)
    assert v.isfinite().all() and torch.equal(v[0, 2], attention.v.bias)


@pytest.mark.compiles
@torch.inference_mode()
def test_compiled_they_give_the_same():
    attention = FrozenAttention(make_attention())
    feed_forward = FrozenFeedForward(make_feed_forward(1.0, 1.0)[0])
    x, y = torch.randn(2, 11, 96).bfloat16(), torch.randn(2, 11, 64).bfloat16()
    heads = torch.randn(2, 2, 11, 48).bfloat16()
    for function, given in (
        (attention._project, (x, x)),
        (attention._project, (x, x[:, :3])),
        (attention._merge, (heads,)),
        (feed_forward, (y,)),
    ):
        torch._dynamo.reset()
        results = torch.compile(function, fullgraph=True, backend="aot_eager")(*given), function(*given)
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.compiles
def test_compiled_what_q_k_and_v_share_is_rounded_and_written_once():
    attention = FrozenAttention(make_attention())

    def project(x):
        rounded_on_the_way = x.sin().bfloat16()
        return attention._project(rounded_on_the_way, rounded_on_the_way)

    _, (code,) = run_and_get_code(compiled(project), torch.randn(1, 64, 96))
    assert len(re.findall(r"empty_strided.*float8_e4m3fn\)", code)) == 1


def random_model():
    torch.manual_seed(0)
    model = Wan(CONFIG, FPSAttention(tile=(2, 2, 2), block=8)).bfloat16()
    for name, parameter in model.named_parameters():
        if "modulation" in name or "norm" in name or name.startswith("time"):
            parameter.data = parameter.data.float()
    nn.init.normal_(model.head.head.weight, std=0.02)
    return model.eval()


def kinds_of(model):
    """Of the blocks' matrices, by whether they are codes."""
    names = {True: set(), False: set()}
    for name, parameter in model.blocks[1].named_parameters():
        if re.fullmatch(r".*(\.[qkvo]|ffn\.[02])\.weight", name):
            names[parameter.dtype == FLOAT8].add(name)
    return names


@pytest.mark.parametrize("linears", PARTS)
def test_the_layers_that_are_named_are_codes_of_a_byte_a_weight(float8, linears):
    model = random_model()
    before = kinds_of(model)[False]
    names = set(model.state_dict())
    quantize_linears(model, linears)
    after = kinds_of(model)
    assert after[True] == {name for name in before if name.startswith(PARTS[linears])} and len(before) == 10
    assert after[True] | after[False] == before and names == {x for x in model.state_dict() if not x.endswith("scale")}
    layers = [layer for layer in model.modules() if isinstance(layer, Fp8Linear)]
    assert len(layers) == 2 * len(after[True])
    assert all(layer.weight.nbytes == layer.in_features * layer.out_features for layer in layers)


@pytest.mark.parametrize("residual", ["compute", "fp32"])
@pytest.mark.parametrize("linears", ["fp8-ffn", "fp8"])
def test_a_model_stays_near_bf16(float8, linears, residual):
    model = random_model()
    model.residual = residual
    inputs = torch.randn(2, 16, 2, 8, 8), torch.tensor([500.0, 900.0]), torch.randn(2, 5, CONFIG.text_dim)
    plain = model(*inputs)
    quantize_linears(model, linears)
    assert 0.001 < relative_error(model(*inputs), plain) < 0.1


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda model: model.float(), "linears fp8 need weights in bfloat16, got torch.float32: use bf16"),
        (
            lambda model: setattr(model.blocks[0], "ffn", nn.Sequential(nn.Linear(128, 200).bfloat16())),
            "linears fp8 need layers of multiples of 16 channels, got 128 and 200: use bf16",
        ),
    ],
)
def test_what_has_no_products_of_codes_is_one_line(float8, change, line):
    model = random_model()
    change(model)
    with pytest.raises(ValueError) as error:
        quantize_linears(model, "fp8")
    assert str(error.value) == line


def test_inference_needs_no_torchao(float8, monkeypatch):
    monkeypatch.setattr("fps_flex.wan.linears.find_spec", lambda name: None)
    quantize_linears(random_model(), "fp8")
