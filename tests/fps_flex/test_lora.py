"""Adapters in a Wan: nothing at first, the gradients of merged weights, and the model that lies behind them."""

from contextlib import nullcontext

import pytest
import torch
from torch.func import functional_call

from fps_flex import FPSAttention, TileLayout
from fps_flex.wan import Wan
from fps_flex.wan.base import DTYPES, build_base
from fps_flex.wan.dense import DenseAttention, dense_attention
from fps_flex.wan.lora import (
    LAYERS,
    Lora,
    add_adapter,
    check_peft,
    copy_trained,
    load_adapter,
    trained,
    without_adapter,
)
from tests.helpers.adapted import ATTENTION, CONFIG, adapted, gradients, make_inputs, make_state, shake
from tests.helpers.cases import plain_errors, relative_error

BASES = ["fp32", "bf16", "fp8"]
FP32 = 2**-24  # of rounding once
PLAIN = FPSAttention("fps", tile=(2, 2, 3), block=16, engine="eager", quantize=False)  # has no steps to fall off


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("mixed", [False, True])
def test_at_first_a_model_is_its_base_bit_for_bit(base, mixed):
    model = build_base(CONFIG, ATTENTION, make_state().items(), base, "bf16")
    inputs = make_inputs()

    def run():
        with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext(), torch.no_grad():
            return model(*inputs)

    before = run()
    add_adapter(model, Lora(4))
    assert torch.equal(run(), before)
    shake(model)
    assert not torch.equal(run(), before)


@pytest.mark.parametrize("base", BASES)
def test_adapters_are_all_that_is_trained_and_are_in_fp32(base):
    model = build_base(CONFIG, ATTENTION, make_state().items(), base, "bf16")
    before = {name: x.clone() for name, x in model.state_dict().items()}
    add_adapter(model, Lora(4, targets=("self_attn", "ffn.2")))
    layers = [f"blocks.{i}.{layer}" for i in range(2) for layer in [*(f"self_attn.{x}" for x in "qkvo"), "ffn.2"]]
    assert trained(model).keys() == {f"{layer}.lora_{part}.default.weight" for layer in layers for part in "AB"}
    assert all(x.dtype == torch.float32 for x in trained(model).values())
    frozen = {name.replace(".base_layer", ""): x for name, x in model.state_dict().items() if "lora_" not in name}
    assert frozen.keys() == before.keys()
    assert all(
        torch.equal(_bits(x), _bits(before[name])) and x.dtype == before[name].dtype for name, x in frozen.items()
    )


def _bits(x):
    return x.view(torch.uint8) if x.itemsize == 1 else x


@pytest.mark.parametrize("base", BASES)
def test_a_copy_shares_what_is_frozen_and_nothing_else(base):
    model = adapted(base)
    copy, names = copy_trained(model), trained(model)
    for name, parameter in model.named_parameters():
        assert (copy.get_parameter(name) is parameter) == (name not in names), name
    inputs = make_inputs()
    before = model(*inputs).detach()
    assert torch.equal(copy(*inputs), before)
    shake(copy, seed=2)
    assert torch.equal(model(*inputs), before) and not torch.equal(copy(*inputs), before)


@pytest.mark.parametrize("base", BASES)
def test_behind_the_adapters_is_a_dense_model_of_the_same_weights_and_stays(base):
    model, dense, inputs = adapted(base), dense_attention(16), make_inputs()
    expected = build_base(CONFIG, dense, make_state().items(), base, "bf16")(*inputs)
    teacher = without_adapter(model, dense)
    teacher.residual = model.residual
    assert torch.equal(teacher(*inputs), expected)
    pointers = {x.data_ptr() for x in model.parameters() if not x.requires_grad}
    assert {x.data_ptr() for x in teacher.parameters()} == pointers
    assert not any(x.requires_grad or x.is_meta for x in teacher.parameters())
    optimizer = torch.optim.AdamW(trained(model).values(), lr=0.1)
    for _ in range(2):
        model(*inputs).square().mean().backward()
        optimizer.step()
    assert torch.equal(teacher(*inputs), expected)


@pytest.mark.parametrize("alpha", [4.0, 1.0])
def test_gradients_are_those_of_merged_weights(alpha):
    """W + s up down: the gradient of up is s dW down^T, of down s up^T dW."""
    model, inputs = adapted(attention=PLAIN, lora=Lora(4, alpha)), make_inputs()
    got, own, scale = gradients(model, inputs), trained(model), alpha / 4
    merged = {name: x.clone() for name, x in make_state().items()}
    layers = [name.removesuffix(".lora_A.default.weight") for name in own if "lora_A" in name]
    assert len(layers) == CONFIG.layers * len(LAYERS)
    pairs = {layer: [own[f"{layer}.lora_{x}.default.weight"].detach() for x in "AB"] for layer in layers}
    for layer, (down, up) in pairs.items():
        merged[f"{layer}.weight"] = (merged[f"{layer}.weight"] + scale * up @ down).requires_grad_()
    plain = Wan(CONFIG, PLAIN)
    loss = functional_call(plain, merged, inputs).square().mean()
    of_weights = torch.autograd.grad(loss, [merged[f"{layer}.weight"] for layer in layers])
    for (layer, (down, up)), gradient in zip(pairs.items(), of_weights, strict=True):
        for part, expected in (("A", scale * up.T @ gradient), ("B", scale * gradient @ down.T)):
            assert relative_error(got[f"{layer}.lora_{part}.default.weight"], expected) < 100 * FP32, layer


@pytest.mark.parametrize("base", BASES)
def test_recomputed_and_offloaded_blocks_give_the_same_bits(base):
    model, inputs = adapted(base), make_inputs()
    expected = gradients(model, inputs)
    for model.checkpointing, model.offload in ((True, False), (True, True)):
        assert all(torch.equal(x, expected[name]) for name, x in gradients(model, inputs).items())


@pytest.mark.parametrize("grid", [(3, 5, 7), (1, 1, 1), (4, 4, 8), (2, 3, 11)])
def test_dense_attention_is_that_of_the_eager_preset_whatever_pads_hold(grid):
    attention, eager = dense_attention(16), FPSAttention("dense", tile=None, block=16, engine="eager")
    assert attention.step_schedule.is_dense and not ATTENTION.step_schedule.is_dense
    layout = TileLayout(grid, grid, 16)
    torch.manual_seed(0)
    tokens = [torch.randn(2, 2, layout.tokens, 16) for _ in range(3)]
    results = []
    for one in (attention, eager):
        plan = one.plan(grid, torch.tensor([0.2, 0.9]))
        assert (plan.layout.slots, plan.layout.tokens) == (layout.slots, layout.tokens)
        leaves = [x.clone().requires_grad_() for x in tokens]
        slots = [plan.layout.order(x, dim=2) for x in leaves]
        if one is attention:
            slots = [x.masked_fill(~plan.layout.valid[:, None], 1e4) for x in slots]
        out = plan.layout.unorder(one(*slots, plan), dim=2)
        results.append([out.detach(), *torch.autograd.grad((out * tokens[0]).sum(), leaves)])
    for got, expected, bound in zip(*results, plain_errors(*tokens, torch.float32), strict=True):
        assert relative_error(got, expected) <= 4 * bound


def test_the_dense_attention_of_a_model_is_used_by_it(monkeypatch):
    calls = []
    monkeypatch.setattr(DenseAttention, "__call__", lambda self, q, k, v, plan: calls.append(1) or v)
    without_adapter(adapted(), dense_attention(16))(*make_inputs())
    assert len(calls) == CONFIG.layers


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"rank": 0}, "lora.rank is 0, expected a whole number of at least 1"),
        ({"rank": True}, "lora.rank is True, expected a whole number of at least 1"),
        ({"rank": "8"}, "lora.rank is '8', expected a whole number of at least 1"),
        ({"alpha": 0}, "lora.alpha is 0, expected a number above 0"),
        ({"alpha": float("nan")}, "lora.alpha is nan, expected a number"),
        ({"targets": "q"}, "lora.targets is 'q', expected layers of a block: self_attn.q, "),
        ({"targets": ()}, "lora.targets is empty, expected layers of a block: self_attn.q, "),
        ({"targets": ("q", "self_atn")}, "lora.targets holds 'self_atn', which matches no layer of a block: did you "),
        ({"targets": ("to_q",)}, "lora.targets holds 'to_q', which matches no layer of a block: "),
        ({"targets": (7,)}, "lora.targets holds 7, which matches no layer of a block: "),
    ],
)
def test_a_lora_that_cannot_be_meant_is_one_line(options, line):
    with pytest.raises(ValueError) as error:
        Lora(**options)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (("q",), ("self_attn.q", "cross_attn.q")),
        (("cross_attn",), ("cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.o")),
        (("ffn", "ffn.0"), ("ffn.0", "ffn.2")),
        (["ffn.2", "self_attn.o"], ("self_attn.o", "ffn.2")),
        (Lora().targets, LAYERS),
    ],
)
def test_targets_name_layers_by_their_parts(targets, layers):
    assert Lora(targets=targets).layers == layers


def test_a_rank_wider_than_the_model_is_refused():
    Lora(48).check_fits(CONFIG)
    with pytest.raises(ValueError, match="lora.rank is 49, expected at most 48, the width of the layers"):
        Lora(49).check_fits(CONFIG)


def test_an_adapter_is_put_back_bit_for_bit_and_no_other_is():
    model, other = adapted(), adapted()
    shake(other, seed=3)
    load_adapter(other, {name: x.detach().clone() for name, x in trained(model).items()})
    assert all(torch.equal(x, trained(other)[name]) for name, x in trained(model).items())
    fewer = adapted(lora=Lora(4, targets=("q",)))
    with pytest.raises(ValueError, match="the adapter is of other layers than this configuration's: blocks.0"):
        load_adapter(model, trained(fewer))
    narrow = adapted(lora=Lora(2))
    with pytest.raises(ValueError, match=r"lora_A.default.weight is of shape \(2, 48\), expected \(4, 48\)"):
        load_adapter(model, trained(narrow))


def test_without_peft_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("fps_flex.wan.lora.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="^a LoRA needs peft: pip install peft$"):
        check_peft()
    with pytest.raises(ValueError, match="pip install peft"):
        adapted()


def test_the_rest_of_an_fp8_base_is_in_bf16_or_stays_in_fp32():
    model = build_base(CONFIG, ATTENTION, make_state().items(), "fp8", "bf16")
    dtypes = {name: x.dtype for name, x in model.named_parameters()}
    codes = {f"blocks.{i}.{layer}.weight" for i in range(2) for layer in LAYERS}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float8_e4m3fn} == codes
    assert dtypes["patch_embedding.weight"] == dtypes["blocks.0.ffn.0.bias"] == DTYPES["fp8"] == torch.bfloat16
    assert dtypes["blocks.0.modulation"] == dtypes["blocks.0.ffn.0.scale"] == torch.float32
