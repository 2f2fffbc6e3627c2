"""Weights in float8: scales are undone, and what is quantised otherwise is refused by name."""

import json

import pytest
import torch

from fps_flex.wan.weights import load_wan
from tests.helpers.official_wan import DENSE, assert_same, read_weights, refused_weights


def is_matrix(name):
    return name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name


def scaled(tensors, scale_of, suffix):
    """As ComfyUI has them, and what they are worth."""
    made, worth = {}, {}
    for name, x in tensors.items():
        if not is_matrix(name):
            made[name] = worth[name] = x
            continue
        scale = scale_of(x)
        made[name] = (x / scale.reshape(scale.shape if scale.dim() > 1 else (-1, 1))).to(torch.float8_e4m3fn)
        made[name.removesuffix("weight") + suffix] = scale
        worth[name] = made[name].float() * scale.reshape(scale.shape if scale.dim() > 1 else (-1, 1))
    return made, worth


KINDS = {
    "number": lambda x: x.abs().max() / 448,
    "one": lambda x: (x.abs().max() / 448).reshape(1),
    "row": lambda x: x.abs().amax(1) / 448,
    "column of rows": lambda x: x.abs().amax(1, keepdim=True) / 448,
}


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_scaled_fp8_is_undone(save, tensors, suffix, kind, prefix):
    made, worth = scaled(tensors, KINDS[kind], suffix)
    made = {prefix + name: x for name, x in made.items()}
    made[f"{prefix}scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    layer = f"{prefix}blocks.0.ffn.0."
    made |= {f"{layer}scale_input": torch.ones(1), f"{prefix}blocks.1.ffn.0.input_scale": torch.ones(())}
    entry = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True}).encode()
    made[f"{layer}comfy_quant"] = torch.tensor(list(entry), dtype=torch.uint8)
    path = save(made)
    assert_same(read_weights(path), worth)
    loaded = load_wan(path, DENSE, dtype=torch.bfloat16).state_dict()
    assert torch.equal(loaded["blocks.0.ffn.0.weight"], worth["blocks.0.ffn.0.weight"].bfloat16())


def test_scales_of_blocks(save, tensors):
    made = tensors | {"blocks.0.ffn.2.weight": tensors["blocks.0.ffn.2.weight"].to(torch.float8_e4m3fn)}
    scale = torch.rand(3, 2) + 0.5
    made["blocks.0.ffn.2.weight_scale"] = scale  # of a weight of 48 rows and 96 columns
    got = read_weights(save(made))["blocks.0.ffn.2.weight"]
    expected = made["blocks.0.ffn.2.weight"].float() * scale.repeat_interleave(16, 0).repeat_interleave(48, 1)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_plain_fp8_is_read_as_it_is_and_computes_in_bfloat16(save, tensors, dtype):
    made = {name: x.to(dtype) if is_matrix(name) else x for name, x in tensors.items()}
    path = save(made)
    assert_same(read_weights(path), made)
    model = load_wan(path, DENSE).state_dict()
    for name in filter(is_matrix, made):
        assert model[name].dtype == torch.bfloat16 and torch.equal(model[name].float(), made[name].float())


def marker(format):
    return torch.tensor(list(json.dumps({"format": format}).encode()), dtype=torch.uint8)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_float8_without_its_scale_in_a_scaled_file_is_refused(save, tensors, prefix):
    made, _ = scaled(tensors, KINDS["number"], "weight_scale")
    made = {prefix + name: x for name, x in made.items()}
    bare = {name: x for name, x in made.items() if not name.endswith("weight_scale")}
    layer = f"{prefix}blocks.1.ffn.2"
    one = {name: x for name, x in made.items() if name != f"{layer}.weight_scale"}
    refused_weights(save(one), f"{layer}.weight lacks its scale in a file of scaled float8")
    lacks = "weight lacks its scale in a file of scaled float8: fetch or save it again"
    refused_weights(save(bare | {f"{prefix}scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}), lacks)
    refused_weights(save(bare | {f"{layer}.scale_input": torch.ones(1)}), lacks)
    encoder = {"text_encoders.umt5xxl.transformer.scaled_fp8": torch.zeros(2)}
    assert len(read_weights(save(bare | encoder))) == len(tensors)
    beside = {f"{layer}.comfy_quant": marker("float8_e4m3fn")}
    refused_weights(save(one | beside), f"{layer}.comfy_quant is beside blocks.1.ffn.2.weight without its scale")
    other = {f"{layer}.comfy_quant": marker("float8_e5m2")}
    refused_weights(
        save(made | other), f"{layer}.comfy_quant says float8_e5m2 and is beside a weight of torch.float8_e4m3fn"
    )
    refused_weights(save(made | {f"{layer}.no.comfy_quant": marker("float8_e5m2")}), "is beside no weight")


LAYER = "blocks.0.ffn.0."  # 96 rows, 48 columns


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"scale_weight": torch.ones(95)}, "is of shape (95,) for a weight of (96, 48), expected one scale, or one"),
        ({"scale_weight": torch.ones(5, 7)}, "is of shape (5, 7)"),
        ({"scale_weight": torch.ones(2, 2, 2)}, "is of shape (2, 2, 2)"),
        ({"weight_scale": torch.zeros(0)}, "is of shape (0,)"),
        ({"weight_scale": torch.ones(96, dtype=torch.uint8)}, "is of torch.uint8, expected float32"),
        ({"weight_scale": torch.ones(()), "scale_weight": torch.ones(())}, "expected one scale for blocks.0.ffn.0.wei"),
        ({"weight_scale_2": torch.ones(())}, "is quantised to 4 bits"),
        ({"weight": torch.zeros(96, 48), "scale_weight": torch.ones(())}, "is beside a weight of torch.float32"),
        ({"more.scale_weight": torch.ones(())}, "blocks.0.ffn.0.more.scale_weight is beside no weight"),
        ({"comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)}, 'says {"format": "nvfp4"}'),
        ({"comfy_quant": torch.tensor(list(b"\xff\xff"), dtype=torch.uint8)}, 'says "nothing readable"'),
        ({"comfy_quant": torch.tensor(list(b'{"format": "float8_e4m3fn", "convrot": true}'), dtype=torch.uint8)},
         "convrot"),
        ({"weight": torch.zeros(96, 48, dtype=torch.int8)}, "is of torch.int8, expected floating-point weights"),
        ({"weight": torch.zeros(96, 48, dtype=torch.uint8)}, "is of torch.uint8, expected floating-point weights"),
        ({"weight.absmax": torch.ones(1)}, "is quantised by bitsandbytes"),
        ({"weight.quant_map": torch.ones(1)}, "is quantised by bitsandbytes"),
        ({"weight.quant_state.bitsandbytes__nf4": torch.ones(1)}, "is quantised by bitsandbytes"),
        ({"SCB": torch.ones(1)}, "is quantised by bitsandbytes"),
        ({"qweight": torch.ones(1)}, "is quantised by GPTQ or AWQ"),
        ({"wscales": torch.ones(1), "qweight": torch.ones(1)}, "is quantised by SVDQuant"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_quantised_otherwise_is_refused_by_name(save, tensors, extra, message):
    weights = {LAYER + "weight": tensors[LAYER + "weight"].to(torch.float8_e4m3fn)}
    refused_weights(save(tensors | weights | {LAYER + name: x for name, x in extra.items()}), message)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_scale_that_is_none_is_refused_when_it_is_read(save, tensors, scale):
    weights = {LAYER + "weight": tensors[LAYER + "weight"].to(torch.float8_e4m3fn)}
    path = save(tensors | weights | {LAYER + "scale_weight": torch.tensor(scale)})
    with pytest.raises(ValueError, match="blocks.0.ffn.0.scale_weight is not finite and above 0"):
        read_weights(path)
