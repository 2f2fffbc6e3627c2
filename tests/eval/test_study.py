"""eval.study through every stage in small; stopped, it goes on to the same bits."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from eval.generate.command import resolve_settings
from eval.generate.jobs import Options
from eval.study import command as study_command
from eval.study import run
from eval.study.command import command
from eval.study.losses import losses_of_clip
from eval.study.tasks import Task
from tests.helpers.commands import ROOT, refused
from tests.helpers.miniature import MINIATURE, long_base, words
from tests.helpers.tiny_run import read_checkpoint
from train.callbacks import read_losses
from train.shapes import MovingShapes

ROWS = ("base", "dense", "joint-free", "joint", "proposed")


def measures(out, row, seed=0):
    return json.loads((out / f"rows/{row}-seed{seed}/measures.json").read_text())


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("at_root")]


def test_every_stage_leaves_what_the_report_tells(studied):
    record, text = json.loads((studied / "study.json").read_text()), (studied / "study.md").read_text()
    assert set(record["rows"]) == set(ROWS) and all(task["done"] for task in record["tasks"].values())
    assert (
        len(record["tasks"]) == 15
        and record["torch"]
        and record["tasks"]["train-joint-seed0"]["command"][1:3] == ["-m", "train.fit"]
    )
    assert all(f"| {row} |" in text for row in ROWS) and "not asked here" in text
    assert len(record["verdicts"]) == 13 and not any(
        x["answer"] == "holds here" and "seed" in x["numbers"] for x in record["verdicts"]
    )
    first, second = (record["tasks"][name]["command"] for name in ("pretrain-1", "pretrain"))
    proposed = record["tasks"]["train-proposed-seed0"]["command"]
    assert "--model.attention.engine=eager" in proposed
    assert "--data.frames=8" in second and not any(word.startswith("--data.frames") for word in first)
    assert any(word.endswith("runs/base-1/checkpoints/last.ckpt") for word in second if "model.checkpoint" in word)
    for picture in ("sheet.png", "levels.png", "curves.png"):
        assert (studied / picture).stat().st_size > 10_000 and f"({picture})" in text


def test_rows_share_the_base_and_the_noise(studied):
    """The joint row begins where the base, run jointly, is; and what isn't trained has the weights it names."""
    curves = [measures(studied, row)["curve"] for row in ROWS]
    assert [curve and [*curve] for curve in curves] == [None, ["0", "2", "4"], None, ["0", "2", "4"], None]
    base = read_losses(studied / "runs/base")["val/loss"][7]
    assert curves[1]["0"] == pytest.approx(base, rel=2e-3) and curves[3]["0"] != curves[1]["0"]
    assert (
        measures(studied, "joint-free")["weights"]
        == measures(studied, "dense")["weights"]
        != measures(studied, "joint")["weights"]
    )
    assert measures(studied, "joint-free")["against"] == "dense" and measures(studied, "joint")["against"] == "base"
    names = [sorted(path.name for path in (studied / f"rows/{row}-seed0/videos").glob("*.mp4")) for row in ROWS]
    assert len(names[0]) == 4 and all(one == names[0] for one in names)
    assert measures(studied, "joint")["density"] < 0.2 < measures(studied, "dense")["density"] == 1


def test_losses_are_those_of_the_checkpoint_and_its_attention(studied):
    """Of the first held-out clip, with no code of the study's but the loss itself."""
    for row, attention in (("dense", None), ("joint-free", "joint")):
        checkpoint = str(studied / "runs/dense-seed0/checkpoints/last.ckpt")
        other = resolve_settings(Options(str(studied / "runs/joint-seed0/checkpoints/last.ckpt")))[0].attention
        model, _ = resolve_settings(Options(checkpoint, attention=other if attention else None))
        item = MovingShapes(4, 8, 32, 32, seed=1)[0]
        latents, text = model.codec.encode(item["video"][None]), model.text([item["prompt"]], torch.device("cpu"))
        expected = losses_of_clip(model.load(torch.device("cpu")), latents, text, 0, [0.3, 0.8, 0.95])
        assert measures(studied, row)["grid"][0] == expected
    assert measures(studied, "dense")["grid"] != measures(studied, "joint-free")["grid"]


def test_the_base_is_the_averaged_weights_in_bf16(studied):
    average = read_checkpoint(studied / "runs/base")["state_dict"]
    with safe_open(studied / "base.safetensors", "pt") as file:
        assert {f"model.{name}" for name in file.keys()} == set(average)  # noqa: SIM118
        for name in file.keys():  # noqa: SIM118
            assert torch.equal(file.get_tensor(name), average[f"model.{name}"].to(file.get_tensor(name).dtype))
        assert file.get_tensor("blocks.0.self_attn.q.weight").dtype == torch.bfloat16
        assert json.loads(file.metadata()["fps_flex"])["step"] == 8


def test_the_same_command_does_nothing_again(studied, capsys, monkeypatch):
    monkeypatch.setattr(run, "Running", None)
    command(words(studied))
    assert "begins" not in capsys.readouterr().out


def test_what_is_kept_is_enough(studied, tmp_path, capsys, monkeypatch):
    """Nothing is made again without checkpoints and videos; a row that is missing makes what it needs of them."""
    kept = tmp_path / "kept"
    shutil.copytree(studied, kept, ignore=shutil.ignore_patterns("runs", "base.ckpt", "videos", "parts", "scores"))
    asked = []
    monkeypatch.setattr(study_command, "run_tasks", lambda tasks, *_: asked.extend(x.name for x in tasks) or True)
    command(words(kept, "--only=pretrain-1"))
    assert asked == ["pretrain-1"]
    asked.clear()
    command(words(kept))
    assert asked == [] and (kept / "study.md").stat().st_mtime > (studied / "study.md").stat().st_mtime
    assert "| train-joint-seed0 | not kept |" in capsys.readouterr().out
    shutil.rmtree(kept / "rows/joint-seed0")
    command(words(kept))
    assert asked == ["base", "measure-base", "train-joint-seed0", "measure-joint-seed0"]


def test_a_folder_is_read_whatever_lies_in_it(studied, tmp_path):
    """A copy of a row, no base, and what an earlier version said of options that are none."""
    kept = tmp_path / "kept"
    shutil.copytree(studied, kept, ignore=shutil.ignore_patterns("runs", "videos", "parts", "scores"))
    shutil.copytree(kept / "rows/joint-seed0", kept / "rows/joint-seed0-old")
    (kept / "base.safetensors").unlink()
    identity = json.loads((kept / "study-of.json").read_text())
    identity["rows"]["dense"]["options"] = {}
    (kept / "study-of.json").write_text(json.dumps(identity))
    command(words(kept, "--only=joint"))
    record = json.loads((kept / "study.json").read_text())
    assert record["base"] is None and [*record["rows"]["joint"]["seeds"]] == ["0"]


def test_a_video_that_is_gone_is_missed(studied, tmp_path, capsys):
    kept = tmp_path / "kept"
    shutil.copytree(studied, kept)
    next((kept / "rows/base-seed0/videos").glob("*.mp4")).unlink()
    shutil.rmtree(kept / "rows/joint-seed0")
    line = refused(capsys, command, words(kept, "--only=joint"))
    there = kept / "rows/base-seed0/videos"
    assert "can't be compared" in line and f"delete {there}, and the same command makes it again" in line
    shutil.rmtree(there)
    command(words(kept, "--only=joint"))
    assert measures(kept, "joint")["fidelity"] == measures(studied, "joint")["fidelity"]


def test_a_task_that_is_begun_again_is_not_done(tmp_path):
    """Whatever ends it: its file of before says nothing of what it leaves now."""
    task = Task("wait", ("tests.helpers.small_study", str(tmp_path)))
    run.note(task, tmp_path, 5.0, done=True)
    (tmp_path / "tasks/wait.log").write_text("error: of before\n")
    begun = run.Running(task, [None], tmp_path)
    try:
        assert task.record(tmp_path)["done"] is False and task.record(tmp_path)["seconds"] == 5.0
    finally:
        begun.signal(signal.SIGKILL)
        begun.process.wait()
    with pytest.raises(ValueError, match="wait: nothing "):  # what it said before is kept, and not said again
        begun.finish()
    assert begun.log.read_text() == "error: of before\n"


def test_a_rows_own_options_come_last_and_a_codec_is_that_of_the_folder(tmp_path, monkeypatch):
    """By the words of its commands, and by what its measures open."""
    study = yaml.safe_load(MINIATURE.read_text())
    for name in ("joint", "proposed"):
        study["rows"][name]["options"] = {"model.attention.engine": "triton"}
    asked = []
    monkeypatch.setattr(study_command, "run_tasks", lambda tasks, *_: asked.extend(tasks) or True)
    monkeypatch.setattr(study_command, "check_trainings", lambda tasks: None)
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(study | {"codec": {"box": [2, 2, 2], "channels": 24, "clips": 4}}))
    command(words(tmp_path / "out", config=config))
    of = {task.name: task.words for task in asked}
    for name in ("joint", "proposed"):
        engines = [word for word in of[f"train-{name}-seed0"] if word.startswith("--model.attention")]
        assert engines[-1] == "--model.attention.engine=triton"
    assert f"--encoders={tmp_path / 'out/codec.safetensors'}" in of["search"]


def test_a_row_of_another_day_has_the_same_bits(studied, tmp_path):
    """In a fresh folder, from the base's file alone."""
    shutil.copy(studied / "base.safetensors", tmp_path / "kept.safetensors")
    command(words(tmp_path / "again", f"--base={tmp_path / 'kept.safetensors'}", "--only=joint", "--devices=0,1"))
    again, before = measures(tmp_path / "again", "joint"), measures(studied, "joint")
    assert not (tmp_path / "again/runs/base").exists()
    for name in ("grid", "frechet", "right_action", "flicker", "fidelity", "curve"):
        assert again[name] == before[name], name


def test_a_study_that_is_stopped_goes_on_to_the_same_bits(tmp_path, monkeypatch, capfd):
    option = long_base(tmp_path)
    command(words(tmp_path / "whole", option, "--only=export"))
    last = tmp_path / "parts/runs/base/checkpoints/last.ckpt"
    clock = run.time.monotonic
    with monkeypatch.context() as patch:  # the time is up as soon as a checkpoint is there
        patch.setattr(run.time, "monotonic", lambda: clock() + (1e6 if last.exists() else 0))
        command(words(tmp_path / "parts", option, "--only=export", "--minutes=9"))
    said = capfd.readouterr().out
    assert "pretrain was stopped" in said and "the time is up, and 2 of 2 tasks are left" in said
    assert not (tmp_path / "parts/base.safetensors").exists()
    command(words(tmp_path / "parts", option, "--only=export", "--minutes=9"))
    assert (tmp_path / "parts/base.safetensors").read_bytes() == (tmp_path / "whole/base.safetensors").read_bytes()
    steps = {part.name for part in (tmp_path / "parts/runs/base/logs").iterdir()}
    assert steps == {"version_0", "version_1"}


def test_a_pretraining_on_two_devices_is_that_on_one(tmp_path, capfd):
    """Of clips that one and two deal out alike; three can't share two clips."""
    option = long_base(tmp_path, 12)
    command(words(tmp_path / "one", option, "--only=export"))
    command(words(tmp_path / "three", option, "--only=pretrain", "--devices=0,1,2"))
    assert "pretrain begins on device 0, 1\n" in capfd.readouterr().out
    words_of_it = json.loads((tmp_path / "three/tasks/pretrain.json").read_text())["command"]
    assert words_of_it[-3:-1] == ["--trainer.devices=2", "--data.batch_size=1"]
    losses, others = (read_losses(tmp_path / name / "runs/base") for name in ("one", "three"))
    for part in ("train/loss", "val/loss"):
        assert losses[part].keys() == others[part].keys() and losses[part]
        assert all(others[part][step] == pytest.approx(value, rel=1e-5) for step, value in losses[part].items())


def test_a_device_that_is_named_twice_takes_two_commands_and_once_the_pretraining(tmp_path, monkeypatch):
    """Of commands that end when as many as there can be run beside each other."""
    running, most = [], []

    class Begun(run.Running):
        def __post_init__(self):
            running.append(self)
            most.append([device for one in running for device in one.devices])

        @property
        def is_over(self):
            return self.task.batch is not None or len(most) == 4

        def finish(self):
            running.remove(self)

        def signal(self, number):
            assert not running

    monkeypatch.setattr(run, "Running", Begun)
    tasks = [Task("pretrain", ("x",), batch=6), *(Task(name, ("x",), ("pretrain",)) for name in "abc")]
    assert run.run_tasks(tasks, tmp_path, study_command.as_devices("0,1,0"), None)
    assert most == [["0", "1"], ["0"], ["0", "1"], ["0", "1", "0"]]


def test_told_to_end_in_a_script_the_training_under_way_saves(tmp_path):
    """Whose shell has SIGINT ignored by what it starts in the background."""
    line = [sys.executable, "-m", "eval.study", *words(tmp_path / "s", long_base(tmp_path, 100_000), "--only=export")]
    process = subprocess.Popen(
        line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    while not (tmp_path / "s/runs/base/checkpoints/last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    assert process.communicate(timeout=100)[1] == "error: stopped; the same command goes on with what is missing\n"
    assert process.returncode == 143 and "error: stopped by SIGINT" in (tmp_path / "s/tasks/pretrain.log").read_text()
    assert subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True).stdout == b""


def test_configurations_of_the_study_are_read():
    """The real one asks for what it says: the densities of joint and uniform are alike, and its rows are there."""
    study = yaml.safe_load((ROOT / "configs/study/study.yaml").read_text())
    assert {*study["rows"]} == {
        "dense",
        "quantised",
        "sparse",
        "joint-free",
        "joint",
        "distilled",
        "uniform",
        "proposed",
    }
    share = [np.prod(x["window"]) / 64 for x in study["rows"]["joint"]["attention"]["schedule"]["regimes"]]
    assert np.dot(share, [0.3, 0.4, 0.3]) == pytest.approx(6 / 64, rel=0.05)
    assert [Path(file).name for file in study["pretraining"]] == ["base-short.yaml", "base.yaml"]
