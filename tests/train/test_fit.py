"""The training command as a user runs it: it trains, resumes, samples, and says in one line what is wrong."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from lightning.pytorch.strategies import Strategy
from PIL import Image

from fps_flex import Regime, StepSchedule, TileLayout, density
from fps_flex.wan.flow import noise_level
from tests.helpers.commands import ROOT, refused
from tests.helpers.tiny_run import read_checkpoint, tiny_words, train_apart, train_tiny
from tests.helpers.wheel_clips import link_clips, real_clips
from train.callbacks import read_losses
from train.common.videos import read_clip
from train.fit import main
from train.module import FlowModule


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four steps."""
    folder = tmp_path_factory.mktemp("fit") / "run"
    done = train_apart(folder, "--trainer.max_steps=4")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_run_leaves_checkpoints_logs_a_sample_and_a_loss_curve(run):
    folder, output = run
    losses = read_losses(folder)
    assert sorted(losses["val/loss"]) == [0, 1, 3] and sorted(losses["train/loss"]) == [0, 1, 2, 3]
    assert all(math.isfinite(value) for values in losses.values() for value in values.values())
    assert f"val/loss {losses['val/loss'][0]:.3g} -> {losses['val/loss'][3]:.3g}" in output
    assert read_clip(folder / "sample.mp4", 10, 8, 64, 64).float().std() > 0
    for picture in ("sample.png", "loss.png"):
        Image.open(folder / picture).verify()
    best = read_checkpoint(folder, "best")
    scored = {step + 1: value for step, value in losses["val/loss"].items()}
    assert scored[best["global_step"]] == min(value for step, value in scored.items() if step > 1)
    last = read_checkpoint(folder)
    assert last["global_step"] == 4
    assert last["fps_flex"]["attention"]["schedule"]["shift"] == last["fps_flex"]["shift"] == 3.0
    assert last["fps_flex"]["wan"]["dim"] == 128
    assert not torch.equal(last["state_dict"]["model.head.head.weight"], torch.zeros(96, 128))


def test_the_progress_bar_counts_steps_and_the_epoch_towards_nothing(run):
    assert "Epoch 0 " in run[1] and "4/4" in run[1] and "v_num" not in run[1]


def test_what_is_about_to_be_trained_is_said(run):
    _, output = run
    assert "tokens     (5, 8, 8) = 320, in (5, 2, 2) tiles of (1, 4, 4); 0.0 % of 320 slots are pads" in output
    assert "window (2, 2, 2) tiles, density 0.40, scales by granularity 4" in output


def test_samples_are_drawn_with_averaged_weights_while_the_model_is_on_its_device(tmp_path, monkeypatch):
    """After the teardown it is on the CPU, where a real model would take hours."""
    order = []
    teardown, sample = Strategy.teardown, FlowModule.sample
    monkeypatch.setattr(Strategy, "teardown", lambda self: order.append("teardown") or teardown(self))
    monkeypatch.setattr(
        FlowModule, "sample", lambda self, *a, **kw: order.append(self.shown.state_dict()) or sample(self, *a, **kw)
    )
    train_tiny(tmp_path / "run")
    assert order.pop() == "teardown" and len(order) == 1
    average = read_checkpoint(tmp_path / "run")["state_dict"]
    assert all(torch.equal(tensor, average[f"model.{name}"]) for name, tensor in order[0].items())


@pytest.mark.slow
def test_a_resumed_run_goes_on_and_keeps_both_kinds_of_weights(run, tmp_path):
    first, _ = run
    (tmp_path / "run").mkdir()
    for name in ("checkpoints", "logs"):
        subprocess.run(["cp", "-r", first / name, tmp_path / "run" / name], check=True)
    done = train_apart(tmp_path / "run", "--trainer.max_steps=6", "--ckpt_path=last")
    assert done.returncode == 0, done.stderr
    assert sorted(read_losses(tmp_path / "run")["train/loss"]) == [0, 1, 2, 3, 4, 5]
    last = read_checkpoint(tmp_path / "run")
    assert last["global_step"] == 6
    average, live = (last[key]["model.head.head.weight"] for key in ("state_dict", "current_model_state"))
    assert not torch.equal(average, live)


@pytest.mark.slow
def test_ctrl_c_saves_what_there_is_and_last_goes_on_from_it(tmp_path):
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    every = ("trainer.max_steps", "trainer.val_check_interval", "checkpoint.every_n_train_steps")
    endless = [f"--{option}=10000" for option in every]
    process = subprocess.Popen(
        [sys.executable, "-m", "train.fit", *tiny_words(tmp_path / "run", *endless)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
    )  # fmt: skip
    metrics = tmp_path / "run/logs/version_0/metrics.csv"
    deadline = time.time() + 60
    try:
        while not (metrics.is_file() and metrics.read_text().count("\n") > 3) and time.time() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0].decode()
    finally:
        process.kill()
    saved = tmp_path / "run/checkpoints/interrupted.ckpt"
    assert saved.is_file(), output
    assert "Traceback" not in output
    step = torch.load(saved, weights_only=True)["global_step"]
    assert step > 1 and f"stopped at step {step}; --ckpt_path last goes on from {saved}" in output.replace("\n", "")
    done = train_apart(
        tmp_path / "run", f"--trainer.max_steps={step + 2}", "--ckpt_path=last", "--checkpoint.every_n_train_steps=1"
    )
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(tmp_path / "run")["global_step"] == step + 2


@pytest.mark.slow
def test_real_clips_and_one_that_is_broken(tmp_path):
    clips = real_clips()
    assert len(clips) == 4
    folder = link_clips(tmp_path / "clips")
    (folder / "broken.mp4").write_bytes(clips[0].read_bytes()[:1000])
    rows = [f"{clip.name},a clip named {clip.stem}" for clip in clips]
    (folder / "metadata.csv").write_text("\n".join(["video,prompt", *rows, "broken.mp4,nothing to see"]))

    done = train_apart(tmp_path / "run", "--trainer.max_steps=4", f"--data.folder={folder}", "--data.workers=1")
    assert done.returncode == 0, done.stderr
    assert "broken.mp4: can't be decoded" in done.stderr and "left out 1 of the 5 clips" in done.stderr
    assert all(math.isfinite(loss) for loss in read_losses(tmp_path / "run")["train/loss"].values())
    assert read_clip(tmp_path / "run/sample.mp4", 10, 8, 64, 64).float().std() > 0


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # a service that a test before this one started here
    done = train_apart(
        tmp_path / "run", "--trainer.max_steps=2", "--config=configs/wandb.yaml",
        "--trainer.logger.init_args.offline=true", f"--trainer.logger.init_args.save_dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert read_losses(tmp_path / "run")["val/loss"]


def test_a_loss_that_is_not_finite_stops_the_run_with_a_checkpoint_and_names_the_batch(tmp_path):
    done = train_apart(tmp_path / "run", "--trainer.max_steps=50", "--model.lr=1e30", "--model.warmup_steps=0")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert "error: train/loss is nan at step" in line and "shapes seed 0 clip" in line
    assert (tmp_path / "run/checkpoints/not-finite.ckpt").is_file()
    assert not (tmp_path / "run/checkpoints/interrupted.ckpt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.max_stepz=3"], "unrecognized arguments: --trainer.max_stepz=3"),
        (["--model.attention.tile=[4,4]"], 'key "model.attention.tile": Expected a tuple with 3 elements'),
        (["--data.frames=many"], "Expected a <class 'int'>. Got value: many"),
        (["--model.attention.tile=[9,4,1]"], "tile (9, 4, 1) is larger than the grid (5, 8, 8)"),
        (["--model.attention.schedule=paper"], "schedule is 'paper', expected one of fps, sta, uniform, dense"),
        (["--model.attention.schedule.regimes=[{window: [0, 1, 1]}]"], "window is (0, 1, 1), expected three extents"),
        (
            ["--model.attention.schedule.regimes=[{window: [0.4, 1.0, 1.0]}]"],
            "window is (0.4, 1.0, 1.0), expected three",
        ),
        (["--model.wan.channels=16"], "the PixelCodec gives 24, expected the transformer's channels = 16"),
        (["--data.height=33"], "don't divide into boxes"),
        (["--data.folder=nowhere"], "no folder nowhere: expected a folder of clips with metadata.csv"),
        (["--ckpt_path=nowhere.ckpt"], "no checkpoint nowhere.ckpt: expected a path, 'last', 'last-if-any' or 'best'"),
        (["--ckpt_path=last"], "no last.ckpt or interrupted.ckpt in"),
        (["--ckpt_path=README.md"], "README.md is no checkpoint of this project"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["--run=/proc/run"], "/proc/run can't be written (No such file or directory): choose another --run"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_clear_line_and_exit_code_2(tmp_path, capsys, options, message):
    assert message in refused(capsys, main, tiny_words(tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


def test_a_mistake_ends_the_process_without_a_traceback(tmp_path):
    done = train_apart(tmp_path / "run", "--trainer.max_stepz=3")
    assert done.returncode == 2 and done.stderr == "error: unrecognized arguments: --trainer.max_stepz=3\n"


def test_a_checkpoint_of_another_shape_and_a_run_that_is_there_are_refused(run, capsys):
    folder, _ = run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for options, message in (
        (["--ckpt_path=last", "--model.wan.dim=96"], "of shape (128, 24, 1, 2, 2), this configuration expects (96, 24"),
        ([], "holds a run already: go on with --ckpt_path last, or choose another --run FOLDER"),
    ):
        assert message in refused(capsys, main, tiny_words(folder, *options))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("name", ["sample.mp4", "sample.png", "loss.png"])
def test_a_picture_of_no_run_is_not_replaced(tmp_path, capsys, name):
    (tmp_path / name).write_text("precious")
    assert f"{name} is of no run here, and would be replaced" in refused(capsys, main, tiny_words(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize(
    "config",
    sorted(path for path in ROOT.glob("configs/*.yaml") if path.stem not in ("generate", "prepare", "vbench")),
    ids=lambda path: path.name,
)
def test_every_config_of_training_parses(config, capsys):
    overlay = "run" not in yaml.safe_load(config.read_text())
    options = [f"--config={config}"] if overlay else []
    base = ROOT / "configs/tiny.yaml" if overlay else config
    with pytest.raises(SystemExit) as stopped:
        main([f"--config={base}", *options, "--print_config"])
    assert stopped.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["wan"]["dim"] > 0


def test_windows_on_the_command_line_keep_their_types(capsys):
    """An int stays a number of tiles, a float a share, null the whole axis."""
    regimes = "[{window: [0.4, null, 1], granularity: 4}, {window: [2, 1, null], granularity: null}]"
    options = [f"--model.attention.schedule.regimes={regimes}", "--model.attention.schedule.bounds=[0.5]"]
    with pytest.raises(SystemExit) as stopped:
        main(tiny_words("unused", *options, "--print_config"))
    assert stopped.value.code == 0
    schedule = yaml.safe_load(capsys.readouterr().out)["model"]["attention"]["schedule"]
    regimes = [regime.get("init_args", regime) for regime in schedule.get("init_args", schedule)["regimes"]]
    assert repr([regime["window"] for regime in regimes]) == "[[0.4, None, 1], [2, 1, None]]"
    assert [regime["granularity"] for regime in regimes] == [4, None]


def test_tiny_has_many_tiles_is_sparse_and_meets_every_regime():
    model = yaml.safe_load((ROOT / "configs/tiny.yaml").read_text())["model"]
    options = model["attention"]["schedule"]
    regimes = tuple(Regime(**regime) for regime in options["regimes"])
    schedule = StepSchedule(tuple(options["bounds"]), regimes, options["shift"])
    layout = TileLayout((5, 8, 8), model["attention"]["tile"], model["attention"]["block"])
    drawn = schedule.regime_index(
        noise_level(torch.randn(20_000, generator=torch.Generator().manual_seed(0)), model["shift"])
    )
    shares = drawn.bincount(minlength=3) / len(drawn)
    assert layout.tiles == (5, 2, 2) and shares.min() > 0.2
    assert shares.double() @ density(layout, schedule.windows(layout.tiles)) < 0.5
