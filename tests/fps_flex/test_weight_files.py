"""Files of weights as people have them: of another kind, in shards, under an index, in pipelines and on the hub."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fps_flex.wan.hub import local
from fps_flex.wan.weights import open_weights
from tests.helpers.official_wan import assert_same, official_shapes, read_weights, refused_weights, tensors_of

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
    refused_weights(tmp_path / f"model{suffix}", message)


@pytest.mark.parametrize("name", ["model.pt", "model.PTH", "model.bin", "model.ckpt", "model.onnx"])
def test_pickles_and_onnx(tmp_path, name):
    torch.save({"a": torch.zeros(1)}, tmp_path / name)
    if name == "model.onnx":
        (tmp_path / name).write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(99))
    what = {".ckpt": "is no checkpoint of this project", ".onnx": "is an ONNX model"}
    refused_weights(tmp_path / name, what.get(Path(name).suffix, "is a pickle, which can run code"))


def test_a_truncated_file_is_refused_when_it_is_opened(save, tensors):
    path = save(tensors)
    path.write_bytes(path.read_bytes()[:-1])
    refused_weights(path, "can't be read as safetensors", "fetch or save it again")


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
    assert_same(read_weights(folder), tensors)
    first = folder / "model-00001-of-00003.safetensors"
    refused_weights(first, "is one of 00003 shards: give their folder")
    shutil.copy(first, folder / "model-00004-of-00003.safetensors")
    with pytest.raises(ValueError, match="expected shards numbered 1 to 3"):
        open_weights(folder)
    (folder / "model-00004-of-00003.safetensors").rename(folder / "model-00002-of-00003.safetensors")
    refused_line = pytest.raises(ValueError, open_weights, folder)
    assert "model-00002-of-00003.safetensors both hold" in str(refused_line.value)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused_weights(folder, "lacks number 2 of 3 shards: fetch the missing shards")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    shutil.copy(save_one(tmp_path, tensors), folder / "model-1-of-1000000000.safetensors")
    refused_weights(folder, "lacks number 2, 3, 4, 5, 6 of 1000000000 shards")
    (folder / "model-1-of-1000000000.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert_same(read_weights(folder / "model-00001-of-00001.safetensors"), tensors)
    assert_same(read_weights(folder), tensors)


def save_one(folder, tensors):
    save_file(tensors, folder / "one.safetensors")
    return folder / "one.safetensors"


def test_hidden_files_are_no_weights(tmp_path, tensors):
    folder = tmp_path / "x"
    shard(tensors, folder, index=True)
    for name in ("._model-00001-of-00003.safetensors", ".other.safetensors", "._model.safetensors.index.json"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    assert_same(read_weights(folder), tensors)


def test_several_models_in_a_folder_are_named(tmp_path, tensors):
    folder = tmp_path / "x"
    shard(tensors, folder)
    shutil.copy(save_one(tmp_path, tensors), folder / "model.fp16.safetensors")
    refused_weights(folder, "holds model-*-of-00003.safetensors, model.fp16.safetensors: name the one to load")
    shutil.rmtree(folder)
    shard(tensors, folder, index=True)
    shutil.copy(tmp_path / "one.safetensors", folder / "diffusion_pytorch_model.fp16.safetensors")
    refused_weights(
        folder, "holds model.safetensors.index.json, diffusion_pytorch_model.fp16.safetensors: name the one"
    )
    assert_same(read_weights(folder / "model.safetensors.index.json"), tensors)


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
    refused_weights(tmp_path / "x", "is a pipeline without its transformer/: fetch that folder too")
    refused_weights(tmp_path / "x/vae", "is a VAE (")
    refused_weights(tmp_path / "x/text_encoder", "is a text encoder (")
    for name in ("model.gguf", "last.ckpt"):
        (tmp_path / name).write_bytes(b"GGUF")
    refused_weights(tmp_path, "expected a transformer's safetensors in", "found last.ckpt, model.gguf")


def test_tilde_is_home(tmp_path, monkeypatch, tensors):
    monkeypatch.setenv("HOME", str(tmp_path))
    shard(tensors, tmp_path / "x")
    assert_same(read_weights("~/x"), tensors)
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
    assert_same(read_weights("hf:Wan-AI/Stock"), read_weights(wan_folder))
    assert {file.split("/")[0] for file in hub} == {"transformer", "model_index.json"}
    assert_same(read_weights("hf:Wan-AI/Stock/transformer"), read_weights(wan_folder))
    with pytest.raises(ValueError, match="hf:Wan-AI/Stock has no transformer_2/ with safetensors"):
        open_weights("hf:Wan-AI/Stock/transformer_2")
    hub.clear()
    assert_same(read_weights("hf:Wan-AI/Official"), tensors)
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
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert len(list(file.keys())) == len(shapes) == len(load_file(tmp_path / "a.safetensors"))
    assert tensors_of(tmp_path).keys() == {f"model.diffusion_model.{name}" for name in shapes}
