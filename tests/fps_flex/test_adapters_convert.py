"""LoRAs that were trained here: opened on their base, converted for stock tools, refused where they don't fit."""

import json
import logging
import shutil
from dataclasses import asdict

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fps_flex.diffusers import install_trained, uninstall
from fps_flex.wan import WanConfig
from fps_flex.wan.adapters import Adapter, read_adapter
from fps_flex.wan.convert import main
from fps_flex.wan.merging import merge
from fps_flex.wan.weights import SETTINGS, load_wan, open_weights, read_settings
from tests.fps_flex.test_convert import convert, refused_to_convert
from tests.fps_flex.test_weights import DENSE, assert_same, make_official, tensors_of
from tests.helpers.loras import WHOLE, assert_same_adapter, make_adapter, named, save, save_run
from tests.helpers.stock_wan import call, t2v_pipeline
from tests.helpers.tiny_wan import SIZES

CONFIG = asdict(WanConfig(**SIZES))
LIVE, AVERAGE = make_adapter(alpha=8, seed=1), make_adapter(alpha=8, seed=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny official release; not to be changed."""
    folder = tmp_path_factory.mktemp("official") / "release"
    make_official(folder, torch.bfloat16)
    return folder


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """A checkpoint of a LoRA of it; not to be changed."""
    return make_run(tmp_path_factory.mktemp("run") / "last.ckpt", base)


def make_run(file, base, **options):
    options = {"fingerprint": open_weights(base).fingerprint(), "wan": CONFIG} | options
    return save_run(file, LIVE, AVERAGE, base, **options)


@pytest.mark.parametrize(("which", "adapter"), [("average", AVERAGE), ("live", LIVE)])
def test_a_checkpoint_of_a_lora_opens_as_its_base_with_it_added(base, run, which, adapter):
    assert_same_adapter(read_adapter(run, which), adapter)
    opened, expected = open_weights(run, which), merge(open_weights(base), adapter)
    assert_same(dict(opened.stream()), dict(expected.stream()))
    assert_same(dict(opened.unrounded.stream()), dict(expected.unrounded.stream()))
    assert opened.fingerprint() == f"run 0123456789abcdef, step 7, {expected.fingerprint()}"
    assert opened.trained["step"] == 7 and opened.settings["clip"]["frames"] == 10
    assert asdict(read_settings(run)[1]) == opened.settings["attention"]


def test_its_model_is_in_the_dtype_that_is_asked_for(base, run):
    exact = dict(merge(open_weights(base), AVERAGE).unrounded.stream())
    for dtype in (torch.float32, torch.bfloat16):
        state = load_wan(run, DENSE, dtype=dtype).state_dict()
        name = "blocks.1.ffn.2.weight"
        assert torch.equal(state[name], exact[name].to(dtype)) and exact[name].dtype == torch.float32
    assert load_wan(run, DENSE).state_dict()[name].dtype == torch.bfloat16


def test_a_base_that_moved_is_named_and_another_is_refused(base, run, tmp_path):
    shutil.copytree(base, tmp_path / "here")
    moved = make_run(tmp_path / "x.ckpt", tmp_path / "here")
    expected = dict(open_weights(run).stream())
    shutil.move(tmp_path / "here", tmp_path / "there")
    with pytest.raises(ValueError, match=f"{tmp_path}/here, what the LoRA .*x.ckpt was trained on, is not there: "
                                         "name where it is with --base"):  # fmt: skip
        open_weights(moved)
    assert_same(dict(open_weights(moved, base=tmp_path / "there").stream()), expected)
    make_official(tmp_path / "other", torch.float32)
    with pytest.raises(ValueError, match=r"other is not what the LoRA .*x.ckpt was trained on \(weights .*, expected"):
        open_weights(moved, base=tmp_path / "other")
    with pytest.raises(ValueError, match="base is .*, of a LoRA's .ckpt, and .*there is none: leave it out"):
        open_weights(tmp_path / "there", base=tmp_path / "there")


def test_a_lora_of_an_fp8_file_is_merged_with_what_that_file_says(base, tmp_path):
    """ComfyUI's, unscaled: the sum is in bf16, as float8 itself is read."""
    comfy = convert(base, tmp_path / "comfy", "--format=comfyui", "--dtype=float8_e4m3fn")
    run = make_run(tmp_path / "x.ckpt", comfy)
    name, opened = "blocks.0.ffn.0.weight", open_weights(run)
    layer = AVERAGE.layers[name.removesuffix(".weight")]
    expected = open_weights(comfy).read(name).float() + layer.delta()
    assert torch.equal(opened.read(name), expected.bfloat16())
    assert torch.equal(opened.unrounded.read(name), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": {"rank": 4}}, "fps_flex.lora lacks alpha, targets"),
        ({"alpha": 0}, "fps_flex.lora.alpha is 0, expected a number above 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"rank": 3}, "is of rank 4, its fps_flex.lora says 3"),
        ({"rank": 0}, "fps_flex.lora.rank is 0"),
        ({"lora": {"rank": 4, "alpha": 8.0, "targets": []}}, "targets is (), expected layers' names"),
        ({"lora": [4]}, "fps_flex.lora is [4], expected a dict"),
        ({"base": "x"}, "fps_flex.base"),
        ({"fps_base": None}, "it lacks fps_flex.base"),
        ({"fps_base": {"path": 3, "fingerprint": "x", "dtype": "bf16"}}, "fps_flex.base.path is 3, expected a text"),
        ({"wan": {**CONFIG, "heads": 4}}, "was trained on another model"),
        ({"wan": {**CONFIG, "dim": -4}}, "is no checkpoint of this project"),
    ],
)
def test_a_checkpoint_that_says_something_else_is_one_line(base, tmp_path, change, message):
    run = make_run(tmp_path / "x.ckpt", base, **{k: x for k, x in change.items() if k not in ("base", "fps_base")})
    held = torch.load(run, weights_only=True)
    if "base" in change:
        held["fps_flex"]["base"] = change["base"]
    if "fps_base" in change and change["fps_base"] is None:
        del held["fps_flex"]["base"]
    elif "fps_base" in change:
        held["fps_flex"]["base"] = change["fps_base"]
    torch.save(held, run)
    with pytest.raises(ValueError) as error:
        open_weights(run)
    assert message in str(error.value) and "\n" not in str(error.value), str(error.value)


@pytest.mark.parametrize("format", ["diffusers-lora", "comfyui-lora"])
@pytest.mark.parametrize(("which", "adapter"), [("average", AVERAGE), ("live", LIVE)])
def test_the_command_writes_the_lora_alone(run, tmp_path, capsys, format, which, adapter):
    out = convert(run, tmp_path / "mine", f"--format={format}", f"--weights={which}")
    assert capsys.readouterr().out.splitlines() == ["20 layers of rank 4", f"wrote {out} in the {format} naming"]
    file = {"diffusers-lora": "pytorch_lora_weights.safetensors", "comfyui-lora": "mine.safetensors"}[format]
    assert sorted(x.name for x in out.iterdir()) == sorted([SETTINGS, file])
    assert_same_adapter(read_adapter(out / file), adapter)
    assert json.loads((out / SETTINGS).read_text()) == json.loads(json.dumps(open_weights(run).settings))
    other = {"diffusers-lora": "comfyui-lora", "comfyui-lora": "diffusers-lora"}[format]
    back = convert(out, tmp_path / "back", f"--format={other}")
    again = convert(back, tmp_path / "again", f"--format={format}")
    assert_same_adapter(read_adapter(again), adapter)
    assert (again / SETTINGS).read_text() == (out / SETTINGS).read_text()
    assert load_file(again / file.replace("mine", "again")).keys() == load_file(out / file).keys()


def test_names_in_each_format_are_those_that_the_tools_look_for(run, tmp_path):
    stock = convert(run, tmp_path / "stock", "--format=diffusers-lora") / "pytorch_lora_weights.safetensors"
    comfy = convert(run, tmp_path / "comfy", "--format=comfyui-lora") / "comfy.safetensors"
    assert "transformer.blocks.0.attn1.to_out.0.lora_A.weight" in load_file(stock)
    assert load_file(comfy)["diffusion_model.blocks.0.self_attn.o.alpha"].tolist() == 8.0
    assert len(load_file(stock)) == 40 and len(load_file(comfy)) == 60
    with safe_open(stock, "pt") as held:
        said = json.loads(held.metadata()["lora_adapter_metadata"])
    assert said["transformer.r"] == 4 and said["transformer.lora_alpha"] == 8


def test_a_pipeline_loads_the_folder_with_its_attention(base, run, tmp_path):
    """load_lora_weights and install_trained of one folder: as the merged export does."""
    lora = convert(run, tmp_path / "lora", "--format=diffusers-lora")
    merged = convert(run, tmp_path / "merged", "--format=diffusers", "--dtype=fp32")
    stock = convert(base, tmp_path / "stock", "--format=diffusers", "--dtype=fp32")
    pipe = t2v_pipeline()
    pipe.transformer = pipe.transformer.from_pretrained(stock)
    pipe.load_lora_weights(str(lora))
    whole = type(pipe.transformer).from_pretrained(merged)
    before = call(pipe.transformer)
    for transformer, folder in ((pipe.transformer, lora), (whole, merged)):
        install_trained(transformer, folder, quantize=False)
    with torch.no_grad():
        torch.testing.assert_close(call(pipe.transformer), call(whole), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, call(pipe.transformer), atol=1e-3)
    uninstall(pipe.transformer)


@pytest.mark.parametrize("format", ["merged", "official", "diffusers", "comfyui"])
def test_the_command_writes_merged_weights(base, run, tmp_path, format):
    expected, settings = open_weights(run), json.loads(json.dumps(open_weights(run).settings))
    out = convert(run, tmp_path / "out", f"--format={format}")
    assert_same(dict(open_weights(out).stream()), dict(expected.stream()))
    assert json.loads((out / SETTINGS).read_text()) == settings
    if format == "merged":
        assert_same(tensors_of(out), tensors_of(convert(run, tmp_path / "official", "--format=official")))
    exact = convert(run, tmp_path / "exact", f"--format={format}", "--dtype=fp32")
    got, unrounded = dict(open_weights(exact).stream()), dict(expected.unrounded.stream())
    assert all(torch.equal(got[name], x.float()) for name, x in unrounded.items())
    alone = convert(run, tmp_path / "alone", "--format=diffusers-lora")
    again = convert(alone, tmp_path / "again", f"--format={format}", f"--base={base}")
    assert_same(dict(open_weights(again).stream()), dict(expected.stream()))
    assert json.loads((again / SETTINGS).read_text()) == settings


def test_another_dtype_of_a_lora(run, tmp_path, capsys):
    out = convert(run, tmp_path / "out", "--format=comfyui-lora", "--dtype=bf16")
    assert "rounding changed the weights by 0.1" in capsys.readouterr().out
    layer = read_adapter(out).layers["blocks.0.ffn.0"]
    assert torch.equal(layer.up, AVERAGE.layers["blocks.0.ffn.0"].up.bfloat16()) and layer.alpha == 8


def test_whole_differences_go_along_where_they_can(base, tmp_path, capsys):
    adapter = make_adapter(whole=WHOLE)
    file = save(named(adapter, "diffusion_model.{official}"), tmp_path / "low.safetensors")
    with_whole = convert(file, tmp_path / "plain", "--format=comfyui-lora")
    assert_same_adapter(read_adapter(with_whole), Adapter(adapter.layers, {}))
    tensors = named(adapter, "diffusion_model.{official}") | {
        "diffusion_model.blocks.0.norm3.diff": adapter.differences["blocks.0.norm3.weight"]
    }
    file = save(tensors, tmp_path / "whole.safetensors")
    out = convert(file, tmp_path / "whole", "--format=comfyui-lora")
    assert "and whole differences of 1 tensors" in capsys.readouterr().out
    written = load_file(out / "whole.safetensors")
    assert_same({name: x for name, x in written.items() if not name.endswith(".alpha")}, tensors)
    line = refused_to_convert(capsys, file, tmp_path / "no", "--format=diffusers-lora")
    assert "adds whole differences to 1 tensors (blocks.0.norm3.weight)" in line
    merged = convert(file, tmp_path / "merged", "--format=merged", f"--base={base}")
    expected = open_weights(base).read("blocks.0.norm3.weight").float() + tensors["diffusion_model.blocks.0.norm3.diff"]
    assert torch.equal(open_weights(merged).read("blocks.0.norm3.weight"), expected.bfloat16())
    assert not (tmp_path / "no").exists()


def test_what_does_not_go_together_is_one_line(base, run, tmp_path, capsys):
    alone = convert(run, tmp_path / "lora", "--format=diffusers-lora")
    out, missing = tmp_path / "out", tmp_path / "missing"
    wide = save(named(make_adapter({"blocks.0.self_attn.q": (64, 64)}), "{official}"), tmp_path / "wide.safetensors")
    lokr = save({"lora_unet_blocks_0_ffn_0.lokr_w1": torch.ones(2, 2)}, tmp_path / "lokr.safetensors")
    for args, message in (
        ((base, out, "--format=diffusers-lora"), "--format diffusers-lora is for a LoRA, and"),
        ((base, out, "--format=merged"), "--format merged is for a LoRA, and"),
        ((base, out, "--format=official", f"--base={base}"), "--base is for a LoRA, and"),
        ((alone, out, "--format=official"), "is a LoRA: name the transformer to merge it with by --base, or convert"),
        ((alone, out, "--format=merged"), "is a LoRA: name the transformer to merge it with"),
        ((alone, out, "--format=merged", f"--base={missing}"), f"no {missing}"),
        ((alone, out, "--format=merged", f"--base={alone}"), "is a LoRA"),
        ((wide, out, "--format=merged", f"--base={base}"), "it changes blocks.0.self_attn.q.weight of (64, 64)"),
        ((lokr, out, "--format=comfyui-lora"), "is a LoKr of LyCORIS"),
        ((alone, out, "--format=comfyui-lora", "--weights=live"), "--weights is of a .ckpt of train.fit"),
        ((alone, out, "--format=comfyui-lora", "--shard-size=5GB"), "a LoRA is one file: leave it out"),
        ((alone, out, "--format=comfyui-lora", "--dtype=float8_e4m3fn"), "--dtype can't be used with --format comfyui"),
        ((run, out, "--format=comfyui-lora", f"--base={base}"), "a LoRA alone is merged with none"),
        ((run, out, "--format=official", f"--base={missing}"), "is not there: name where it is with --base"),
        ((run, out, "--format=official", f"--base={run}"), "is not what the LoRA"),
        ((run, alone, "--format=comfyui-lora"), "exists already"),
        ((run, tmp_path / ".x", "--format=comfyui-lora"), "a hidden file"),
    ):
        assert message in refused_to_convert(capsys, *args) and not out.exists()


def test_settings_of_another_model_beside_a_lora_are_refused(base, run, tmp_path, capsys):
    alone = convert(run, tmp_path / "lora", "--format=diffusers-lora")
    said = json.loads((alone / SETTINGS).read_text())
    (alone / SETTINGS).write_text(json.dumps({**said, "wan": {**said["wan"], "heads": 4}}))
    line = refused_to_convert(capsys, alone, tmp_path / "out", "--format=merged", f"--base={base}")
    assert "was trained in another model" in line


def test_a_full_checkpoint_is_no_lora(tmp_path, capsys, base):
    state = {f"model.{name}": x for name, x in tensors_of(base).items()}
    said = {"wan": CONFIG, "attention": {}, "noise_levels": (0.0, 1.0)}
    torch.save({"state_dict": state, "fps_flex": said}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="x.ckpt is a whole model that train.fit trained, expected a LoRA"):
        read_adapter(tmp_path / "x.ckpt")
    assert "is for a LoRA" in refused_to_convert(capsys, tmp_path / "x.ckpt", tmp_path / "out", "--format=comfyui-lora")


def test_a_checkpoint_without_a_layer_is_one_line(base, run, tmp_path):
    held = torch.load(run, weights_only=True)
    torch.save({**held, "state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"no checkpoint of this project \(its LoRA has no layers\)"):
        open_weights(tmp_path / "x.ckpt")
    weights = {"model.blocks.0.self_attn.q.weight": torch.ones(48, 48)}
    torch.save({**held, "state_dict": held["state_dict"] | weights}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"no LoRA of a text-to-video Wan \(model.blocks.0.self_attn.q.weight\)"):
        open_weights(tmp_path / "x.ckpt")


def test_help_tells_all_formats(capsys):
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "official,diffusers,comfyui,diffusers-lora,comfyui-lora,merged" in said and "--base" in said
    logging.getLogger("fps_flex").setLevel(logging.NOTSET)
