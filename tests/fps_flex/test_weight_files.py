"""Weights as people have them: what wrappers name, what ComfyUI scales, shards, and what is no such model at all."""

import json
import logging
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fps_flex.wan.hub import local
from fps_flex.wan.keys import to_diffusers
from fps_flex.wan.weights import load_wan, open_weights
from tests.fps_flex.test_weights import DENSE, assert_same, make_official, official_shapes, tensors_of


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
    """A tiny model's, by their official names; not to be changed."""
    return make_official(tmp_path_factory.mktemp("official") / "x")


@pytest.fixture
def save(tmp_path):
    """Puts tensors into a file, with what its heads are beside it."""

    def write(tensors, name="model.safetensors", **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "config.json").write_text(json.dumps({"num_heads": 2}))
        save_file({key: x.clone().contiguous() for key, x in tensors.items()}, path, **options)
        return path

    return write


def refused(path, *messages):
    """The one line that a file is refused with, at once."""
    began = time.monotonic()
    with pytest.raises(ValueError) as caught:
        open_weights(path)
    line = str(caught.value)
    assert "\n" not in line and str(path) in line and len(line) < 1500, line
    for message in messages:
        assert message in line, line
    assert time.monotonic() - began < 2
    return line


def read(path):
    return dict(open_weights(path).stream())


PREFIXES = [
    "module.", "model.", "model.diffusion_model.", "diffusion_model.", "_orig_mod.", "module._orig_mod.", "pipe.dit.",
    "generator.model.", "generator_ema.", "generator.", "dit.", "transformer.", "net.", "module.model.",
    "model._fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "generator_ema.model.", "ema.",
]  # fmt: skip


@pytest.mark.parametrize("rename", [str, to_diffusers])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers_are_no_part_of_names(save, tensors, prefix, rename):
    assert_same(read(save({prefix + rename(name): x for name, x in tensors.items()})), tensors)


@pytest.mark.parametrize("inner", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_of_blocks_are_in_the_middle_of_names(save, tensors, inner, prefix):
    def wrap(name):
        block, dot, rest = name.partition(".self_attn.")
        return prefix + (f"{block}.{inner}{dot}{inner}.{rest}" if dot else name)

    assert_same(read(save({wrap(name): x for name, x in tensors.items()})), tensors)


def test_a_prefix_that_only_some_names_have_is_refused_with_one_of_each(save, tensors):
    half = {("module." if "blocks.1" in name else "") + name: x for name, x in tensors.items()}
    refused(save(half), " holds module.blocks.1.", " and blocks.0.", "expected all names to begin with module.")


def test_names_that_become_one_are_refused(save, tensors):
    twice = tensors | {"blocks.0._orig_mod.modulation": tensors["blocks.0.modulation"]}
    refused(save(twice), "blocks.0.modulation", "blocks.0._orig_mod.modulation", "save one model in a file")
    stock = {to_diffusers(name): x for name, x in tensors.items()}
    both = stock | {"blocks.0.self_attn.q.weight": tensors["blocks.0.self_attn.q.weight"]}
    refused(save(both), "blocks.0.attn1.to_q.weight and blocks.0.self_attn.q.weight", "save one model in a file")


@pytest.mark.parametrize("name", ["a\nb.weight", "a\r.weight", "\x1b[31m.weight", "blocks.0.\u2028ffn"])
def test_a_name_that_no_line_can_say_is_refused_in_one(save, tensors, name):
    refused(save(tensors | {name: torch.zeros(1)}), "holds a tensor called ", ", expected printable names")


def test_several_models_in_a_file_are_named(save, tensors):
    several = {prefix + name: x for prefix in ("generator.model.", "generator_ema.") for name, x in tensors.items()}
    refused(save(several), "holds 2 models, generator.model., generator_ema.: save the one to load")
    refused(save(tensors | {f"critic.{name}": x for name, x in tensors.items()}), "critic.blocks")


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_of_an_all_in_one_checkpoint_the_transformer_is_read_and_the_rest_named(save, tensors, caplog, prefix):
    beside = {"vae.decoder.conv1.weight": torch.zeros(1), "text_encoders.umt5xxl.shared.weight": torch.zeros(1)}
    with caplog.at_level(logging.WARNING):
        assert_same(read(save({prefix + name: x for name, x in tensors.items()} | beside)), tensors)
    assert f"the transformer ({prefix or 'no prefix'}) is read, not its text_encoders., vae." in caplog.text


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
    said = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True}).encode()
    made[f"{layer}comfy_quant"] = torch.tensor(list(said), dtype=torch.uint8)
    path = save(made)
    assert_same(read(path), worth)
    loaded = load_wan(path, DENSE, dtype=torch.bfloat16).state_dict()
    assert torch.equal(loaded["blocks.0.ffn.0.weight"], worth["blocks.0.ffn.0.weight"].bfloat16())


def test_scales_of_blocks(save, tensors):
    made = tensors | {"blocks.0.ffn.2.weight": tensors["blocks.0.ffn.2.weight"].to(torch.float8_e4m3fn)}
    scale = torch.rand(3, 2) + 0.5
    made["blocks.0.ffn.2.weight_scale"] = scale  # of a weight of 48 rows and 96 columns
    got = read(save(made))["blocks.0.ffn.2.weight"]
    expected = made["blocks.0.ffn.2.weight"].float() * scale.repeat_interleave(16, 0).repeat_interleave(48, 1)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_plain_fp8_is_read_as_it_is_and_computes_in_bfloat16(save, tensors, dtype):
    made = {name: x.to(dtype) if is_matrix(name) else x for name, x in tensors.items()}
    path = save(made)
    assert_same(read(path), made)
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
    refused(save(one), f"{layer}.weight lacks its scale in a file of scaled float8")
    lacks = "weight lacks its scale in a file of scaled float8: fetch or save it again"
    refused(save(bare | {f"{prefix}scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}), lacks)
    refused(save(bare | {f"{layer}.scale_input": torch.ones(1)}), lacks)
    encoder = {"text_encoders.umt5xxl.transformer.scaled_fp8": torch.zeros(2)}
    assert len(read(save(bare | encoder))) == len(tensors)
    said = {f"{layer}.comfy_quant": marker("float8_e4m3fn")}
    refused(save(one | said), f"{layer}.comfy_quant is beside blocks.1.ffn.2.weight without its scale")
    other = {f"{layer}.comfy_quant": marker("float8_e5m2")}
    refused(save(made | other), f"{layer}.comfy_quant says float8_e5m2 and is beside a weight of torch.float8_e4m3fn")
    refused(save(made | {f"{layer}.no.comfy_quant": marker("float8_e5m2")}), "is beside no weight")


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
    refused(save(tensors | weights | {LAYER + name: x for name, x in extra.items()}), message)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_scale_that_is_none_is_refused_when_it_is_read(save, tensors, scale):
    weights = {LAYER + "weight": tensors[LAYER + "weight"].to(torch.float8_e4m3fn)}
    path = save(tensors | weights | {LAYER + "scale_weight": torch.tensor(scale)})
    with pytest.raises(ValueError, match="blocks.0.ffn.0.scale_weight is not finite and above 0"):
        read(path)


ZERO = torch.zeros(1)
OTHER_MODELS = {
    "diffusion_model.blocks.0.self_attn.q.lora_A.weight": "a LoRA",
    "transformer.blocks.0.attn1.to_q.lora_B.weight": "a LoRA",
    "lora_unet_blocks_0_self_attn_q.lora_down.weight": "a LoRA",
    "blocks.0.self_attn.q.alpha": "a LoRA",
    "diffusion_model.blocks.0.self_attn.q.diff_b": "a LoRA",
    "encoder.downsamples.0.residual.0.gamma": "a VAE",
    "decoder.middle.0.residual.0.gamma": "a VAE",
    "quant_conv.weight": "a VAE",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "a text encoder",
    "shared.weight": "a text encoder",
    "token_embedding.weight": "a text encoder",
    "vision_model.embeddings.patch_embedding.weight": "a CLIP vision encoder",
    "visual.patch_embedding.weight": "a CLIP vision encoder",
    "double_blocks.0.img_attn.proj.weight": "a Flux transformer",
    "model.model.double_blocks.0.img_attn.proj.weight": "a Flux transformer",
    "txt_in.individual_token_refiner.blocks.0.mlp.fc1.weight": "a HunyuanVideo transformer",
    "model.diffusion_model.input_blocks.0.0.weight": "a Stable Diffusion UNet",
    "down_blocks.0.resnets.0.conv1.weight": "a Stable Diffusion UNet",
    "model.diffusion_model.patchify_proj.weight": "an LTX-Video transformer",
}
WAN_KINDS = {
    "img_emb.proj.0.weight": "an image-to-video model",
    "blocks.0.cross_attn.k_img.weight": "an image-to-video model",
    "condition_embedder.image_embedder.norm1.weight": "an image-to-video model",
    "img_emb.emb_pos": "a first-and-last-frame-to-video model",
    "vace_blocks.0.before_proj.weight": "a VACE model",
    "vace_patch_embedding.weight": "a VACE model",
    "face_adapter.fuser_blocks.0.k_norm.weight": "a Wan-Animate model",
    "casual_audio_encoder.encoder.final_linear.weight": "a speech-to-video model",
    "control_adapter.conv.weight": "a camera-control model",
    "ref_conv.weight": "a Fun-Control model",
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_another_model_is_named(save, name):
    refused(save({name: ZERO}), f"is {OTHER_MODELS[name]} ({name}), expected a text-to-video Wan")


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", WAN_KINDS)
def test_another_kind_of_wan_is_named(save, tensors, name, prefix):
    path = save({prefix + key: x for key, x in (tensors | {name: ZERO}).items()})
    refused(path, f"is {WAN_KINDS[name]} ({name}), expected a text-to-video Wan")


@pytest.mark.parametrize("rename", [str, to_diffusers])
@pytest.mark.parametrize(("channels", "what"), [(36, "an image-to-video"), (48, "a Fun-Control"), (17, "beside the")])
def test_more_channels_in_than_out_are_another_model(save, tensors, channels, what, rename):
    other = tensors | {"patch_embedding.weight": torch.zeros(48, channels, 1, 2, 2)}
    refused(save({rename(name): x for name, x in other.items()}), what, f"({channels} channels in, 16 out)")


FILES = {
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(64), "is a GGUF file"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer"),
    "page": (b"<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
    "page in capitals": (b"\n<HTML>", "is a web page"),
    "empty": (b"", "is empty"),
    "zip": (b"PK\x03\x04" + bytes(64), "is a zip archive, as pickles are"),
    "pickle": (b"\x80\x02}q\x00.", "is a pickle"),
    "JSON": (b'{"a": 1}', "is a JSON file"),
    "macOS": (b"\x00\x05\x16\x07\x00\x02", "is what macOS keeps beside a file"),
    "noise": (b"\x01" * 100, "can't be read as safetensors"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("suffix", [".safetensors", ".gguf", ""])
def test_a_file_of_another_kind_is_named(tmp_path, kind, suffix):
    content, message = FILES[kind]
    (tmp_path / f"model{suffix}").write_bytes(content)
    refused(tmp_path / f"model{suffix}", message)


@pytest.mark.parametrize("name", ["model.pt", "model.PTH", "model.bin", "model.ckpt", "model.onnx"])
def test_pickles_and_onnx(tmp_path, name):
    torch.save({"a": ZERO}, tmp_path / name)
    if name == "model.onnx":
        (tmp_path / name).write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(99))
    what = {".ckpt": "is no checkpoint of this project", ".onnx": "is an ONNX model"}
    refused(tmp_path / name, what.get(Path(name).suffix, "is a pickle, which can run code"))


def test_a_truncated_file_is_refused_when_it_is_opened(save, tensors):
    path = save(tensors)
    path.write_bytes(path.read_bytes()[:-1])
    refused(path, "can't be read as safetensors", "fetch or save it again")


def shard(tensors, folder, count=3, index=False):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"num_heads": 2}))
    names, weight_map = sorted(tensors), {}
    for i in range(count):
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        save_file({name: tensors[name] for name in names[i::count]}, folder / file)
        weight_map |= dict.fromkeys(names[i::count], file)
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_shards_without_an_index_are_one_model_when_they_are_all_there(tmp_path, tensors):
    folder = tmp_path / "x"
    shard(tensors, folder)
    assert_same(read(folder), tensors)
    first = folder / "model-00001-of-00003.safetensors"
    refused(first, "is one of 00003 shards: give their folder")
    shutil.copy(first, folder / "model-00004-of-00003.safetensors")
    with pytest.raises(ValueError, match="expected shards numbered 1 to 3"):
        open_weights(folder)
    (folder / "model-00004-of-00003.safetensors").rename(folder / "model-00002-of-00003.safetensors")
    refused_line = pytest.raises(ValueError, open_weights, folder)
    assert "model-00002-of-00003.safetensors both hold" in str(refused_line.value)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, "lacks number 2 of 3 shards: fetch the missing shards")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    shutil.copy(save_one(tmp_path, tensors), folder / "model-1-of-1000000000.safetensors")
    refused(folder, "lacks number 2, 3, 4, 5, 6 of 1000000000 shards")
    (folder / "model-1-of-1000000000.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert_same(read(folder / "model-00001-of-00001.safetensors"), tensors)
    assert_same(read(folder), tensors)


def save_one(folder, tensors):
    save_file(tensors, folder / "one.safetensors")
    return folder / "one.safetensors"


def test_hidden_files_are_no_weights(tmp_path, tensors):
    folder = tmp_path / "x"
    shard(tensors, folder, index=True)
    for name in ("._model-00001-of-00003.safetensors", ".other.safetensors", "._model.safetensors.index.json"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    assert_same(read(folder), tensors)


def test_several_models_in_a_folder_are_named(tmp_path, tensors):
    folder = tmp_path / "x"
    shard(tensors, folder)
    shutil.copy(save_one(tmp_path, tensors), folder / "model.fp16.safetensors")
    refused(folder, "holds model-*-of-00003.safetensors, model.fp16.safetensors: name the one to load")
    shutil.rmtree(folder)
    shard(tensors, folder, index=True)
    shutil.copy(tmp_path / "one.safetensors", folder / "diffusion_pytorch_model.fp16.safetensors")
    refused(folder, "holds model.safetensors.index.json, diffusion_pytorch_model.fp16.safetensors: name the one")
    assert_same(read(folder / "model.safetensors.index.json"), tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.update({"blocks.0.modulation": "../out.safetensors"}), "names ../out.safetensors, expected files"),
        (lambda x: x.update({"blocks.0.modulation": "/out.safetensors"}), "names /out.safetensors, expected files in"),
        (lambda x: x.update({"blocks.0.modulation": "a/../../out.safetensors"}), "expected files in its own folder"),
        (lambda x: x.update({"blocks.0.modulation": "nowhere.safetensors"}), "lacks nowhere.safetensors, named in"),
        (lambda x: x.update({"blocks.9.modulation": "model-00001-of-00003.safetensors"}), "blocks.9.modulation is in"),
        (lambda x: x.update({"head.modulation": "model-00001-of-00003.safetensors"}), "head.modulation is in model-00"),
        (lambda x: x.pop("head.modulation"), "leaves out head.modulation, which its shards hold"),
        (lambda x: x.update({"head.modulation": "a\nb"}), "names 'a\\nb', expected printable names"),
        (lambda x: x.update({"a\nb": "model-00001-of-00003.safetensors"}), "names 'a\\nb', expected printable names"),
        (lambda x: x.update({"head.modulation": 7}), "is no index of shards"),
        (lambda x: x.update({"head.modulation": "a" * 5000}), "is no index of shards|lacks"),
        (lambda x: x.update({"head.modulation": "a\0b"}), "expected printable names"),
    ],
)
def test_an_index_that_is_not_true_is_refused(tmp_path, tensors, change, message):
    folder = tmp_path / "x"
    weight_map = shard(tensors, folder, index=True)
    save_file({"blocks.0.modulation": tensors["blocks.0.modulation"]}, tmp_path / "out.safetensors")
    change(weight_map)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for path in (folder, folder / "model.safetensors.index.json"):
        with pytest.raises(ValueError) as caught:
            open_weights(path)
        assert any(part in str(caught.value) for part in message.split("|")), caught.value
    (folder / "model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is no index of shards"):
        open_weights(folder)


def test_a_pipeline_without_its_transformer_says_so(tmp_path, wan_folder):
    shutil.copytree(wan_folder, tmp_path / "x", ignore=shutil.ignore_patterns("transformer"))
    refused(tmp_path / "x", "is a pipeline without its transformer/: fetch that folder too")
    refused(tmp_path / "x/vae", "is a VAE (")
    refused(tmp_path / "x/text_encoder", "is a text encoder (")
    for name in ("model.gguf", "last.ckpt"):
        (tmp_path / name).write_bytes(b"GGUF")
    refused(tmp_path, "expected a transformer's safetensors in", "found last.ckpt, model.gguf")


def test_tilde_is_home(tmp_path, monkeypatch, tensors):
    monkeypatch.setenv("HOME", str(tmp_path))
    shard(tensors, tmp_path / "x")
    assert_same(read("~/x"), tensors)
    with pytest.raises(ValueError, match="nosuchuser"):
        open_weights("~nosuchuser/x")


@pytest.fixture
def hub(tmp_path, monkeypatch, wan_folder, tensors):
    """Two releases in place of the hub: one in the diffusers layout, one in the official."""
    shutil.copytree(wan_folder, tmp_path / "hub/Wan-AI/Stock")
    shard(tensors, tmp_path / "hub/Wan-AI/Official", index=True)
    torch.save({}, tmp_path / "hub/Wan-AI/Official/vae.pth")
    fetched = []

    def snapshot_download(name, allow_patterns, ignore_patterns=()):
        from huggingface_hub.utils import filter_repo_objects

        release = tmp_path / "hub" / name
        if not release.is_dir():
            raise OSError(f"404 Client Error.\nRepository Not Found for {name}")
        files = [str(file.relative_to(release)) for file in release.rglob("*") if file.is_file()]
        kept = filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=list(ignore_patterns))
        for file in kept:
            target = tmp_path / "cache" / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(release / file, target)
            fetched.append(file)
        return str(tmp_path / "cache" / name)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return fetched


def test_releases_on_the_hub(hub, wan_folder, tensors):
    assert_same(read("hf:Wan-AI/Stock"), read(wan_folder))
    assert {file.split("/")[0] for file in hub} == {"transformer", "model_index.json"}
    assert_same(read("hf:Wan-AI/Stock/transformer"), read(wan_folder))
    with pytest.raises(ValueError, match="hf:Wan-AI/Stock has no transformer_2/ with safetensors"):
        open_weights("hf:Wan-AI/Stock/transformer_2")
    hub.clear()
    assert_same(read("hf:Wan-AI/Official"), tensors)
    assert "vae.pth" not in hub and len(hub) == 5
    with pytest.raises(ValueError, match=r"of hf:Wan-AI/None can't be fetched \(404 Client Error.\)$"):
        open_weights("hf:Wan-AI/None")
    for name in ("hf:", "hf:x", "hf:../..", "hf:a/b/c/d", "hf:a/../b", "hf: a/b"):
        with pytest.raises(ValueError, match="no release: expected hf:OWNER/NAME|can't be fetched"):
            open_weights(name)
    assert local("x") == Path("x")


def test_a_file_alone_of_comfyui_has_heads_of_128_channels(tmp_path):
    shapes = official_shapes(256, 16, 1, text=8, freq=8)
    save_file({f"model.diffusion_model.{n}": torch.zeros(s) for n, s in shapes.items()}, tmp_path / "a.safetensors")
    assert open_weights(tmp_path / "a.safetensors").config.heads == 2
    with safe_open(tmp_path / "a.safetensors", "pt") as held:
        assert len(list(held.keys())) == len(shapes) == len(load_file(tmp_path / "a.safetensors"))
    assert tensors_of(tmp_path).keys() == {f"model.diffusion_model.{name}" for name in shapes}
