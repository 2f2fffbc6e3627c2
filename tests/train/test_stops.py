"""A run that is stopped, wherever and however, and resumed ends in the same bits as one that never was."""

import multiprocessing
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.tiny_run import signal_at
from tests.train.stops import OPTIONS, ROOT, command, differences, end_of, start, stop
from train.callbacks import read_losses
from train.checkpoints import trained_steps
from train.fit import main
from train.stopping import StopRequest, obey_parent_alone, signals_blocked

TINY = ["--config=configs/tiny.yaml", *OPTIONS, "--data.workers=0", "--sample.steps=4", "--trainer.max_steps=6"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    main([*TINY, f"--run={run}"])
    return end_of(run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("method", "call", "step"),
    [
        ("training_step", 3, 1),  # the first of two accumulated batches, whose gradients are dropped
        ("training_step", 8, 4),  # the second, after which an optimizer step is taken
        ("configure_gradient_clipping", 3, 3),  # the optimizer step itself
        ("validation_step", 23, 3),  # the middle of the validation after step 3; ten before the first step
        ("validation_step", 11, 3),
        ("sample", 1, 6),
    ],
)
def test_anywhere(uninterrupted, tmp_path, monkeypatch, capfd, method, call, step, number):
    before = signal.getsignal(signal.SIGTERM)  # which an earlier command in this process may have set
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, method, call, number)
        with pytest.raises(SystemExit) as stopped:
            main([*TINY, f"--run={run}"])
    printed = capfd.readouterr()
    assert stopped.value.code == 128 + number
    assert (
        printed.err.strip().startswith(f"error: stopped by {number.name}; it took ") and "Traceback" not in printed.err
    )
    saved = max(run.glob("checkpoints/*.ckpt"), key=trained_steps)
    assert f"stopped at step {trained_steps(saved)}; --ckpt_path last goes on from" in printed.out
    assert signal.getsignal(signal.SIGTERM) == before
    main([*TINY, f"--run={run}", "--ckpt_path=last"])
    assert differences(uninterrupted, end_of(run)) == []


def test_before_the_first_step_there_is_nothing_to_save_and_nothing_in_the_way(uninterrupted, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, "validation_step", 2, signal.SIGTERM)
        with pytest.raises(SystemExit) as stopped:
            main([*TINY, f"--run={run}"])
    assert stopped.value.code == 143 and not list(run.glob("checkpoints/*"))
    main([*TINY, f"--run={run}"])
    assert differences(uninterrupted, end_of(run)) == []


def test_killed_it_goes_on_from_its_last_save(uninterrupted, tmp_path):
    run, options = tmp_path / "run", [*TINY, f"--run={tmp_path / 'run'}"]
    fault = [sys.executable, "tests/helpers/faulty.py", "kill", "0", "11", *options]
    assert subprocess.run(fault, cwd=ROOT, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    assert trained_steps(run / "checkpoints/last.ckpt") == 3
    main([*options, "--ckpt_path=last"])
    assert differences(uninterrupted, end_of(run)) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_to_the_loaders_too_costs_nothing(tmp_path, number):
    """As a terminal or a job scheduler sends it: to all processes of the run."""
    run = tmp_path / "run"
    endless = ["--trainer.max_steps=100000", "--trainer.val_check_interval=100000"]
    process = start(run, *endless, "--checkpoint.every_n_train_steps=100000")
    metrics, deadline = run / "logs/version_0/metrics.csv", time.monotonic() + 60
    while not (metrics.is_file() and metrics.read_text().count("\n") > 5) and time.monotonic() < deadline:
        time.sleep(0.1)
    code, output = stop(process, number, everyone=True)
    assert code == 128 + number and "Traceback" not in output and "killed by signal" not in output, output
    step = trained_steps(run / "checkpoints/interrupted.ckpt")
    assert step >= 2 and f"stopped at step {step}; --ckpt_path last goes on from" in output.replace("\n", "")
    assert max(read_losses(run)["train/loss"]) == step - 1
    assert subprocess.run(["pgrep", "-f", str(run)], capture_output=True).stdout == b""


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_is_heard_but_under_nohup(ignored):
    before, stop = signal.getsignal(signal.SIGHUP), StopRequest()
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        with stop.restored_after():
            stop.listen()
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stop.number == (0 if ignored else signal.SIGHUP)


def _wait_as_a_loader_does(ready):
    obey_parent_alone()
    ready.set()
    time.sleep(60)


def test_a_loader_ends_when_its_parent_says_so_and_for_nobody_else():
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    with signals_blocked():
        loader = fork.Process(target=_wait_as_a_loader_does, args=(ready,))
        loader.start()
    try:
        assert ready.wait(30)
        subprocess.run(["kill", "-TERM", str(loader.pid)], check=True)
        loader.join(0.5)
        assert loader.is_alive()
        loader.terminate()
        loader.join(10)
        assert loader.exitcode == 0
    finally:
        loader.kill()


def test_the_script_measures_what_it_says(uninterrupted, tmp_path):
    """Another seed ends in other bits."""
    run = tmp_path / "run"
    main([*TINY, f"--run={run}", "--seed_everything=1"])
    assert len(differences(uninterrupted, end_of(run))) > 100
    assert command(run)[:3] == [sys.executable, "-m", "train.fit"]
