"""LoRAs in the names that people's tools give them: read bit for bit, merged exactly, refused in one line."""

import json

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file

from fps_flex.diffusers import install
from fps_flex.wan import WanConfig
from fps_flex.wan.adapter_files import write_adapter
from fps_flex.wan.adapters import LowRank, holds_adapter, read_adapter
from fps_flex.wan.keys import to_official
from fps_flex.wan.merging import merge
from fps_flex.wan.weights import Weights, load_wan, open_weights
from tests.fps_flex.test_weights import DENSE, make_official
from tests.helpers.cases import relative_error
from tests.helpers.loras import (
    DIM,
    FFN,
    LAYERS,
    OTHERS,
    WHOLE,
    assert_same_adapter,
    diffusers_header,
    make_adapter,
    named,
    save,
)
from tests.helpers.stock_wan import SAME, SMALL, call, t2v_pipeline, tiny_transformer
from tests.helpers.tiny_wan import SIZES

DOWN_UP = {"down": "lora_down.weight", "up": "lora_up.weight"}
DEFAULT = {"down": "lora_A.default.weight", "up": "lora_B.default.weight"}
# of each tool: how it names tensors, and what it says alpha by
NAMINGS = {
    "diffusers": {"pattern": "transformer.{diffusers}"},
    "diffusers' model": {"pattern": "{diffusers}"},
    "comfyui": {"pattern": "diffusion_model.{official}"},
    "comfyui with alpha": {"pattern": "diffusion_model.{official}", **DOWN_UP, "alpha": torch.bfloat16},
    "lora_A with alpha": {"pattern": "diffusion_model.{official}", "alpha": torch.float32},
    "the original": {"pattern": "{official}", **DOWN_UP, "alpha": torch.float32},
    "diffsynth": {"pattern": "{official}", **DEFAULT},
    "diffsynth with a prefix": {"pattern": "pipe.dit.{official}", **DEFAULT},
    "musubi": {"pattern": "lora_unet_{flat}", **DOWN_UP, "alpha": torch.float32},
    "videox-fun": {"pattern": "lora_unet__{flat}", **DOWN_UP, "alpha": torch.bfloat16},
    "onetrainer": {"pattern": "lora_transformer_{flat_diffusers}", **DOWN_UP, "alpha": torch.float32},
    "onetrainer's new": {"pattern": "transformer.{diffusers}", **DOWN_UP, "alpha": torch.int64},
    "peft": {"pattern": "base_model.model.{official}"},
    "peft of diffusers": {"pattern": "base_model.model.{diffusers}"},
    "compiled": {"pattern": "_orig_mod.{official}", **DEFAULT},
    "lora.down": {"pattern": "transformer.{diffusers}", "down": "lora.down.weight", "up": "lora.up.weight"},
}


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A tiny official release; not to be changed."""
    folder = tmp_path_factory.mktemp("official") / "release"
    make_official(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_is_read_to_the_bit(tmp_path, naming, dtype):
    form = NAMINGS[naming]
    expected = make_adapter(LAYERS | OTHERS, alpha=6 if form.get("alpha") else None, dtype=dtype)
    file = save(named(expected, **form), tmp_path / "lora.safetensors")
    assert_same_adapter(read_adapter(file), expected)
    assert_same_adapter(read_adapter(tmp_path), expected)
    assert holds_adapter(file)


def test_that_nothing_says_peft_s_alpha_is_told(tmp_path, caplog):
    file = save(named(make_adapter(), "base_model.model.{official}"), tmp_path / "adapter_model.safetensors")
    read_adapter(file)
    assert "without adapter_config.json beside it: alpha is taken to be the rank" in caplog.text


def test_what_is_added_is_alpha_over_rank_times_the_product():
    layer = make_adapter({"head.head": (64, DIM)}, rank=4, alpha=3, dtype=torch.bfloat16).layers["head.head"]
    expected = (0.75 * layer.up.double() @ layer.down.double()).float()
    assert layer.rank == 4 and layer.shape == (64, DIM) and layer.delta().dtype == torch.float32
    torch.testing.assert_close(layer.delta(), expected, rtol=1e-6, atol=1e-6)
    down, up = torch.randn(3, 16, 1, 2, 2), torch.randn(DIM, 3, 1, 1, 1)
    x = torch.randn(1, 16, 2, 4, 4)
    conv = torch.nn.functional.conv3d(torch.nn.functional.conv3d(x, down, stride=(1, 2, 2)), up)
    whole = torch.nn.functional.conv3d(x, LowRank(down, up, 3.0).delta(), stride=(1, 2, 2))
    torch.testing.assert_close(whole, conv, rtol=1e-4, atol=1e-4)


def test_alpha_of_a_header_and_of_peft_is_heeded_with_its_patterns_and_its_root(tmp_path):
    expected = make_adapter()
    tensors = named(expected, "transformer.{diffusers}")
    config = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"blocks.1.attn1.to_q": 2.0, "net.2": 3}}
    for file, beside in (
        (save(tensors, tmp_path / "a/x.safetensors", **diffusers_header(**config)), None),
        (save(tensors, tmp_path / "b/x.safetensors", **diffusers_header("", **config)), None),
        (save(tensors, tmp_path / "c/adapter_model.safetensors", format="pt"), config),
    ):
        if beside:
            file.with_name("adapter_config.json").write_text(json.dumps(beside))
        alphas = {name: layer.alpha for name, layer in read_adapter(file).layers.items()}
        assert alphas.pop("blocks.1.self_attn.q") == 2
        assert alphas.pop("blocks.0.ffn.2") == alphas.pop("blocks.1.ffn.2") == 3
        assert set(alphas.values()) == {8}
    rooted = save(tensors, tmp_path / "d/x.safetensors", **diffusers_header(lora_alpha=8, use_rslora=True))
    assert {layer.alpha for layer in read_adapter(rooted).layers.values()} == {16}


def test_peft_itself_computes_what_is_read_of_its_own_files(official, tmp_path):
    """With ranks and alphas of layers' own, a root in place of the rank, and a bias of the matrices."""
    wan = load_wan(official, DENSE)
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q", "ffn.2"], rank_pattern={"blocks.0.self_attn.q": 8}, lora_bias=True,
        alpha_pattern={"ffn.2": 3}, use_rslora=True, init_lora_weights=False,
    )  # fmt: skip
    inject_adapter_in_model(config, wan)
    for name, parameter in wan.named_parameters():
        if "lora_B" in name and name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    state = {f"base_model.model.{name}": x for name, x in get_peft_model_state_dict(wan).items()}
    file = save(state, tmp_path / "adapter_model.safetensors")
    said = {key: value for key, value in config.to_dict().items() if not isinstance(value, set)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said, default=str))
    merged = merge(open_weights(official), read_adapter(file))
    assert len(read_adapter(file).differences) == 6  # a bias for each layer
    assert sum(layer.rank == 8 for layer in read_adapter(file).layers.values()) == 1
    own = load_wan(official, DENSE)
    own.load_state_dict(dict(merged.stream()))
    x, timestep, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([300.0]), torch.randn(1, 5, 32)
    with torch.no_grad():
        before = load_wan(official, DENSE)(x, timestep, text)
        expected = wan(x, timestep, text)
        torch.testing.assert_close(own(x, timestep, text), expected, rtol=1e-4, atol=1e-5)
    assert (before - expected).std() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_differences_are_read_and_merged(official, tmp_path, dtype):
    """As lightx2v's have them."""
    expected = make_adapter(LAYERS, alpha=2, whole=WHOLE, dtype=dtype)
    tensors = named(expected, "diffusion_model.{official}", **DOWN_UP, alpha=torch.float32)
    endings = {"weight": "diff", "bias": "diff_b", "modulation": "diff_m"}
    for name, tensor in expected.differences.items():
        owner, _, leaf = name.rpartition(".")
        tensors[f"diffusion_model.{owner}.{endings[leaf]}"] = tensor
    got = read_adapter(save(tensors, tmp_path / "x.safetensors"))
    assert_same_adapter(got, expected)
    before, merged = dict(open_weights(official).stream()), merge(open_weights(official), got, 0.5)
    for name, tensor in expected.differences.items():
        torch.testing.assert_close(merged.read(name), before[name] + 0.5 * tensor.float(), rtol=0, atol=1e-6)
    both = make_adapter({"head.head": (64, DIM)}, whole={"head.head.weight": (64, DIM)})
    both.layers["blocks.0.self_attn.q"] = make_adapter().layers["blocks.0.self_attn.q"]
    total = both.layers["head.head"].delta() + both.differences["head.head.weight"]
    torch.testing.assert_close(both.delta("head.head.weight"), total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_merged_weights_are_the_sum_exactly_and_once_rounded(tmp_path, dtype):
    make_official(tmp_path / "base", dtype)
    adapter, other = make_adapter(alpha=7), make_adapter(alpha=1, seed=1)
    base = open_weights(tmp_path / "base")
    merged = merge(merge(base, adapter, -0.75), other, 2.0)
    for name, tensor in base.stream():
        expected = tensor.double()
        if name.removesuffix(".weight") in LAYERS:
            for one, strength in ((adapter, -0.75), (other, 2.0)):
                layer = one.layers[name.removesuffix(".weight")]
                expected = expected + strength * layer.alpha / 4 * layer.up.double() @ layer.down.double()
            kept = torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype
            assert merged.unrounded.specs[name].dtype == torch.float32
        else:
            kept = dtype
            assert merged.unrounded.specs[name].dtype == dtype
        exact = merged.unrounded.read(name)
        torch.testing.assert_close(exact.double(), expected, rtol=1e-6, atol=1e-6)
        assert exact.dtype == merged.unrounded.specs[name].dtype
        assert merged.specs[name].dtype == merged.read(name).dtype == kept
        assert torch.equal(merged.read(name), exact.to(kept))


def test_a_fingerprint_depends_on_the_base_the_lora_and_its_strength(official, tmp_path):
    make_official(tmp_path / "other", torch.bfloat16)
    base, adapter = open_weights(official), make_adapter(alpha=2)
    prints = [
        merge(*args).fingerprint()
        for args in (
            (base, adapter), (base, adapter, 0.5), (base, make_adapter(alpha=3)), (base, make_adapter(seed=1, alpha=2)),
            (open_weights(tmp_path / "other"), adapter), (merge(base, adapter), adapter),
        )
    ]  # fmt: skip
    assert len({base.fingerprint(), *prints}) == 7
    assert merge(open_weights(official), make_adapter(alpha=2)).fingerprint() == prints[0]
    assert merge(base, adapter).unrounded.fingerprint() == prints[0]


def stock_output(pipe_or_model):
    return call(getattr(pipe_or_model, "transformer", pipe_or_model))


@pytest.mark.parametrize("ranks", ["one", "several"])
@pytest.mark.parametrize("naming", ["diffusers-lora", "comfyui-lora"])
@pytest.mark.parametrize("order", ["stock", "install first", "install after"])
def test_a_stock_pipeline_computes_with_the_file_what_the_merged_model_does(tmp_path, naming, order, ranks):
    adapter = make_adapter(alpha=6)
    if ranks == "several":
        adapter.layers.update(make_adapter({"blocks.1.self_attn.q": (DIM, DIM)}, rank=2, alpha=5, seed=3).layers)
        adapter.layers.update(make_adapter({"blocks.0.ffn.0": (FFN, DIM)}, rank=4, alpha=1, seed=4).layers)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    write_adapter(adapter, file, naming)
    assert_same_adapter(read_adapter(file), adapter)

    options = {**SMALL, "quantize": False}  # in which a sum's order changes no code
    pipe, alone = t2v_pipeline(), tiny_transformer()
    before = stock_output(pipe)
    if order == "install first":
        install(pipe.transformer, **options)
    pipe.load_lora_weights(str(tmp_path))
    if order == "install after":
        install(pipe.transformer, **options)

    state = {to_official(name): x for name, x in alone.state_dict().items()}
    merged = merge(weights_of(state), adapter)
    alone.load_state_dict({name: merged.read(to_official(name)) for name in alone.state_dict()})
    if order != "stock":
        install(alone, **options)
    expected = stock_output(alone)
    assert (before - expected).std() > 0.05
    torch.testing.assert_close(stock_output(pipe), expected, rtol=1e-4, atol=1e-4)
    if order != "stock":
        for transformer in (pipe.transformer, alone):
            install(transformer, **SMALL)
        assert relative_error(stock_output(pipe), stock_output(alone)) < SAME


def weights_of(state):
    from fps_flex.wan.files import Spec

    specs = {name: Spec(tuple(x.shape), x.dtype) for name, x in state.items()}
    return Weights(WanConfig(**SIZES), specs, state.__getitem__)


def test_a_stock_transformer_alone_loads_it_too(tmp_path):
    adapter = make_adapter(LAYERS | OTHERS, alpha=6)
    write_adapter(adapter, tmp_path / "x.safetensors", "diffusers-lora")
    stock, alone = tiny_transformer(), tiny_transformer()
    stock.load_lora_adapter(str(tmp_path), weight_name="x.safetensors", prefix="transformer")
    merged = merge(weights_of({to_official(name): x for name, x in alone.state_dict().items()}), adapter)
    alone.load_state_dict({name: merged.read(to_official(name)) for name in alone.state_dict()})
    torch.testing.assert_close(call(stock), call(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("naming", ["diffusers-lora", "comfyui-lora"])
def test_what_is_written_is_read_back_to_the_bit(tmp_path, naming, dtype):
    whole = WHOLE if naming == "comfyui-lora" else None
    adapter = make_adapter(LAYERS | OTHERS, alpha=0.1, whole=whole, dtype=dtype)
    write_adapter(adapter, tmp_path / "x.safetensors", naming)
    assert_same_adapter(read_adapter(tmp_path / "x.safetensors"), adapter)


def test_diffusers_format_refuses_what_it_has_no_place_for(tmp_path):
    with pytest.raises(ValueError, match="whole differences to 5 tensors .*choose comfyui-lora, or merge"):
        write_adapter(make_adapter(whole=WHOLE), tmp_path / "x.safetensors", "diffusers-lora")
    with pytest.raises(ValueError, match="naming is 'kohya', expected one of diffusers-lora, comfyui-lora"):
        write_adapter(make_adapter(), tmp_path / "x.safetensors", "kohya")


def names(*extra, pattern="diffusion_model.{official}", shape=(4, DIM)):
    """A LoRA, and tensors of other names beside it."""
    return named(make_adapter(), pattern) | {name: torch.ones(shape) for name in extra}


Q = "diffusion_model.blocks.0.self_attn.q"
WITHOUT = {name: x for name, x in names().items() if not name.startswith(Q)}
REFUSED = {
    "a DoRA": (names(f"{Q}.dora_scale"), "a DoRA"),
    "peft's DoRA": (names(f"{Q}.lora_magnitude_vector"), "a DoRA, which also scales whole columns (diff"),
    "LoKr": ({f"{Q}.lokr_w1": torch.ones(2, 2), f"{Q}.lokr_w2": torch.ones(2, 2)}, "a LoKr of LyCORIS (diff"),
    "LoHa": ({f"{Q}.hada_w1_a": torch.ones(2, 2)}, "a LoHa of LyCORIS"),
    "LoCon's third": (names(f"{Q}.lora_mid.weight"), "a LoCon of LyCORIS with a third factor"),
    "set_weight": (names("diffusion_model.blocks.0.norm3.set_weight"), "whole tensors in place of differences"),
    "image to video": (
        names("diffusion_model.blocks.0.cross_attn.k_img.lora_A.weight"), "a LoRA of an image-to-video model"),
    "musubi's image to video": (
        names("lora_unet_blocks_0_cross_attn_v_img.lora_down.weight", pattern="lora_unet_{flat}"), "image-to-video"),
    "diffusers' image to video": (
        names("transformer.blocks.0.attn2.add_k_proj.lora_A.weight", pattern="transformer.{diffusers}"), "image-to-v"),
    "a text encoder": (names("lora_te1_encoder_layer_0.lora_down.weight"), "a LoRA of a text encoder"),
    "a second transformer": (names("transformer_2.blocks.0.attn1.to_q.lora_A.weight"), "second transformer"),
    "VACE": (names("diffusion_model.vace_blocks.0.self_attn.q.lora_A.weight"), "a LoRA of a VACE model"),
    "HunyuanVideo": (
        {"diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight": torch.ones(4, 4)}, "Flux or HunyuanVideo"),
    "SDXL": ({"lora_unet_down_blocks_0_attn.lora_down.weight": torch.ones(4, 4)}, "another family of models"),
    "a nameless one": (names("x.lora_A.weight"), "no LoRA of a text-to-video Wan (x.lora_A.weight)"),
    "several nameless": (names("x.lora_A.weight", "y.lora_A.weight"), "(x.lora_A.weight and 1 more)"),
    "a model with it": (names("blocks.0.self_attn.q.base_layer.weight"), "a model with its LoRA inside"),
    "no up": (WITHOUT | {f"{Q}.lora_A.weight": torch.ones(4, DIM)}, "lacks the up matrix of blocks.0.self_attn.q: f"),
    "no down": (WITHOUT | {f"{Q}.lora_up.weight": torch.ones(DIM, 4)}, "lacks the down matrix of blocks.0.self_attn.q"),
    "alpha alone": (WITHOUT | {f"{Q}.alpha": torch.ones(())}, "lacks the down matrix"),
    "a bias alone": (WITHOUT | {f"{Q}.lora_B.bias": torch.ones(DIM)}, "lacks the down matrix"),
    "ranks": (
        WITHOUT | {f"{Q}.lora_A.weight": torch.ones(4, DIM), f"{Q}.lora_B.weight": torch.ones(DIM, 3)},
        "blocks.0.self_attn.q has (4, 48) and (48, 3), expected two matrices of one rank"),
    "LoCon's convolution": (
        WITHOUT | {f"{Q}.lora_A.weight": torch.ones(4, DIM, 1, 1), f"{Q}.lora_B.weight": torch.ones(DIM, 4, 1, 1)},
        "blocks.0.self_attn.q has (4, 48, 1, 1) and (48, 4, 1, 1), expected two matrices"),
    "rank 0": (
        WITHOUT | {f"{Q}.lora_A.weight": torch.ones(0, DIM), f"{Q}.lora_B.weight": torch.ones(DIM, 0)}, "(0, 48)"),
    "a vector": (WITHOUT | {f"{Q}.lora_A.weight": torch.ones(4), f"{Q}.lora_B.weight": torch.ones(4)}, "has (4,)"),
    "NaN": (names() | {f"{Q}.lora_A.weight": torch.full((4, DIM), torch.nan)}, "q.lora_A.weight holds a value of nan"),
    "infinite": (names() | {f"{Q}.lora_B.weight": torch.full((DIM, 4), torch.inf)}, "holds a value of inf"),
    "an infinite difference": (names() | {f"{Q}.diff_b": torch.full((DIM,), -torch.inf)}, "q.diff_b holds a value of"),
    "alpha 0": (names() | {f"{Q}.alpha": torch.zeros(())}, "alpha of blocks.0.self_attn.q is 0.0, expected"),
    "alpha below": (names() | {f"{Q}.alpha": torch.tensor(-4.0)}, "is -4.0, expected"),
    "alpha NaN": (names() | {f"{Q}.alpha": torch.tensor(torch.nan)}, "q.alpha holds a value of nan"),
    "two alphas": (names() | {f"{Q}.alpha": torch.ones(2)}, "is [1.0, 1.0], expected"),
    "float8": (names() | {f"{Q}.lora_A.weight": torch.ones(4, DIM).to(torch.float8_e4m3fn)}, "float8_e4m3fn, expect"),
    "int8": (names() | {f"{Q}.lora_A.weight": torch.ones(4, DIM).to(torch.int8)}, "is of torch.int8, expected a LoRA"),
    "two namings": (
        names() | {"blocks.0.self_attn.q.lora_down.weight": torch.ones(4, DIM)}, "twice, in two namings"),
    "two differences": (
        names() | {"blocks.0.diff_m": torch.ones(1, 6, DIM), "blocks.0.modulation.diff": torch.ones(1, 6, DIM)},
        "holds two differences of blocks.0.modulation"),
    "a VAE": ({"encoder.conv_in.weight": torch.ones(2), "decoder.up.0.weight": torch.ones(2)}, "is a VAE"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_lora_of_wan_is_one_line(tmp_path, case):
    tensors, message = REFUSED[case]
    file = save(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError) as error:
        read_adapter(file)
    line = str(error.value)
    assert line.startswith(str(file)) and message in line and "\n" not in line and len(line) < 400, line


def test_other_files_are_one_line(official, tmp_path):
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "cut.safetensors").write_bytes(save(names(), tmp_path / "x.safetensors").read_bytes()[:500])
    save({}, tmp_path / "none.safetensors")
    for path, message in (
        ("empty.safetensors", "empty"), ("cut.safetensors", "can't be read as safetensors"), ("missing", "no "),
        ("none.safetensors", "holds no tensors"), (official, r"is a whole model \(.*\), expected a LoRA"),
        ("lora.bin", "pickle"), ("missing.ckpt", "no checkpoint"),
    ):  # fmt: skip
        if path == "lora.bin":
            torch.save(names(), tmp_path / path)
        with pytest.raises(ValueError, match=message):
            read_adapter(tmp_path / path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"lora_adapter_metadata": "{"}, "lora_adapter_metadata is no configuration of peft"),
        ({"lora_adapter_metadata": "[1]"}, "is no configuration of peft"),
        (diffusers_header(lora_alpha=0), "is 0, expected a number above 0"),
        (diffusers_header(lora_alpha="eight"), "is 'eight', expected a number above 0"),
        (diffusers_header(lora_alpha=8, alpha_pattern={"blocks.0.self_attn.q": -1}), "self_attn.q is -1, expected"),
        (diffusers_header(lora_alpha=8, alpha_pattern={"(": 1}), "is no configuration of peft"),
        (diffusers_header(lora_alpha=8, alpha_pattern=3), "is no configuration of peft"),
    ],
)
def test_a_header_that_says_no_alpha_is_one_line(tmp_path, header, message):
    with pytest.raises(ValueError, match=message):
        read_adapter(save(names(pattern="{official}"), tmp_path / "x.safetensors", **header))


def test_a_lora_of_another_size_is_refused_with_both_shapes(official):
    wide = make_adapter({"blocks.0.self_attn.q": (64, 64), "blocks.1.self_attn.q": (64, 64)})
    with pytest.raises(ValueError, match=r"x is a LoRA of another model: it changes blocks.0.self_attn.q.weight of "
                                         r"\(64, 64\), the transformer has \(48, 48\) and 1 more"):  # fmt: skip
        merge(open_weights(official), wide, path="x")
    with pytest.raises(ValueError, match=r"changes blocks.2.ffn.0.weight of \(96, 48\), the transformer has none"):
        merge(open_weights(official), make_adapter({"blocks.2.ffn.0": (FFN, DIM)}))
    with pytest.raises(ValueError, match=r"norm3.weight of \(7,\), the transformer has \(48,\)"):
        merge(open_weights(official), make_adapter(whole={"blocks.0.norm3.weight": (7,)}))
    for strength in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="strength is .*, expected a finite number"):
            merge(open_weights(official), make_adapter(), strength)


def test_a_lora_given_where_a_model_belongs_is_still_named(tmp_path):
    with pytest.raises(ValueError, match="is a LoRA"):
        open_weights(save(names(), tmp_path / "x.safetensors"))
    assert load_file(tmp_path / "x.safetensors")
