"""The command that converts weights: what it writes, in how much memory, and what is said of what can't be meant."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fps_flex.wan import convert as command
from fps_flex.wan.casting import Cast, check_finite, keeps_fp32
from fps_flex.wan.convert import main
from fps_flex.wan.export import export
from fps_flex.wan.files import Spec
from fps_flex.wan.weights import SETTINGS, load_wan, open_weights, read_settings
from fps_flex.wan.writing import write_file, write_shards
from tests.helpers.commands import ROOT, refused, run_apart
from tests.helpers.official_wan import DENSE, assert_same, make_official, official_shapes, tensors_of
from tests.helpers.tiny_run import train_tiny


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A tiny official release; not to be changed."""
    folder = tmp_path_factory.mktemp("official") / "release"
    make_official(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of train.fit; not to be changed."""
    return train_tiny(tmp_path_factory.mktemp("trained") / "run") / "checkpoints/last.ckpt"


def convert(source, folder, *options):
    main(["convert", str(source), str(folder), *options])
    return folder


def test_round_trips_of_all_formats_do_not_touch_a_bit(official, tmp_path):
    expected = tensors_of(official)
    stock = convert(official, tmp_path / "stock", "--format=diffusers")
    comfy = convert(stock, tmp_path / "comfy", "--format=comfyui")
    back = convert(comfy, tmp_path / "back", "--format=official", "--shard-size=100KB")
    for folder in (comfy, back):
        assert_same(tensors_of(folder), expected)
        assert_same(dict(open_weights(folder).stream()), expected)
    assert sorted(file.name for file in comfy.iterdir()) == ["comfy.safetensors", "config.json"]
    assert_same(dict(open_weights(comfy / "comfy.safetensors").stream()), expected)


def test_what_is_written_is_what_safetensors_writes(tmp_path):
    """Byte for byte but for the order of tensors, with odd sizes between even ones."""
    tensors = {
        "a": torch.randn(3).bfloat16(), "b": torch.randn(2, 3), "c": torch.randn(5).to(torch.float8_e4m3fn),
        "d": torch.tensor(2.0), "e": torch.zeros(0, 4), "f": torch.randn(3, dtype=torch.float64),
    }  # fmt: skip
    write_file(tmp_path / "x.safetensors", {n: Spec(tuple(x.shape), x.dtype) for n, x in tensors.items()}, tensors.get)
    assert_same(load_file(tmp_path / "x.safetensors"), tensors)
    save_file(tensors, tmp_path / "y.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "x.safetensors").stat().st_size == (tmp_path / "y.safetensors").stat().st_size
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    with pytest.raises(ValueError, match="a is of"):
        write_file(tmp_path / "x.safetensors", {"a": Spec((4,), torch.float32)}, tensors.get)


@pytest.mark.parametrize("format", ["official", "diffusers", "comfyui"])
@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_another_dtype_loads_as_the_source_does_in_it(official, tmp_path, capsys, format, name, dtype):
    out = convert(official, tmp_path / "out", f"--format={format}", f"--dtype={name}")
    loaded = dict(open_weights(out).stream())
    assert all(x.dtype == (torch.float32 if keeps_fp32(key) else dtype) for key, x in loaded.items())
    assert_same(load_wan(out, DENSE).state_dict(), load_wan(official, DENSE, dtype=dtype).state_dict())
    assert ("rounding changed the weights by" in capsys.readouterr().out) == (name != "fp32")


@pytest.mark.parametrize("dtype", ["bf16", "float8_e4m3fn"])
def test_stock_diffusers_loads_an_export_in_bfloat16(official, tmp_path, dtype):
    out = convert(official, tmp_path / "out", "--format=diffusers", f"--dtype={dtype}")
    stock, report = WanTransformer3DModel.from_pretrained(out, output_loading_info=True, torch_dtype=torch.bfloat16)
    assert not any(report.values())
    expected = open_weights(out)
    assert torch.equal(stock.blocks[0].ffn.net[2].weight, expected.read("blocks.0.ffn.2.weight").bfloat16())


def test_float8_is_of_the_matrices_of_blocks_and_its_rounding_is_told(official, tmp_path, capsys):
    out = convert(official, tmp_path / "out", "--format=comfyui", "--dtype=float8_e4m3fn")
    lines = capsys.readouterr().out.splitlines()
    before, after = tensors_of(official), tensors_of(out)
    matrices = {name for name, x in before.items() if name.startswith("blocks.") and x.dim() == 2}
    assert len(matrices) == 2 * 10
    assert {name for name, x in after.items() if x.dtype == torch.float8_e4m3fn} == matrices
    rest = {str(after[name].dtype) for name in after.keys() - matrices if not keeps_fp32(name)}
    assert rest == {"torch.bfloat16"} and after["head.modulation"].dtype == torch.float32
    worst = max((float((after[n].float() - before[n]).abs().max()), n) for n in before)
    assert f"at most by {worst[0]:.2g} ({worst[1]})" in lines[1] and "20 tensors in float8_e4m3fn" in lines[0]
    for name in matrices:
        assert torch.equal(after[name].view(torch.uint8), before[name].to(torch.float8_e4m3fn).view(torch.uint8))
    loaded = load_wan(out, DENSE, dtype=torch.float32).state_dict()
    assert torch.equal(loaded["blocks.0.ffn.0.weight"], after["blocks.0.ffn.0.weight"].float())


@pytest.mark.parametrize(
    ("value", "dtype", "says"),
    [
        (449.0, "float8_e4m3fn", "holds a value of 449, torch.float8_e4m3fn goes to 448: choose another dtype"),
        (-1e6, "fp16", "holds a value of 1e+06, torch.float16 goes to 65504"),
        (float("inf"), "bf16", "holds a value of inf"),
        (float("nan"), "fp16", "holds a value of nan"),
    ],
)
def test_values_that_a_dtype_cannot_hold_are_refused(official, tmp_path, capsys, value, dtype, says):
    tensors = tensors_of(official)
    tensors["blocks.1.ffn.0.weight"][3, 4] = value
    (tmp_path / "in").mkdir()
    save_file(tensors, tmp_path / "in/model.safetensors")
    shutil.copy(official / "config.json", tmp_path / "in")
    line = refused_to_convert(capsys, tmp_path / "in", tmp_path / "deep/er/out", "--format=comfyui", f"--dtype={dtype}")
    assert f"blocks.1.ffn.0.weight {says}" in line
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_values_that_are_not_finite_are_found_wherever_they_are(value, dtype):
    tensor = torch.zeros(2**21 + 5).to(dtype)
    if dtype == torch.float8_e4m3fn:
        value = float("nan")
    for position in (0, 2**20 + 3, 2**21 + 4):
        made = tensor.clone()
        made[position] = torch.tensor(value).to(dtype)
        for name in (None, "fp32", "bf16", "float8_e4m3fn"):
            with pytest.raises(ValueError, match=r"x.weight holds a value of (nan|inf), expected finite weights"):
                Cast(name)("x.weight", made)
    assert Cast()("x.weight", tensor) is tensor
    tensor[5], tensor[7] = -1.5, 1
    assert check_finite("x.weight", tensor) == 1.5


@pytest.mark.parametrize("options", [[], ["--dtype=fp32"], ["--dtype=bf16"]])
@pytest.mark.parametrize(("name", "scale"), [("norm3.weight", None), ("ffn.0.weight", 3e38)])
def test_weights_that_are_not_finite_are_neither_written_nor_loaded(official, tmp_path, capsys, options, name, scale):
    tensors = tensors_of(official)
    tensors[f"blocks.1.{name}"][3] = float("nan")
    if scale:  # times which a weight in float8 is infinite
        tensors["blocks.1.ffn.0.weight"] = torch.full((96, 48), 448.0).to(torch.float8_e4m3fn)
        tensors["blocks.1.ffn.0.scale_weight"] = torch.tensor(scale)
    (tmp_path / "in").mkdir()
    save_file(tensors, tmp_path / "in/model.safetensors")
    shutil.copy(official / "config.json", tmp_path / "in")
    line = refused_to_convert(capsys, tmp_path / "in", tmp_path / "out", "--format=official", *options)
    assert f"blocks.1.{name} holds a value of {'inf' if scale else 'nan'}, expected finite weights" in line
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    with pytest.raises(ValueError, match=f"blocks.1.{name} holds a value of"):
        load_wan(tmp_path / "in", DENSE)


def test_values_that_are_not_finite_in_the_dtype_are_not_loaded(official, tmp_path):
    tensors = tensors_of(official)
    tensors["blocks.1.ffn.0.weight"][3, 4] = 1e6
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(official / "config.json", tmp_path)
    load_wan(tmp_path, DENSE, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="blocks.1.ffn.0.weight holds a value of inf"):
        load_wan(tmp_path, DENSE, dtype=torch.float16)


def test_scaled_fp8_becomes_what_it_is_worth(official, tmp_path, capsys, caplog):
    tensors = tensors_of(official)
    scale = tensors["blocks.0.ffn.0.weight"].abs().max() / 448
    tensors["blocks.0.ffn.0.weight"] = (tensors["blocks.0.ffn.0.weight"] / scale).to(torch.float8_e4m3fn)
    worth = tensors | {"blocks.0.ffn.0.weight": tensors["blocks.0.ffn.0.weight"].float() * scale}
    (tmp_path / "in").mkdir()
    save_file(
        tensors | {"blocks.0.ffn.0.scale_weight": scale, "scaled_fp8": torch.zeros(2)}, tmp_path / "in/x.safetensors"
    )
    shutil.copy(official / "config.json", tmp_path / "in")
    assert_same(tensors_of(convert(tmp_path / "in", tmp_path / "out", "--format=official")), worth)
    assert f"{len(worth)} tensors in float32, as they are read" in capsys.readouterr().out
    assert "1 weights of" in caplog.text and "are read as float8 times their scales, in float32" in caplog.text


def test_what_a_checkpoint_says_goes_with_its_weights_through_all_formats(trained, tmp_path):
    live = torch.load(trained, weights_only=True)["current_model_state"]
    source, settings = trained, None
    for format in ("comfyui", "diffusers", "official"):
        source = convert(
            source, tmp_path / format, f"--format={format}", *(["--weights=live"] if settings is None else [])
        )
        now = json.loads((source / SETTINGS).read_text())
        assert settings in (None, now) and now["wan"]["dim"] == 128
        settings = now
        assert_same(dict(open_weights(source).stream()), {n.removeprefix("model."): x for n, x in live.items()})
    settings["wan"]["eps"] = 1e-5
    (source / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="is of another model"):
        open_weights(source)


def test_an_expert_of_a_release_keeps_its_noise_levels(official, tmp_path, capsys):
    for name in ("transformer", "transformer_2"):
        shutil.copytree(official, tmp_path / "release" / name)
    (tmp_path / "release/model_index.json").write_text(json.dumps({"boundary_ratio": 0.9}))
    source = tmp_path / "release/transformer_2"
    for format in ("comfyui", "diffusers", "official"):
        source = convert(source, tmp_path / format, f"--format={format}")
        assert json.loads((source / SETTINGS).read_text()) == {"noise_levels": [0.0, 0.9]}
        weights = open_weights(source)
        assert (weights.noise_levels, weights.settings, weights.trained) == ((0.0, 0.9), None, None)
    with pytest.raises(ValueError, match="is of a release, which has no attention of its own"):
        read_settings(source)
    for settings in ({}, {"noise_levels": [0.9, 0.1]}, {"noise_levels": None}):
        (source / SETTINGS).write_text(json.dumps(settings))
        assert f"{source / SETTINGS} doesn't say its noise levels" in refused_to_convert(
            capsys, source, tmp_path / "out", "--format=official"
        )
    (source / SETTINGS).write_text("[" * 100_000)
    assert f"{source} doesn't say its attention" in refused_to_convert(
        capsys, source, tmp_path / "out", "--format=official"
    )
    (tmp_path / "release/model_index.json").write_text("[" * 100_000)
    line = refused_to_convert(capsys, tmp_path / "release/transformer", tmp_path / "out", "--format=official")
    assert "model_index.json is no index of a release: fetch it again" in line


@pytest.mark.parametrize(
    ("size", "files"),
    [("none", 1), ("5GB", 1), ("1GiB", 1), ("100KB", 4), ("100_000", 0), ("100000", 4), ("0.1 mb", 4)],
)
def test_sizes_of_shards(official, tmp_path, capsys, size, files):
    if not files:
        assert "--shard-size" in refused_to_convert(
            capsys, official, tmp_path / "out", "--format=official", f"--shard-size={size}"
        )
        return
    out = convert(official, tmp_path / "out", "--format=official", f"--shard-size={size}")
    shards = list(out.glob("*.safetensors"))
    assert len(shards) == files and all(file.stat().st_size < 110_000 for file in shards if files > 1)
    assert (out / "diffusion_pytorch_model.safetensors.index.json").is_file() == (files > 1)
    assert_same(dict(open_weights(out).stream()), tensors_of(official))


def refused_to_convert(capsys, *words):
    return refused(capsys, main, ["convert", *words])


# of each argument, values that can't be meant, and what the line says
BAD = {
    "source": {"nowhere": "no nowhere", "/dev/null": "neither a file nor a folder",
               "README.md": "README.md", "configs": "configs", "\0": "path is", "hf:x": "hf:x",
               "configs/tiny.yaml": "tiny.yaml", "x" * 5000: "path is", "~nobody-here/x": "path is"},
    "folder": {"tests": "exists already", ".": "exists already", "": "exists already", "hf:a/b": "on this machine",
               "out.safetensors": "expected a folder's name",
               "README.md/out": "can't be written", "/proc/out": "can't be written", "\0": "folder is",
               "~nobody-here/x": "folder is", "x" * 5000: "folder is"},
    "--format": {"comfy": "invalid choice", "": "invalid choice", "Official": "invalid choice"},
    "--dtype": {"int8": "invalid choice", "": "invalid choice", "float16": "invalid choice", "fp8": "invalid choice"},
    "--weights": {"best": "invalid choice", "live": "leave it out", "average": "leave it out", "": "invalid choice"},
    "--shard-size": {size: "--shard-size" for size in ("0", "-5GB", "5XB", "", "nan", "inf", "1e9", "GB", "five", "0.1",
                                                       "5GB5", "None5", "٥GB", "0x10", "9" * 40, "5GBps")},
    "--nonsense": {"1": "unrecognized arguments"},
    "--form": {"official": "--form"},
}  # fmt: skip


@pytest.mark.parametrize("argument", BAD)
def test_a_value_that_cannot_be_meant_is_one_line_and_nothing_is_written(
    official, tmp_path, capsys, monkeypatch, argument
):
    monkeypatch.chdir(ROOT)
    before = {path.name for path in ROOT.iterdir()}
    for value, message in BAD[argument].items():
        paths = {"source": official, "folder": tmp_path / "out"} | ({argument: value} if argument[0] != "-" else {})
        options = {"--format": "official"} | ({argument: value} if argument[0] == "-" else {})
        line = refused_to_convert(capsys, *paths.values(), *(f"{name}={given}" for name, given in options.items()))
        assert message in line and len(line) < 600, line
    assert list(tmp_path.iterdir()) == [] and {path.name for path in ROOT.iterdir()} == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "convert"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["convert"], "the following arguments are required: source, folder, --format"),
        (["convert", "a", "b"], "the following arguments are required: --format"),
        (["convert", "a", "b", "c", "--format=official"], "unrecognized arguments: c"),
        (["convert", "a", "b", "--format"], "--format: expected one argument"),
        (["convert", "a", "b", "--format=comfyui", "--shard-size=5GB"], "ComfyUI's format is one file: leave it out"),
    ],
)
def test_a_command_line_that_is_none_is_one_line(capsys, args, message):
    assert message in refused(capsys, main, args)


def test_comfyui_is_warned_about_heads_that_it_takes_for_others(official, tmp_path, caplog):
    convert(official, tmp_path / "out", "--format=comfyui")
    assert "ComfyUI takes all heads to be of 128 channels; these are of 24" in caplog.text


def test_too_little_room_is_said_before_anything_is_written(official, tmp_path, capsys, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**4))
    line = refused_to_convert(capsys, official, tmp_path / "new/out", "--format=official")
    assert "would take 0.0 GB, and 0.0 GB are free: make room" in line and list(tmp_path.iterdir()) == []


LIMITED = """
import resource, signal, sys
from fps_flex.weights import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
main(sys.argv[1:])
"""


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(official, tmp_path):
    done = run_apart("-c", LIMITED, "convert", official, tmp_path / "new/out", "--format=comfyui")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last == f"error: {tmp_path / 'new/out'} can't be written (File too large)"
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


STOPPED = """
import sys, time
from fps_flex.wan import convert, weights
read = weights.Weights.stream
def slow(tensor):
    print("reading", flush=True)
    time.sleep(60)
convert.Cast.__call__ = lambda self, name, tensor: slow(tensor)
convert.main(sys.argv[1:])
"""


def test_ctrl_c_is_one_line_and_leaves_nothing(official, tmp_path):
    command = [sys.executable, "-c", STOPPED, "convert", official, tmp_path / "new/out", "--format=official"]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "reading\n" and list(tmp_path.glob("new/.out.*.part/*"))
    running.send_signal(signal.SIGINT)
    _, written = running.communicate(timeout=30)
    assert (running.returncode, written) == (130, "error: stopped; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


CONVERT = """
import sys
from fps_flex.weights import main
def kilobytes(of):
    (value,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith(of))
    return int(value)
import fps_flex.wan.convert, numpy, rich.progress, safetensors.torch
before = kilobytes("VmRSS")
main(["convert", *sys.argv[1:]])
print((kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--shard-size=none"], ["--shard-size=500MB"], ["--dtype=float8_e4m3fn"]])
def test_converting_takes_the_memory_of_a_few_tensors_whatever_the_size_of_files(tmp_path, options):
    """Of four blocks of 1.3B in bfloat16."""
    shapes = official_shapes(1536, 8960, 4)
    specs = {name: Spec(shape, torch.bfloat16) for name, shape in shapes.items()}
    (tmp_path / "in").mkdir()
    write_shards(tmp_path / "in", specs, lambda name: torch.ones(shapes[name], dtype=torch.bfloat16), 10**9)
    size = sum(spec.nbytes for spec in specs.values())
    done = run_apart("-c", CONVERT, tmp_path / "in", tmp_path / "out", "--format=diffusers", *options)
    shutil.rmtree(tmp_path / "in"), shutil.rmtree(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    peak, largest = int(done.stdout.split()[-1]), max(spec.nbytes for spec in specs.values())
    print(f"{peak / 1e6:.0f} MB for {size / 1e6:.0f} MB, {peak / largest:.1f} times the largest tensor")
    assert size > 4e8 and peak < 6 * largest


def test_a_bar_shows_how_far_a_long_conversion_is(official, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "BAR_BYTES", 0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    convert(official, tmp_path / "out", "--format=official")
    printed = capsys.readouterr()
    assert "converting" in printed.err and "converting" not in printed.out


def test_an_abandoned_attempt_is_in_nobodys_way(official, tmp_path):
    (tmp_path / ".out.0.part").mkdir()
    convert(official, tmp_path / "out", "--format=official")
    assert {path.name for path in tmp_path.iterdir()} == {".out.0.part", "out"}
    assert os.listdir(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / ".out.0.part").stat().st_mode
    assert Cast().describe() == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".hid", "whose '.hid.safetensors' would be a hidden file: choose another name"),
        ("a-00001-of-00002", "whose 'a-00001-of-00002.safetensors' would be one shard of several: choose another name"),
    ],
)
def test_names_whose_one_file_could_not_be_read_are_refused(official, tmp_path, capsys, name, message):
    assert message in refused_to_convert(capsys, official, tmp_path / name, "--format=comfyui")
    assert list(tmp_path.iterdir()) == []
    assert_same(
        dict(open_weights(convert(official, tmp_path / name, "--format=official")).stream()), tensors_of(official)
    )


@pytest.mark.parametrize("appears", ["file", "empty", "whole"])
def test_a_folder_that_appears_meanwhile_is_kept(official, tmp_path, appears):
    weights, out = open_weights(official), tmp_path / "out"
    appear = {"file": out.touch, "empty": out.mkdir, "whole": lambda: convert(official, out, "--format=official")}

    def read(name):
        if not out.exists():
            appear[appears]()
        return weights.read(name)

    with pytest.raises(ValueError, match=f"{out} exists already: choose another folder"):
        export(replace(weights, read=read), out, "official")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    if appears == "whole":
        assert_same(tensors_of(out), tensors_of(official))


def test_of_two_conversions_into_one_folder_one_is_refused_and_the_other_whole(official, tmp_path):
    command = [sys.executable, "-m", "fps_flex.weights", "convert", official, tmp_path / "out", "--format=official"]
    runs = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [run.communicate(timeout=60)[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 2]
    assert f"error: {tmp_path / 'out'} exists already: choose another folder\n" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert_same(dict(open_weights(tmp_path / "out").stream()), tensors_of(official))
