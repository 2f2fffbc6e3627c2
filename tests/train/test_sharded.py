"""Processes that share a model, or a clip, train as one, and go on from what any number of them saved."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from eval.generate.command import command as generate
from fps_flex import FPSAttention
from fps_flex.wan import WanConfig
from fps_flex.wan.adapters import read_adapter
from fps_flex.wan.convert import main as convert
from fps_flex.wan.trained import read_training_checkpoint
from fps_flex.wan.weights import build_empty, open_weights
from tests.helpers.commands import ROOT, run_apart
from tests.helpers.lora_run import lora_words, write_base
from tests.helpers.once import once
from tests.helpers.tiny_run import all_tensors, tiny_words
from tests.helpers.together import run_in_turn
from train.callbacks import read_losses
from train.common.videos import read_clip
from train.fit import main

pytestmark = pytest.mark.slow
SIZES = [
    "--model.wan.dim=72", "--model.wan.heads=4", "--model.wan.ffn_dim=99", "--model.wan.layers=2",
    "--data.height=24", "--data.width=20",
]  # fmt: skip
RUN = [
    *("--trainer.max_steps=20", "--trainer.val_check_interval=20", "--checkpoint.every_n_train_steps=10"),
    *("--trainer.enable_progress_bar=false", "--model.warmup_steps=20", *SIZES),
]
ONE, TWO = ["--data.batch_size=2"], ["--data.batch_size=1"]
HALF, PLAIN = "--trainer.max_steps=10", "--model.attention.quantize=false"
ULYSSES, HALO = (["--parallel.sequence=2", f"--parallel.exchange={x}", *ONE] for x in ("ulysses", "halo"))
WHOLE = "--parallel.shard=false"
LORA = ["--trainer.max_steps=4", "--checkpoint.every_n_train_steps=4", "--trainer.val_check_interval=4"]


def words(run, *options):
    return tiny_words(run, *RUN, *options)


def fit_together(folder, *runs, processes=2):
    """Runs of train.fit one after another, each by all processes."""
    _, told, codes = run_in_turn(folder, processes, *(("train.fit", words) for words in runs))
    assert codes == [[0] * processes] * len(runs), told


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs by their names; not to be changed."""
    return once(tmp_path_factory, "runs", make_runs)


def make_runs(folder):
    base = write_base(folder / "base")
    distill = [x for x in lora_words(folder / "distilled", base, *LORA) if "lora" not in x]

    def lora(name, *options):
        return lora_words(folder / name, base, *LORA, "--model.base=bf16", *options)

    for options in ([], [HALF], [PLAIN]):
        name = "-".join(["one", *(x.partition("=")[0].rpartition(".")[2] for x in options)])
        main(words(folder / name, *ONE, *options))
    main(lora("one-lora", *ONE))
    main([*distill, f"--run={folder / 'one-distilled'}", *ONE])
    shutil.copytree(folder / "one-max_steps", folder / "one-to-two")
    resumed = ["--ckpt_path=last-if-any", *TWO]
    fit_together(
        folder,
        words(folder / "ulysses-quantize", *ULYSSES, PLAIN),
        words(folder / "halo-quantize", *HALO, PLAIN),
        words(folder / "ulysses", *ULYSSES),
        words(folder / "halo", *HALO),
        words(folder / "ulysses-whole", *ULYSSES, WHOLE),
        words(folder / "halo-whole", *HALO, WHOLE, HALF),
        words(folder / "sequence-to-one", "--parallel.sequence=2", *ONE, HALF),
        words(folder / "two-quantize", *TWO, PLAIN),
        words(folder / "two", *TWO),
        words(folder / "two-to-two", *TWO, HALF),
        words(folder / "two-to-two", *resumed),
        words(folder / "one-to-two", *resumed),
        words(folder / "two-half", *TWO, HALF),
        lora("two-lora", *TWO, "--parallel.shard=true"),
        lora("ddp-lora", *TWO),
        lora("lora-to-ddp", *TWO, "--parallel.shard=true", "--trainer.max_steps=2"),
        lora("lora-to-ddp", *TWO, "--ckpt_path=last"),
        lora("sequence-lora", "--parallel.sequence=2", *ONE),
        lora("shared-lora", "--parallel.sequence=2", *ONE, "--parallel.shard=true"),
        [*distill, f"--run={folder / 'two-distilled'}", *TWO],
        [*distill, f"--run={folder / 'sequence-distilled'}", "--parallel.sequence=2", *ONE],
        [*distill, f"--run={folder / 'whole-distilled'}", "--parallel.sequence=2", WHOLE, *ONE],
    )
    for name in ("two-to-one", "two-to-four", "two-to-whole"):
        shutil.copytree(folder / "two-half", folder / name)
    four = [*resumed, "--parallel.sequence=2"]
    fit_together(
        folder, words(folder / "two-to-four", *four), words(folder / "two-to-whole", *four, WHOLE), processes=4
    )
    for name in ("two-to-one", "sequence-to-one", "halo-whole"):
        main(words(folder / name, *ONE, "--ckpt_path=last"))


def far_apart(run, other, part="train/loss"):
    """The largest relative difference of two runs' losses in their first three steps, and in all."""
    losses, others = read_losses(run)[part], read_losses(other)[part]
    assert losses.keys() == others.keys() and len(losses) >= 2
    gaps = [abs(losses[step] - others[step]) / others[step] for step in sorted(losses)]
    return max(gaps[:3]), max(gaps)


@pytest.mark.parametrize("name", ["two-quantize", "ulysses-quantize", "halo-quantize"])
def test_without_rounding_two_processes_train_as_one(runs, name):
    assert far_apart(runs / name, runs / "one-quantize")[1] < 1e-5
    assert far_apart(runs / name, runs / "one-quantize", "val/loss")[1] < 1e-5


RESUMED = ["one-to-two", "two-to-one", "sequence-to-one", "two-to-four", "two-to-whole", "halo-whole"]


@pytest.mark.parametrize("name", ["two", "ulysses", "halo", "ulysses-whole", *RESUMED])
def test_several_processes_train_as_one(runs, name):
    """Those of two-to-four and two-to-whole are two pairs, each of which trains on a clip; halo-whole ends on one."""
    first, all_ = far_apart(runs / name, runs / "one")
    assert first < 1e-6 and all_ < 1e-4
    assert far_apart(runs / name, runs / "one", "val/loss")[1] < 1e-4


def test_a_lora_on_two_processes_is_as_on_one(runs):
    """Beside weights in bf16, whose products differ by the batch, within its step: sharing is exact, one clip or two
    are not.
    """
    assert far_apart(runs / "two-lora", runs / "ddp-lora")[1] < 1e-6
    assert far_apart(runs / "two-lora", runs / "lora-to-ddp")[1] < 1e-6
    for name in ("two-lora", "sequence-lora", "shared-lora"):
        assert far_apart(runs / name, runs / "one-lora")[1] < 2**-8
    for name, is_shared in (("two-lora", True), ("shared-lora", True), ("ddp-lora", False), ("sequence-lora", False)):
        assert (runs / name / "checkpoints/last.ckpt").is_dir() == is_shared
    shared, whole = (read_adapter(runs / name / "checkpoints/last.ckpt").layers for name in ("two-lora", "ddp-lora"))
    assert shared.keys() == whole.keys()
    assert all(torch.allclose(layer.down, whole[name].down, atol=1e-6) for name, layer in shared.items())


@pytest.mark.parametrize("name", ["two-distilled", "sequence-distilled", "whole-distilled"])
def test_a_teacher_is_shared_out_too(runs, name):
    """It computes in bf16, of whose step that is the bound."""
    for part in ("train/loss", "val/loss", "val/error"):
        assert far_apart(runs / name, runs / "one-distilled", part)[1] < 2**-8


@pytest.mark.parametrize("name", ["ulysses", "halo", "ulysses-whole", "two-to-four"])
def test_processes_that_share_a_clip_sample_what_one_does(runs, name):
    """Of weights that are the same but for rounding: at most one of a pixel's 256 levels, here and there."""
    videos = [read_clip(runs / x / "sample.mp4", 10, 8.0, 24, 20).int() for x in (name, "one")]
    assert (videos[0] - videos[1]).abs().float().mean() < 0.05


MEASURE = """
import os, sys
import torch
from torch.distributed.device_mesh import init_device_mesh
from fps_flex import FPSAttention
from fps_flex.wan.weights import build_empty, open_weights
from train.building import Making, build_model
from train.shared_start import Start
from train.sharding import shard
def peak():  # of this program: ru_maxrss begins with that of the process that started it
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
torch.distributed.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
weights, making = open_weights(sys.argv[1]), Making(sharded=True)
torch.randn(64, 64) @ torch.randn(64, 64)
before = peak()
model = build_model(weights, weights.config, FPSAttention(), making)
shard(model, mesh)
Start(weights, making, torch.get_rng_state()).fill(model, torch.device("cpu"))
grown, whole = peak() - before, sum(x.numel() * x.itemsize for x in model.parameters())
with open(f"{sys.argv[2]}/{os.environ['RANK']}", "w") as file:
    file.write(f"{grown} {whole}")
"""


def test_no_process_ever_holds_the_whole_model(tmp_path):
    """350 MB, of which half, and a tensor with its place in its file, are in memory."""
    large = WanConfig(dim=768, ffn_dim=4096, heads=6, layers=8)
    empty = build_empty(large, FPSAttention()).state_dict()
    (tmp_path / "base").mkdir()
    save_file({name: torch.zeros(x.shape) for name, x in empty.items()}, tmp_path / "base/model.safetensors")
    (tmp_path / "base/config.json").write_text(json.dumps({"num_heads": 6}))
    (tmp_path / "measure.py").write_text(MEASURE)
    words = ["-m", "torch.distributed.run", "--nproc_per_node", 2, tmp_path / "measure.py", tmp_path / "base", tmp_path]
    done = run_apart(*words, OMP_NUM_THREADS="1", MALLOC_MMAP_THRESHOLD_="65536", PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    for rank in "01":
        grown, whole = map(int, (tmp_path / rank).read_text().split())
        assert whole > 300e6 and 0.45 * whole < grown < 0.7 * whole, (grown / 1e6, whole / 1e6)


def test_resumed_on_as_many_it_ends_in_the_same_bits(runs):
    whole, resumed = (all_tensors(runs / name / "checkpoints/last.ckpt") for name in ("two", "two-to-two"))
    assert whole.keys() == resumed.keys() and len(whole) > 200
    assert all(torch.equal(x, resumed[name]) for name, x in whole.items())
    assert read_losses(runs / "two") == read_losses(runs / "two-to-two")


def test_a_folder_holds_what_a_file_does(runs):
    file, folder = (runs / name / "checkpoints/last.ckpt" for name in ("one", "two"))
    kinds = [{name: (x.shape, x.dtype) for name, x in all_tensors(path).items()} for path in (file, folder)]
    assert file.is_file() and folder.is_dir() and kinds[0] == kinds[1]
    position, other = (read_training_checkpoint(path)["fps_flex"]["position"] for path in (file, folder))
    assert position == other and (runs / "two/checkpoints/best.ckpt").is_dir()
    assert not list((runs / "two/checkpoints").glob(".*"))


@pytest.mark.parametrize("which", ["average", "live"])
def test_convert_and_open_read_a_folder(runs, tmp_path, which):
    folder = runs / "two/checkpoints/last.ckpt"
    convert(["convert", str(folder), str(tmp_path / "out"), "--format", "official", "--weights", which])
    exported, read = open_weights(tmp_path / "out"), open_weights(folder, which)
    assert exported.specs == read.specs and all(torch.equal(x, read.read(name)) for name, x in exported.stream())
    assert read.fingerprint() == open_weights(folder, which).fingerprint()


def test_generate_and_a_new_run_start_from_a_folder(runs, tmp_path):
    folder = runs / "two/checkpoints/last.ckpt"
    generate([f"--checkpoint={folder}", f"--out={tmp_path / 'videos'}", "--prompt=a circle", "--steps=2"])
    assert list((tmp_path / "videos").glob("*.mp4"))
    main(
        words(
            tmp_path / "run", "--trainer.max_steps=2", "--trainer.val_check_interval=2", f"--model.checkpoint={folder}"
        )
    )
    begun = read_losses(tmp_path / "run")["val/loss"]
    assert begun[0] == pytest.approx(list(read_losses(runs / "two")["val/loss"].values())[-1], rel=1e-4)
