"""How runs end and go on: what is in which file, what may change, what is refused, and what never gets in the way."""

import logging
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fps_flex import FPSAttention
from fps_flex.attention import EARLIER
from tests.helpers.commands import ROOT, refused, run_apart
from tests.helpers.tiny_run import read_checkpoint, same_tensors, tiny_words, train_apart, train_tiny
from tests.train.stops import differences, end_of
from train import callbacks
from train.callbacks import read_losses
from train.checkpoints import Checkpoints, WholeCheckpoints, trained_steps
from train.common.lock import locked
from train.fit import main
from train.module import FlowModule


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A run of four steps; not to be changed."""
    run = tmp_path_factory.mktemp("four") / "run"
    train_tiny(run, "--trainer.max_steps=4")
    return run


@pytest.fixture
def run(four, tmp_path):
    """A copy of it, as people copy runs: all files of one age."""
    shutil.copytree(four, tmp_path / "run", copy_function=shutil.copyfile)
    return tmp_path / "run"


@pytest.mark.parametrize("every", ["3", "100"])
def test_the_last_step_is_in_last_and_live_weights_are_not_the_averaged_ones(tmp_path, every):
    train_tiny(tmp_path / "run", "--trainer.max_steps=5", f"--checkpoint.every_n_train_steps={every}")
    last = read_checkpoint(tmp_path / "run")
    assert last["global_step"] == last["fps_flex"]["step"] == last["fps_flex"]["position"]["step"] == 5
    assert not same_tensors(last["state_dict"], last["current_model_state"])
    momenta = last["optimizer_states"][0]["state"]
    assert len(momenta) == len(last["current_model_state"]) and all(x["step"] == 5 for x in momenta.values())


def test_what_goes_wrong_with_the_sample_costs_the_sample_alone(tmp_path, monkeypatch, caplog):
    """The weights that training ended with are live in last.ckpt, also where sampling ran out of memory."""
    monkeypatch.setattr(
        FlowModule, "sample", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory"))
    )
    monkeypatch.setattr(callbacks, "draw_loss_curve", lambda *_: 1 / 0)
    with caplog.at_level(logging.WARNING):
        train_tiny(tmp_path / "run", "--trainer.max_steps=3")
    assert "no sample was drawn (no memory); the weights are saved" in caplog.text
    assert "no loss curve was drawn (division by zero)" in caplog.text
    last = read_checkpoint(tmp_path / "run")
    assert last["global_step"] == 3 and not same_tensors(last["state_dict"], last["current_model_state"])
    monkeypatch.undo()
    train_tiny(tmp_path / "run", "--trainer.max_steps=3", "--ckpt_path=last")
    assert (tmp_path / "run/sample.mp4").is_file() and (tmp_path / "run/loss.png").is_file()


def test_a_caption_may_hold_dollars(tmp_path):
    train_tiny(
        tmp_path / "run",
        "--trainer.max_steps=1",
        "--sample.prompts=[a $$ bill, 'costs $5, was $6', '$\\frac{$']",
        "--sample.count=3",
    )
    Image.open(tmp_path / "run/sample.png").verify()


def test_a_run_keeps_its_id_and_another_has_another(four, run, tmp_path):
    """It is drawn from none of the generators that a run draws from, or two with one seed would share it."""
    ids = {read_checkpoint(four, name)["fps_flex"]["run_id"] for name in ("last", "best")}
    assert len(ids) == 1
    train_tiny(run, "--trainer.max_steps=5", "--ckpt_path=last")
    assert read_checkpoint(run)["fps_flex"]["step"] == 5 and {read_checkpoint(run)["fps_flex"]["run_id"]} == ids
    train_tiny(tmp_path / "twin", "--trainer.max_steps=4")
    twin, first = read_checkpoint(tmp_path / "twin"), read_checkpoint(four)
    assert twin["fps_flex"]["run_id"] not in ids and same_tensors(twin["state_dict"], first["state_dict"])


def test_the_id_of_a_run_leaves_every_generator_alone():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    ids = {Checkpoints().run_id for _ in range(3)}
    assert len(ids) == 3 and random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_best_is_never_replaced_by_a_worse_model(run):
    """Saving, validating and stopping share a step, so last.ckpt of that step does not know the validation after it."""
    before = read_checkpoint(run, "best")
    assert before["fps_flex"]["val_loss"] == min(list(read_losses(run)["val/loss"].values())[1:])
    train_tiny(run, "--trainer.max_steps=6", "--ckpt_path=last", "--model.lr=1")
    scores = read_losses(run)["val/loss"]
    assert scores[5] > scores[3]
    after = read_checkpoint(run, "best")
    assert after["global_step"] == before["global_step"] and same_tensors(after["state_dict"], before["state_dict"])


def test_last_is_the_readable_checkpoint_with_the_most_steps_whatever_its_age(run, caplog):
    folder = run / "checkpoints"
    shutil.copy(folder / "last.ckpt", folder / "interrupted.ckpt")
    train_tiny(run, "--trainer.max_steps=5", "--ckpt_path=last")
    (folder / "last.ckpt").rename(folder / "interrupted.ckpt")  # five steps
    (folder / "best.ckpt").write_bytes((folder / "best.ckpt").read_bytes()[:5000])
    (folder / "last.ckpt").write_text("broken")
    with caplog.at_level(logging.WARNING):
        train_tiny(run, "--trainer.max_steps=6", "--ckpt_path=last")
    assert f"{folder / 'last.ckpt'} can't be read and is left aside" in caplog.text
    assert sorted(read_losses(run)["train/loss"]) == [0, 1, 2, 3, 4, 5] and trained_steps(folder / "last.ckpt") == 6


def test_a_run_that_goes_back_keeps_what_went_further(run):
    folder = run / "checkpoints"
    shutil.copy(folder / "last.ckpt", run / "four.ckpt")
    train_tiny(run, "--trainer.max_steps=6", "--ckpt_path=last")
    (run / "four.ckpt").rename(folder / "best.ckpt")
    train_tiny(run, "--trainer.max_steps=5", "--ckpt_path=best")
    assert trained_steps(folder / "last.ckpt") == 5 and trained_steps(folder / "last-step6.ckpt") == 6


def test_a_resumed_run_takes_changed_settings_and_says_so(run, capfd):
    train_tiny(run, "--trainer.max_steps=6", "--ckpt_path=last", "--model.lr=0.001", "--model.betas=[0.5,0.9]",
        "--ema.decay=0.5", "--model.weight_decay=0.3", "--model.eps=1e-6", "--model.warmup_steps=9",
        "--data.batch_size=1", "--model.attention.tile=[1,2,4]")  # fmt: skip
    output = capfd.readouterr().out
    lines = ["model.lr 0.003 -> 0.001", "model.betas [0.9, 0.95] -> [0.5, 0.9]", "ema.decay 0.99 -> 0.5",
             "data.batch_size 2 -> 1", "model.attention.tile [1, 4, 4] -> [1, 2, 4]", "model.warmup_steps 1 -> 9",
             ]  # fmt: skip
    for line in lines:
        assert f"changed    {line}" in output
    assert "model.wan" not in output and "changed    run" not in output
    (group,) = read_checkpoint(run)["optimizer_states"][0]["param_groups"]
    assert (group["initial_lr"], group["betas"], group["weight_decay"], group["eps"]) == (0.001, (0.5, 0.9), 0.3, 1e-6)
    assert group["lr"] == pytest.approx(0.001 * 7 / 10)
    assert read_checkpoint(run)["fps_flex"]["position"]["taken"] == [4 * 2 + 2]


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--seed_everything=1", "seed_everything was 0, is 1"),
        ("--data.seed=1", "data.seed was 0, is 1"),
        ("--data.train_clips=7", "data.train_clips was 100000, is 7"),
        ("--data.val_clips=3", "data.val_clips was 1, is 3"),
        ("--model.text.init_args.length=39", "model.text.init_args.length was 40, is 39"),
        ("--model.wan.eps=1e-5", "model.wan.eps was 1e-06, is 1e-05"),
    ],
)
def test_what_would_make_it_another_run_is_refused(run, capfd, option, named):
    before = end_of(run)
    assert named in refused(capfd, main, tiny_words(run, "--ckpt_path=last", "--trainer.max_steps=6", option))
    assert differences(before, end_of(run)) == [] and not (run / "logs/version_1").exists()


def test_a_presets_new_numbers_change_no_old_run_in_silence(run, tmp_path, capfd, monkeypatch):
    train_tiny(tmp_path / "fps", "--trainer.max_steps=1", "--model.attention.schedule=fps")
    record = read_checkpoint(tmp_path / "fps")["fps_flex"]["attention"]
    assert FPSAttention.from_dict(record) == FPSAttention.from_dict({**record, "schedule": "fps"})
    from fps_flex import Regime, StepSchedule, schedule

    monkeypatch.setitem(schedule.PRESETS, "fps", StepSchedule((), (Regime((None, None, 0.5), 1),)))
    assert FPSAttention.from_dict(record).schedule != FPSAttention("fps").schedule
    train_tiny(tmp_path / "fps", "--trainer.max_steps=2", "--ckpt_path=last", "--model.attention.schedule=fps")
    assert "changed    model.attention.schedule.bounds [0.3, 0.7] -> []" in capfd.readouterr().out


def test_a_run_from_before_an_option_was_one_without_it(tmp_path, capfd):
    run = train_tiny(tmp_path / "old", "--trainer.max_steps=1")
    old = read_checkpoint(run)
    for name in EARLIER:
        del old["fps_flex"]["attention"][name], old["fps_flex"]["options"][f"model.attention.{name}"]
    torch.save(old, run / "checkpoints/last.ckpt")
    train_tiny(run, "--trainer.max_steps=2", "--ckpt_path=last", "--model.attention.smooth_k=false")
    assert "changed    model.attention" not in capfd.readouterr().out
    torch.save(old, run / "checkpoints/last.ckpt")
    train_tiny(run, "--trainer.max_steps=2", "--ckpt_path=last")
    assert "changed    model.attention.smooth_k false -> true" in capfd.readouterr().out


def test_an_option_that_a_run_did_not_know_is_not_said_to_have_been_null(tmp_path, capfd):
    run = train_tiny(tmp_path / "old", "--trainer.max_steps=1")
    old = read_checkpoint(run)
    del old["fps_flex"]["options"]["model.offload_optimizer"]
    torch.save(old, run / "checkpoints/last.ckpt")
    train_tiny(run, "--trainer.max_steps=2", "--ckpt_path=last")
    assert "changed    model.offload_optimizer (not there) -> false" in capfd.readouterr().out


@pytest.mark.parametrize(
    "name", ["loops", "current_model_state", "optimizer_states", "position", "options", "val_loss", "run_id"]
)
def test_a_checkpoint_that_lacks_something_is_refused_by_name(run, capfd, name):
    last = read_checkpoint(run)
    (last if name in last else last["fps_flex"]).pop(name)
    path = run / "lacking.ckpt"
    torch.save(last, path)
    for old in (run / "checkpoints").glob("*.ckpt"):
        old.unlink()
    assert f"it lacks {name}" in refused(capfd, main, tiny_words(run, f"--ckpt_path={path}", "--trainer.max_steps=6"))


def test_another_runs_checkpoint_does_not_overwrite_this_one(run, four, capfd):
    path = four / "checkpoints/last.ckpt"
    assert "holds another run than" in refused(
        capfd, main, tiny_words(run, f"--ckpt_path={path}", "--trainer.max_steps=6")
    )


def test_two_runs_in_one_folder(run, capfd):
    """The lock is of a process: one that is dead holds nothing."""
    code = f"""
import time
from pathlib import Path
from train.common.lock import locked
with locked(Path({str(run)!r})):
    print("locked", flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        line = refused(capfd, main, tiny_words(run, "--ckpt_path=last", "--trainer.max_steps=6"))
        assert f"{run} is in use by process {other.pid} on " in line and "choose another --run FOLDER" in line
    finally:
        other.kill()
        other.wait()
    with locked(run):
        pass


def test_a_mistake_leaves_nothing_in_the_way(tmp_path, capfd):
    run = tmp_path / "run"
    refused(capfd, main, tiny_words(run, "--trainer.max_steps=0"))
    assert not run.exists()
    with pytest.raises(SystemExit) as stopped:
        train_tiny(
            run,
            "--trainer.max_steps=4",
            "--model.lr=1e38",
            "--model.warmup_steps=0",
            "--checkpoint.every_n_train_steps=50",
        )
    assert stopped.value.code == 1
    train_tiny(run, "--trainer.max_steps=2")


def test_a_step_that_would_not_be_finite_is_not_taken(tmp_path, capfd, monkeypatch):
    losses, calls = FlowModule._losses, []

    def overflow(self, model, *args):
        loss, errors = losses(self, model, *args)
        if model.training and torch.is_grad_enabled() and calls.append(1) is None and len(calls) == 4:
            loss = loss * torch.ones_like(loss, requires_grad=True)
            loss.register_hook(lambda grad: grad * torch.inf)
        return loss, errors

    monkeypatch.setattr(FlowModule, "_losses", overflow)
    words = tiny_words(tmp_path / "run", "--trainer.max_steps=9", "--checkpoint.every_n_train_steps=1")
    line = refused(capfd, main, words, code=1)
    assert line.startswith("error: the gradient is not finite, though train/loss is, at step 3 on shapes seed 0 clip ")
    for name in ("last", "best", "not-finite"):
        saved = read_checkpoint(tmp_path / "run", name)
        assert saved["global_step"] <= 3
        assert all(x.isfinite().all() for part in ("state_dict", "current_model_state") for x in saved[part].values())


def test_a_save_that_fails_is_one_line_and_the_one_before_stays_whole(tmp_path, capfd):
    """The disk is full in the middle of the third save."""
    code = (
        "import resource, sys; from train import checkpoints, fit\n"
        "save, saves = checkpoints.WholeCheckpoints.save_checkpoint, []\n"
        "def limited(self, *args, **kwargs):\n"
        "    saves.append(1)\n"
        "    if len(saves) >= 3: resource.setrlimit(resource.RLIMIT_FSIZE, (1000000, 1000000))\n"
        "    save(self, *args, **kwargs)\n"
        "checkpoints.WholeCheckpoints.save_checkpoint = limited\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "fit.main(sys.argv[1:])"
    )
    run = tmp_path / "run"
    done = run_apart("-c", code, *tiny_words(run, "--trainer.max_steps=9", "--trainer.val_check_interval=9"))
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "last.ckpt can't be written (File too large): make room; what was saved before is whole" in line
    assert "Traceback" not in done.stderr and trained_steps(run / "checkpoints/last.ckpt") == 4
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_save_writes_beside_its_place_and_nowhere_else(tmp_path, monkeypatch):
    """/tmp is not used, and a kill in the middle leaves the file of before."""
    path = tmp_path / "last.ckpt"
    path.write_text("before")
    seen = []

    def save(checkpoint, file):
        file.write(b"half")
        seen.extend([file.name, path.read_text()])

    monkeypatch.setattr(torch, "save", save)
    monkeypatch.setenv("TMPDIR", "/nowhere")
    WholeCheckpoints().save_checkpoint({}, path)
    assert seen == [str(tmp_path / ".last.ckpt.part"), "before"] and path.read_bytes() == b"half"


def test_the_loss_curve_joins_all_parts(tmp_path):
    for number, rows in enumerate((
        [("step", "train/loss", "val/loss"), (0, "", 9), (0, 5, ""), (1, 4, ""), (1, "", 8), (2, 3, "")],
        [("step", "train/loss"), (2, 2.5), (3, 2)],  # without a validation
        [("step", "val/loss"), (3, 7)],  # with nothing else
        [("step", "train/loss"),],
    )):  # fmt: skip
        folder = tmp_path / f"logs/version_{number}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))
    losses = {"train/loss": {0: 5, 1: 4, 2: 2.5, 3: 2}, "val/loss": {0: 9, 1: 8, 3: 7}, "val/error": {}}
    assert read_losses(tmp_path) == losses


@pytest.mark.slow
def test_a_resumed_weights_and_biases_run_is_the_same_run(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # a service that a test before this one started here
    wandb = ["--config=configs/wandb.yaml", "--trainer.logger.init_args.offline=true",
             f"--trainer.logger.init_args.save_dir={tmp_path}"]  # fmt: skip
    for options in (["--trainer.max_steps=1"], ["--trainer.max_steps=2", "--ckpt_path=last"]):
        done = train_apart(tmp_path / "run", *wandb, *options)
        assert done.returncode == 0, done.stderr
    ids = [path.stem.removeprefix("run-") for path in tmp_path.glob("wandb/offline-run-*/*.wandb")]
    assert len(ids) == 2 and len(set(ids)) == 1
    assert read_checkpoint(tmp_path / "run")["fps_flex"]["options"]["wandb_id"] == ids[0]
