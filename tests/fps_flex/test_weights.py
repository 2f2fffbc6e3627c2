"""Weights in the real formats: exactly the official tensors, round trips, and what is said of broken files."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from fps_flex import FPSAttention
from fps_flex.wan import WAN_1_3B, WAN_14B, Wan, WanConfig
from fps_flex.wan.convert import main
from fps_flex.wan.export import export, save_wan
from fps_flex.wan.files import Spec
from fps_flex.wan.weights import load_wan, open_weights
from fps_flex.wan.writing import write_shards
from tests.helpers.commands import refused
from tests.helpers.official_wan import DENSE, assert_same, make_official, official_shapes, tensors_of
from tests.helpers.tiny_wan import SIZES, tiny_transformer


@pytest.mark.parametrize(("config", "sizes"), [(WAN_1_3B, (1536, 8960, 30)), (WAN_14B, (5120, 13824, 40))])
def test_the_full_models_accept_exactly_the_official_tensors(config, sizes):
    with torch.device("meta"):
        model = Wan(config, FPSAttention())
        official = {name: torch.empty(shape) for name, shape in official_shapes(*sizes).items()}
    assert {name: tuple(x.shape) for name, x in model.state_dict().items()} == official_shapes(*sizes)
    model.load_state_dict(official, strict=True, assign=True)


def test_round_trips_through_our_model_and_diffusers_are_bit_identical(tmp_path):
    tensors = make_official(tmp_path / "official")
    ours = load_wan(tmp_path / "official", DENSE)
    assert asdict(ours.config) == asdict(WanConfig(**SIZES))
    assert_same(ours.state_dict(), tensors)

    save_wan(ours, tmp_path / "diffusers", "diffusers")
    stock, report = WanTransformer3DModel.from_pretrained(tmp_path / "diffusers", output_loading_info=True)
    assert not any(report.values())
    x, timestep, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([300.0]), torch.randn(1, 5, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, timestep, text), stock(x, timestep, text).sample, rtol=1e-4, atol=1e-5)

    stock.save_pretrained(tmp_path / "stock", max_shard_size="100KB")
    assert len(list((tmp_path / "stock").glob("*.safetensors"))) > 2
    back = load_wan(tmp_path / "stock", DENSE)
    save_wan(back, tmp_path / "back", "official")
    assert_same(tensors_of(tmp_path / "back"), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_command_converts_there_and_back_without_touching_a_bit(tmp_path, capsys, dtype):
    tensors = make_official(tmp_path / "official", dtype)
    main(["convert", str(tmp_path / "official"), str(tmp_path / "there"), "--format", "diffusers"])
    main(["convert", str(tmp_path / "there"), str(tmp_path / "back"), "--format", "official"])
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {tmp_path / 'back'} in the official naming"
    assert_same(tensors_of(tmp_path / "back"), tensors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "official", "there"]


def test_what_is_larger_than_a_shard_is_written_in_shards_with_an_index(tmp_path):
    tensors = make_official(tmp_path / "official")
    export(open_weights(tmp_path / "official"), tmp_path / "sharded", "official", shard_bytes=100_000)
    files = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(files) > 2 and all(file.stat().st_size < 120_000 for file in files)
    assert_same(dict(open_weights(tmp_path / "sharded").stream()), tensors)
    index = tmp_path / "sharded/diffusion_pytorch_model.safetensors.index.json"
    assert_same(dict(open_weights(index).stream()), tensors)
    assert json.loads(index.read_text())["metadata"]["total_size"] == sum(x.nbytes for x in tensors.values())


def test_a_pipeline_folder_its_transformer_and_the_file_alone_hold_the_same_model(wan_folder, tmp_path):
    expected = load_wan(wan_folder, DENSE).state_dict()
    (file,) = (wan_folder / "transformer").glob("*.safetensors")
    assert_same(load_wan(wan_folder / "transformer", DENSE).state_dict(), expected)
    assert_same(load_wan(file, DENSE).state_dict(), expected)


def test_without_a_config_heads_are_of_128_channels(tmp_path):
    shapes = official_shapes(256, 16, 1, text=8, freq=8)
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "alone.safetensors")
    assert open_weights(tmp_path / "alone.safetensors").config.heads == 2


def test_in_bfloat16_norms_modulation_and_time_embedding_stay_fp32(wan_folder):
    model = load_wan(wan_folder, DENSE, dtype=torch.bfloat16)
    kept = {name for name, x in model.state_dict().items() if x.dtype == torch.float32}
    norms = [f"{a}_attn.norm_{x}.weight" for a in ("self", "cross") for x in "qk"]
    block = ["modulation", "norm3.weight", "norm3.bias", *norms]
    layers = ("embedding.0", "embedding.2", "projection.1")
    time = [f"time_{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")]
    assert kept == {"head.modulation", *time, *(f"blocks.{i}.{name}" for i in range(2) for name in block)}
    x, timestep, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([300.0]), torch.randn(1, 5, 32)
    with torch.no_grad():
        exact, got = load_wan(wan_folder, DENSE)(x, timestep, text), model(x, timestep, text)
    assert got.dtype == (torch.bfloat16 if model.residual == "compute" else torch.float32)
    assert (got.float() - exact).norm() < 0.03 * exact.norm()


LOAD = """
import sys
from fps_flex.wan.weights import load_wan
from fps_flex import FPSAttention
def kilobytes(of):
    (value,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith(of))
    return int(value)
before = kilobytes("VmRSS")
load_wan(sys.argv[1], FPSAttention())
print((kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.slow
def test_loading_1_3b_takes_the_memory_of_its_files_once(tmp_path):
    """At its peak, beyond what Python and PyTorch take, which for a CUDA build is 700 MB."""
    shapes = official_shapes(1536, 8960, 30)
    specs = {name: Spec(shape, torch.bfloat16) for name, shape in shapes.items()}
    write_shards(tmp_path, specs, lambda name: torch.zeros(shapes[name], dtype=torch.bfloat16), 10**9)
    files = list(tmp_path.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    done = subprocess.run([sys.executable, "-c", LOAD, tmp_path], capture_output=True, text=True)
    for file in files:
        file.unlink()
    assert done.returncode == 0, done.stderr
    assert len(files) == 3 and size > 2.8e9
    print(f"{int(done.stdout) / size:.2f} times the files' {size / 1e9:.2f} GB")
    assert int(done.stdout) < 1.1 * size


def break_truncated(folder):
    file = folder / "diffusion_pytorch_model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def break_header(folder):
    (folder / "diffusion_pytorch_model-00002-of-00003.safetensors").write_bytes(b"not safetensors at all")


def break_shard(folder):
    (folder / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()


def break_index(folder):
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")


def change(folder, edit):
    """One file with other tensors in place of the shards."""
    tensors = tensors_of(folder)
    for path in folder.glob("diffusion*"):
        path.unlink()
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def break_shape(folder):
    change(folder, lambda x: x.update({"blocks.1.ffn.0.bias": torch.zeros(95)}))


def break_names(folder):
    change(folder, lambda x: (x.pop("blocks.1.ffn.0.bias"), x.update({"img_emb.proj.0.bias": torch.zeros(4)})))


def break_everything(folder):
    change(folder, lambda x: (x.clear(), x.update({"some.weight": torch.zeros(4)})))


def break_pickle(folder):
    change(folder, lambda x: None)
    torch.save({}, folder / "model.pth")
    (folder / "model.safetensors").unlink()


def break_config(folder):
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_truncated, "00002-of-00003.safetensors can't be read as safetensors"),
        (break_header, "00002-of-00003.safetensors can't be read as safetensors"),
        (break_shard, "lacks diffusion_pytorch_model-00002-of-00003.safetensors, named in"),
        (break_index, "is no index of shards: expected JSON with a weight_map"),
        (break_shape, "blocks.1.ffn.0.bias of shape (95,), expected (96,)"),
        (break_names, "is an image-to-video model (img_emb.proj.0.bias), expected a text-to-video"),
        (break_everything, "holds no Wan transformer (no patch_embedding.weight): its tensors are some.weight"),
        (break_pickle, "found only pickles (model.pth), which can run code when they are read"),
        (break_config, "holds no Wan transformer"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_broken_weights_are_one_clear_line_and_nothing_is_written(tmp_path, capsys, damage, message):
    make_official(tmp_path / "official")
    damage(tmp_path / "official")
    assert message in refused(capsys, main, ["convert", tmp_path / "official", tmp_path / "out", "--format=diffusers"])
    assert [path.name for path in tmp_path.iterdir()] == ["official"]


CONFIGS = {
    "num_layers": (3, "says num_layers = 3, the weights beside it show 2: fetch both again"),
    "dim": (96, "says dim = 96, the weights beside it show 48"),
    "attention_head_dim": (12, "says attention_head_dim = 12, the weights beside it show 24"),
    "ffn_dim": (97, "says ffn_dim = 97, the weights beside it show 96"),
    "in_dim": (36, "says in_dim = 36, the weights beside it show 16"),
    "out_channels": (8, "says out_channels = 8, the weights beside it show 16"),
    "text_dim": (4096, "says text_dim = 4096, the weights beside it show 32"),
    "freq_dim": ("64", "says freq_dim = '64', the weights beside it show 64"),
    "patch_size": ([1, 1, 1], "says patch_size = [1, 1, 1], the weights beside it show [1, 2, 2]"),
    "model_type": ("i2v", "says model_type = 'i2v', expected t2v or ti2v"),
    "_class_name": ("AutoencoderKLWan", "says _class_name = 'AutoencoderKLWan', expected WanModel or WanTransformer3"),
    "num_heads": (7, "holds no Wan transformer (dim 48 over 7 heads"),
    "eps": ("small", "holds no Wan transformer (eps is 'small', expected a number)"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_of_another_model_than_its_weights_is_refused(tmp_path, name):
    make_official(tmp_path / "official")
    value, message = CONFIGS[name]
    config = json.loads((tmp_path / "official/config.json").read_text()) | {name: value}
    (tmp_path / "official/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as caught:
        open_weights(tmp_path / "official")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "official/config.json").write_text(json.dumps({**config, name: None} | {"num_heads": 2}))
    assert open_weights(tmp_path / "official").config.layers == 2


def test_missing_last_layers_are_noticed(tmp_path):
    make_official(tmp_path / "official")
    change(tmp_path / "official", lambda x: [x.pop(name) for name in list(x) if name.startswith("blocks.1.")])
    with pytest.raises(ValueError, match="says num_layers = 2, the weights beside it show 1"):
        open_weights(tmp_path / "official")


def test_missing_sources_pickles_and_targets_that_exist_are_refused(tmp_path, capsys, wan_folder):
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.pth")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    for source, target, message in (
        ("nowhere", "out", "expected a safetensors file, an index of shards, or a folder with either"),
        ("there", "out", "found none"),
        ("model.pth", "out", "is a pickle, which can run code when it is read: expected safetensors"),
        ("other.ckpt", "out", "is no checkpoint of this project (it lacks state_dict or fps_flex)"),
        (wan_folder, "there", "exists already: choose another folder"),
        (wan_folder, "file/out", "can't be written (Not a directory)"),
    ):
        assert message in refused(capsys, main, ["convert", tmp_path / source, tmp_path / target, "--format=diffusers"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model.pth", "other.ckpt", "there"]


def test_several_files_without_an_index_ask_for_one(tmp_path, capsys, wan_folder):
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    line = refused(capsys, main, ["convert", tmp_path, tmp_path / "out", "--format=diffusers"])
    assert "holds a.safetensors, b.safetensors: name the one to load" in line


def test_tiny_transformers_of_the_tests_are_the_stock_ones(wan_folder):
    stock = {name: tuple(x.shape) for name, x in tiny_transformer().state_dict().items()}
    assert {name: tuple(x.shape) for name, x in tensors_of(wan_folder / "transformer").items()} == stock
