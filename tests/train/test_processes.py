"""Two processes train as one and end as one, whatever befalls either: with a line, a sound state,"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers.commands import ROOT, run_apart
from tests.helpers.tiny_run import read_checkpoint, tiny_words
from train.callbacks import read_losses
from train.checkpoints import trained_steps

pytestmark = pytest.mark.slow
QUICK = [
    "--trainer.max_steps=8", "--trainer.val_check_interval=4", "--sample.steps=2",
    "--checkpoint.every_n_train_steps=2", "--trainer.log_every_n_steps=1", "--data.val_clips=3", "--sample.count=1",
    "--model.val_levels=1", "--trainer.enable_progress_bar=false", "--data.batch_size=1",
]  # fmt: skip
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def fit(run, *options, fault=("none", "0", "0")):
    """Ends within a minute, or fails the test: a process that waits for another would wait for half an hour."""
    words = tiny_words(run, *QUICK, *options)
    return run_apart("tests/helpers/faulty.py", *fault, *words, timeout=60, OMP_NUM_THREADS="1")


def nothing_is_left_of(run):
    time.sleep(1)
    return subprocess.run(["pgrep", "-f", str(run)], capture_output=True).stdout == b""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    assert fit(run, "--data.batch_size=2").returncode == 0
    return run


def test_losses_are_the_same_for_any_number_of_processes_and_batch_size(alone, tmp_path):
    """Three validation clips: one process counts two of them, the other one. 1 x 2 clips, 2 x 1, 1 x 1 accumulated."""
    assert fit(tmp_path / "two", *TWO).returncode == 0
    summed = ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=8"]
    assert fit(tmp_path / "summed", *summed).returncode == 0
    assert fit(tmp_path / "three", "--data.batch_size=3", "--trainer.max_steps=1").returncode == 0
    expected = read_losses(alone)
    for run in ("two", "summed"):
        losses = read_losses(tmp_path / run)
        for name, values in expected.items():
            assert losses[name].keys() == values.keys()
            assert all(losses[name][step] == pytest.approx(values[step], rel=2e-5) for step in values), (run, name)
    assert read_losses(tmp_path / "three")["val/loss"][0] == pytest.approx(expected["val/loss"][0], rel=1e-6)


def test_on_another_number_of_processes_no_clip_is_left_out_or_met_twice(alone, tmp_path):
    """Four steps of 2 clips on one process, and four on two, are eight on one."""
    run = tmp_path / "run"
    assert fit(run, "--data.batch_size=2", "--trainer.max_steps=4").returncode == 0
    done = fit(run, *TWO, "--ckpt_path=last")
    assert done.returncode == 0 and "data.batch_size 2 -> 1" in done.stdout, done.stderr
    uninterrupted, resumed = map(read_checkpoint, (alone, run))
    assert resumed["fps_flex"]["position"] == uninterrupted["fps_flex"]["position"]
    assert uninterrupted["fps_flex"]["position"]["taken"] == [16]
    for step, loss in read_losses(alone)["train/loss"].items():
        assert read_losses(run)["train/loss"][step] == pytest.approx(loss, rel=2e-5)


@pytest.mark.parametrize(
    ("fault", "rank", "line", "saved"),
    [
        ("nan", "1", "train/loss is nan at step 5 on shapes seed 0 clip", "not-finite.ckpt"),
        ("gradient", "0", "the gradient is not finite, though train/loss is, at step 5 on shapes", "not-finite.ckpt"),
        ("memory", "0", "CUDA out of memory. Tried to allocate 2.00 GiB", "interrupted.ckpt"),
        ("memory", "1", "CUDA out of memory. Tried to allocate 2.00 GiB", "interrupted.ckpt"),
        ("backward", "1", "CUDA out of memory in the backward pass", "interrupted.ckpt"),
        ("data", "1", "no clip in clips can be read: all 3 broke", "interrupted.ckpt"),
        ("bug", "0", "'no such key'", "interrupted.ckpt"),
    ],
)
def test_what_goes_wrong_on_one_ends_both(tmp_path, fault, line, saved, rank):
    run = tmp_path / "run"
    done = fit(run, *TWO, fault=(fault, rank, "6"))
    assert done.returncode == 1 and f"error: {line}" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert nothing_is_left_of(run)
    state = torch.load(run / "checkpoints" / saved, weights_only=True)
    assert state["global_step"] == 5 and all(x.isfinite().all() for x in state["current_model_state"].values())
    assert trained_steps(run / "checkpoints/last.ckpt") == 4
    assert (run / "error.txt").is_file() == (fault == "bug")
    if fault == "backward":
        assert fit(run, *TWO, "--ckpt_path=last").returncode == 0
        assert trained_steps(run / "checkpoints/last.ckpt") == 8


def find_second(first):
    """Among the first process's children, of which some may load clips, the one of rank 1."""
    children = subprocess.run(["pgrep", "-P", str(first)], capture_output=True, text=True).stdout.split()
    (second,) = [x for x in children if b"LOCAL_RANK=1" in Path(f"/proc/{x}/environ").read_bytes()]
    return int(second)


@pytest.mark.parametrize("who", ["first", "second", "both"])
def test_a_signal_to_one_stops_both(tmp_path, who):
    run = tmp_path / "run"
    options = [
        "--trainer.max_steps=99999",
        "--trainer.val_check_interval=99999",
        "--checkpoint.every_n_train_steps=99999",
    ]
    command = [sys.executable, "-m", "train.fit", *tiny_words(run, *QUICK, *TWO, *options)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    metrics, deadline = run / "logs/version_0/metrics.csv", time.monotonic() + 60
    while not (metrics.is_file() and metrics.read_text().count("\n") > 4) and time.monotonic() < deadline:
        time.sleep(0.1)
    child = find_second(process.pid)
    for pid in {"first": [process.pid], "second": [child], "both": [process.pid, child]}[who]:
        os.kill(pid, signal.SIGTERM)
    try:
        output = process.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"still there a minute later:\n{process.communicate()[0]}")
    assert process.returncode == 143 and "error: stopped by SIGTERM" in output and "Traceback" not in output, output
    assert nothing_is_left_of(run)
    step = trained_steps(run / "checkpoints/interrupted.ckpt")
    assert step >= 1 and f"stopped at step {step}" in output
