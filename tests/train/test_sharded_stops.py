"""Processes that share a model out end together, and what was saved before is there to go on from."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from fps_flex.wan.trained import read_training_checkpoint, shard_name
from tests.helpers.commands import ROOT, refused, run_apart
from tests.helpers.lora_run import lora_words, write_base
from tests.helpers.tiny_run import tiny_words, train_tiny
from tests.train.test_processes import ENVIRONMENT, QUICK, find_second, nothing_is_left_of
from tests.train.test_sharded import SIZES
from train.callbacks import read_losses
from train.checkpoints import trained_steps
from train.common.atomic import part_of, put_in_place, recover
from train.common.lock import locked
from train.fit import main
from train.resume import find_checkpoint

TWO = ["--trainer.devices=2", "--trainer.accelerator=cpu", *SIZES]


def fit(run, *options, fault=("none", "0", "0")):
    """Ends long before processes would by themselves, or fails the test."""
    words = tiny_words(run, *QUICK, *options)
    return run_apart("tests/helpers/faulty.py", *fault, *words, timeout=240, OMP_NUM_THREADS="1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "rank", "line", "saved"),
    [
        ("nan", "1", "train/loss is nan at step 5 on shapes seed 0 clip", "not-finite.ckpt"),
        ("kill", "1", "another process of this run is gone without a word", None),
        ("bug", "1", "'no such key'", None),
    ],
)
def test_what_goes_wrong_on_one_ends_both(tmp_path, fault, line, saved, rank):
    run = tmp_path / "run"
    done = fit(run, *TWO, fault=(fault, rank, "6"))
    assert done.returncode == 1 and f"error: {line}" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert nothing_is_left_of(run)
    assert "processes  2, with a share of the model each" in done.stdout
    assert trained_steps(run / "checkpoints/last.ckpt") == 4
    if saved:
        loaded = read_training_checkpoint(run / "checkpoints" / saved)
        assert loaded["global_step"] == 5
        assert all(x.isfinite().all() for x in loaded["current_model_state"].values())
        assert done.stderr.count("error: ") == 1
    else:
        assert "stopped after step 5; --ckpt_path last goes on from step 4" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "option", "line"),
    [
        ("worker", "--data.workers=1", r"process 1: DataLoader worker \(pid \d+\) is killed by signal: Killed\. \(out"),
        ("stop", "--parallel.timeout=20", "no answer from process 1 within --parallel.timeout: it is stopped, or"),
    ],
)
def test_a_process_that_is_gone_or_stopped_is_named(tmp_path, fault, option, line):
    run = tmp_path / "run"
    done = fit(run, *TWO, option, fault=(fault, "1", "6"))
    assert done.returncode == 1 and re.search(f"error: {line}", done.stderr), done.stderr
    assert "Traceback" not in done.stderr and not (run / "error.txt").exists() and nothing_is_left_of(run)
    assert trained_steps(run / "checkpoints/last.ckpt") in (2, 4) and "--ckpt_path last goes on from" in done.stdout


@pytest.mark.slow
def test_a_signal_to_one_stops_both(tmp_path):
    run, endless = tmp_path / "run", ["--trainer.max_steps=99999", "--trainer.val_check_interval=99999"]
    options = [*QUICK, *TWO, *endless, "--checkpoint.every_n_train_steps=99999"]
    process = subprocess.Popen(
        [sys.executable, "-m", "train.fit", *tiny_words(run, *options)], cwd=ROOT, env=ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    metrics, deadline = run / "logs/version_0/metrics.csv", time.monotonic() + 60
    while not (metrics.is_file() and metrics.read_text().count("\n") > 4) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(find_second(process.pid), signal.SIGTERM)
    try:
        output = process.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"still there a minute later:\n{process.communicate()[0]}")
    assert process.returncode == 143 and output.count("error: stopped by SIGTERM") == 1, output
    step = trained_steps(run / "checkpoints/interrupted.ckpt")
    assert "Traceback" not in output and f"stopped at step {step}" in output and nothing_is_left_of(run)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["disk", "kill-save"])
def test_a_save_that_fails_on_one_leaves_the_last_one_whole(tmp_path, fault):
    """The third: best.ckpt of step 4, after last.ckpt of it."""
    run = tmp_path / "run"
    done = fit(run, *TWO, fault=(fault, "1", "3"))
    folder = run / "checkpoints"
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    if fault == "disk":
        assert f"error: {folder / 'best.ckpt'} can't be written (No space left on device): make room" in done.stderr
        assert done.stderr.count("error: ") == 1
    assert trained_steps(folder / "last.ckpt") == 4 and not (folder / "best.ckpt").exists()
    assert [x.name for x in folder.glob(".*")] == ([] if fault == "disk" else [".best.ckpt.part"])
    if fault == "kill-save":
        assert fit(run, *TWO, "--ckpt_path=last").returncode == 0
        assert trained_steps(folder / "last.ckpt") == 8 and not list(folder.glob(".*"))


@pytest.mark.slow
def test_under_torchrun_a_refusal_is_one_line(tmp_path):
    words = tiny_words(tmp_path / "run", *SIZES, "--parallel.sequence=3", "--parallel.exchange=ulysses")
    done = run_apart("-m", "torch.distributed.run", "--nproc_per_node", 3, "-m", "--", "train.fit", *words)
    line = "error: parallel.sequence is 3: Ulysses deals 4 heads out to 3 processes, expected a number that divides"
    assert done.returncode and done.stderr.count(line) == done.stderr.count("error: ") == 1, done.stderr
    assert f"{done.stderr.count('exitcode  : 2')} {done.stderr.count('exitcode  : -15')}" == "1 2", done.stderr


@pytest.mark.slow
def test_under_torchrun_a_folder_in_use_is_one_line(tmp_path):
    """The others wait for the first process when it finds that out."""
    run = tmp_path / "run"
    run.mkdir()
    words = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "-m", "--", "train.fit", *tiny_words(run, *SIZES)]
    with locked(run):
        done = run_apart(*words)
    assert done.returncode and "SIGKILL" not in done.stderr, done.stderr
    assert done.stderr.count(f"error: {run} is in use by process") == done.stderr.count("error: ") == 1
    assert not (run / "checkpoints").exists()


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of two steps as two processes would have written it, by hand."""
    run = train_tiny(tmp_path / "file", *SIZES)
    made = tmp_path / "run/checkpoints/last.ckpt"
    made.mkdir(parents=True)
    split(read_training_checkpoint(run / "checkpoints/last.ckpt"), made)
    return made


def split(loaded, folder):
    """Rows as FSDP2 shares them out: the first process has as many as any."""
    states = {part: loaded.pop(part) for part in ("state_dict", "current_model_state")}
    states |= {f"optimizer/{i}": x for i, x in loaded["optimizer_states"][0]["state"].items()}
    loaded["optimizer_states"][0]["state"] = {}
    tensors = {f"{state}/{name}": x for state, part in states.items() for name, x in part.items()}
    for rank in (0, 1):
        parts = {name: list(x.chunk(2)) if x.dim() else [x] for name, x in tensors.items()}
        rows = {name: x[rank].contiguous() for name, x in parts.items() if len(x) > rank}
        save_file(rows, folder / shard_name(rank + 1, 2))
    torch.save(loaded | {"shards": 2}, folder / "meta.pt")


def test_a_folder_is_gone_on_from_by_one_process(folder):
    run = folder.parents[1]
    train_tiny(run, *SIZES, "--ckpt_path=last", "--trainer.max_steps=4")
    train_tiny(folder.parents[2] / "whole", *SIZES, "--trainer.max_steps=4")
    whole, resumed = (read_losses(x)["train/loss"] for x in (folder.parents[2] / "whole", run))
    assert resumed == {step: loss for step, loss in whole.items() if step >= 2}
    assert folder.is_file() and not list(folder.parent.glob(".*"))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda folder: (folder / shard_name(2, 2)).unlink(), "it lacks shard-00002-of-00002.safetensors"),
        (lambda folder: cut(folder / shard_name(2, 2)), "can't be read as safetensors"),
        (lambda folder: (folder / "meta.pt").unlink(), "it is a folder without meta.pt"),
        (lambda folder: cut(folder / "meta.pt"), "is no checkpoint of this project"),
        (lambda folder: shutil.copy(folder / shard_name(2, 2), folder / shard_name(1, 2)), "no checkpoint"),
    ],
)
def test_half_a_folder_is_refused_in_a_line(folder, capsys, damage, line):
    damage(folder)
    words = tiny_words(folder.parents[1], *SIZES, "--ckpt_path=last", "--trainer.max_steps=4")
    assert line in refused(capsys, main, words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        (
            "current_model_state/model.blocks.0.ffn.0.weight",
            torch.nan,
            "model.blocks.0.ffn.0.weight holds a value of nan",
        ),
        ("optimizer/0/exp_avg_sq", -1.0, "exp_avg_sq of parameter 0 holds a value of -1, expected none below 0"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--model.offload_optimizer=true"]], ids=["beside", "offloaded"])
def test_what_is_wrong_in_one_share_is_refused_by_all_and_not_saved(folder, name, value, line, options):
    """What was put in its place before is part of a state alone."""
    file, run = folder / shard_name(2, 2), folder.parents[1] / "another"
    tensors = load_file(file)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file)
    done = fit(run, *TWO, f"--ckpt_path={folder}", "--data.val_clips=1", *options)
    assert done.returncode == 1 and done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"error: the checkpoint's {line}" in done.stderr and not list(run.rglob("*.ckpt"))


DDP = "lightning.pytorch.strategies.DDPStrategy"
PAIR = ["--parallel.sequence=2", "--trainer.devices=2"]
ONE_TILE = ["--model.attention.tile=[5,8,8]"]


def cut(file):
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--parallel.sequence=2"], "parallel.sequence is 2, and there are 1 processes: expected a multiple of it"),
        (["--parallel.sequence=2", "--trainer.devices=3"], "parallel.sequence is 2, and there are 3 processes"),
        (["--parallel.sequence=0"], "parallel.sequence is 0"),
        (["--parallel.timeout=0"], "parallel.timeout is 0"),
        (
            [*PAIR, f"--trainer.strategy={DDP}", "--parallel.shard=false"],
            "which needs trainer.strategy auto or ddp, and",
        ),
        (["--parallel.exchange=halo"], "parallel.exchange is halo, of processes that train on a clip together, and"),
        (
            [*PAIR, "--parallel.exchange=ulysses", "--model.wan.heads=3", "--model.wan.dim=66"],
            "parallel.sequence is 2: Ulysses deals 3 heads out to 2 processes, expected a number that divides them: "
            "take 3, or halo, which takes any number of heads",
        ),
        ([*PAIR, "--parallel.exchange=halo", *ONE_TILE], "parallel.sequence is 2: the halo deals 1 tiles out to 2"),
        ([*PAIR, "--parallel.exchange=halo", "--model.attention.engine=flash"], "flash: needs a Hopper GPU or later"),
        (["--parallel.shard=true", "--trainer.strategy=ddp"], "trainer.strategy is ddp: leave it out"),
        (["--trainer.strategy=train.sequences.Replicated"], "Replicated, expected auto or ddp: --parallel sets it up"),
        (["--trainer.strategy=train.sharding.Sharding"], "Sharding, expected auto or ddp: --parallel sets it up"),
        (["--parallel.shard=true", "--model.base=bf16"], "parallel.shard is true, and model.base bf16"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_in_a_line(tmp_path, capsys, options, line):
    words = tiny_words(tmp_path / "run", "--trainer.accelerator=cpu", *options)
    assert line in refused(capsys, main, words) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--parallel.sequence=2", "--trainer.devices=2", "--parallel.exchange=halo"],
         "parallel.exchange is halo, and the teacher of model.objective distill attends to a whole clip as one tile"),
        (["--parallel.sequence=5", "--trainer.devices=5"], "which only Ulysses shares, by its 2 heads: take 2"),
    ],
)  # fmt: skip
def test_what_a_teacher_cannot_be_shared_by_is_refused_in_a_line(tmp_path, capsys, options, line):
    words = lora_words(tmp_path / "run", write_base(tmp_path / "base"), "--trainer.accelerator=cpu", *options)
    assert line in refused(capsys, main, words) and not (tmp_path / "run").exists()


def test_last_if_any_begins_where_there_is_none(tmp_path):
    for steps in (2, 4):
        train_tiny(tmp_path / "run", "--ckpt_path=last-if-any", f"--trainer.max_steps={steps}")
    assert sorted(read_losses(tmp_path / "run")["train/loss"]) == [0, 1, 2, 3]
    assert find_checkpoint(tmp_path / "none", "last-if-any") is None


@pytest.mark.parametrize("old", ["file", "folder"])
@pytest.mark.parametrize("new", ["file", "folder"])
def test_files_and_folders_take_each_others_place(tmp_path, old, new):
    path = tmp_path / "last.ckpt"
    for place, kind, text in ((path, old, "old"), (part_of(path), new, "new")):
        place.mkdir() if kind == "folder" else place.write_text(text)
        if kind == "folder":
            (place / "text").write_text(text)
    put_in_place(part_of(path), path)
    assert (path / "text" if new == "folder" else path).read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_between_two_renames_costs_nothing(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    for place in (path, part_of(path)):
        place.mkdir()
        (place / "text").write_text(place.name)
    rename = type(path).rename

    def killed(self, target):
        if self == part_of(path):
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(path), "rename", killed)
        put_in_place(part_of(path), path)
    assert not path.exists()
    recover(path)
    recover(path)
    assert (path / "text").read_text() == "last.ckpt"
