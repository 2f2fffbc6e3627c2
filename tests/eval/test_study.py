"""eval.study through every stage in small; stopped, it goes on to the same bits; and what it refuses."""

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
from safetensors.torch import save_file

from eval.generate.command import resolve_settings
from eval.generate.jobs import Options
from eval.study import command as study_command
from eval.study import run
from eval.study.command import command
from eval.study.losses import losses_of_clip
from eval.study.tasks import Task
from tests.helpers.commands import ROOT, refused
from tests.helpers.once import once
from tests.helpers.tiny_run import read_checkpoint
from train.callbacks import read_losses
from train.common.videos import write_video
from train.shapes import MovingShapes

MINIATURE = ROOT / "configs/study/miniature.yaml"
ROWS = ("base", "dense", "joint-free", "joint", "proposed")


def words(out, *options, config=MINIATURE):
    return [f"--config={config}", f"--out={out}", *map(str, options)]


@pytest.fixture(scope="module", autouse=True)
def at_root():
    """Where the configurations' paths begin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """The folder of the miniature, all of it, two tasks at once; not to be changed."""
    return once(tmp_path_factory, "miniature", lambda out: command(words(out, "--devices=0,1")))


def measures(out, row, seed=0):
    return json.loads((out / f"rows/{row}-seed{seed}/measures.json").read_text())


pytestmark = pytest.mark.slow


def test_every_stage_leaves_what_the_report_tells(studied):
    record, text = json.loads((studied / "study.json").read_text()), (studied / "study.md").read_text()
    assert set(record["rows"]) == set(ROWS) and all(task["done"] for task in record["tasks"].values())
    assert (
        len(record["tasks"]) == 15
        and record["torch"]
        and record["tasks"]["train-joint-seed0"]["command"][1:3] == ["-m", "train.fit"]
    )
    assert all(f"| {row} |" in text for row in ROWS) and "not run yet" in text
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
    assert [curve and [*curve] for curve in curves] == [None, ["0", "1", "3"], None, ["0", "1", "3"], None]
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
    shutil.rmtree(kept / "rows/joint-seed0")
    command(words(kept))
    assert asked == ["base", "measure-base", "train-joint-seed0", "measure-joint-seed0"]


def test_a_row_of_another_day_has_the_same_bits(studied, tmp_path):
    """In a fresh folder, from the base's file alone."""
    shutil.copy(studied / "base.safetensors", tmp_path / "kept.safetensors")
    command(words(tmp_path / "again", f"--base={tmp_path / 'kept.safetensors'}", "--only=joint", "--devices=0,1"))
    again, before = measures(tmp_path / "again", "joint"), measures(studied, "joint")
    assert not (tmp_path / "again/runs/base").exists()
    for name in ("grid", "frechet", "right_action", "flicker", "fidelity", "curve"):
        assert again[name] == before[name], name


def long_base(folder, steps=60):
    """The miniature with more steps of pretraining, of two clips, saved often."""
    base = yaml.safe_load((ROOT / "configs/study/miniature-base.yaml").read_text())
    base["data"]["batch_size"] = 2
    base["trainer"]["max_steps"], base["checkpoint"] = steps, {"every_n_train_steps": 2}
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    return f"--pretraining=[{folder / 'base.yaml'}]"


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


# refusals


def test_a_folder_of_another_study(tmp_path, capsys):
    out = tmp_path / "study"
    assert "base is missing" in refused(capsys, command, words(out, "--only=joint"))
    (out / "runs").mkdir()
    line = refused(capsys, command, words(out, "--only=joint", "--measures.steps=5"))
    assert "measures.steps was 4, is 5" in line and "choose another --out" in line
    other = long_base(tmp_path, 9)
    assert "pretraining" in refused(capsys, command, words(out, "--only=joint", other))
    assert "budget" not in refused(capsys, command, words(tmp_path / "new", "--only=joint"))
    assert "base is missing" in refused(capsys, command, words(tmp_path / "new", "--only=joint", "--search.budget=0.4"))
    for broken in ("{half", "[]", "{}", ""):
        (out / "study-of.json").write_text(broken)
        line = refused(capsys, command, words(out, "--only=joint"))
        assert f"{out / 'study-of.json'} is broken (" in line
        assert line.endswith("choose another --out and give it the pretrained weights of this one by --base")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    assert "holds notes.txt, and no study" in refused(capsys, command, words(tmp_path / "full"))


def test_a_base_that_is_missing_or_of_another_pretraining(tmp_path, capsys):
    line = refused(capsys, command, words(tmp_path / "a", "--only=dense"))
    assert "only is dense, whose base is missing" in line and "--base" in line
    assert "there is no base" in refused(
        capsys, command, words(tmp_path / "a", f"--base={tmp_path / 'no.safetensors'}")
    )
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    line = refused(capsys, command, words(tmp_path / "a", f"--base={tmp_path / 'foreign.safetensors'}"))
    assert "is no base of a study" in line
    study = json.loads((tmp_path / "a/study-of.json").read_text())
    study = {name: study[name] for name in ("clip", "data", "codec", "pretraining")}
    study["clip"]["frames"] = 16
    header = {"fps_flex": "{}", "codec": "x", "study": json.dumps(study)}
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", metadata=header)
    line = refused(capsys, command, words(tmp_path / "a", f"--base={tmp_path / 'other.safetensors'}"))
    assert "was pretrained with other settings: clip.frames was 16, is 8" in line


def test_clips_of_other_sizes(tmp_path, capsys):
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips/a.mp4", torch.zeros(3, 8, 48, 64), 8)
    (tmp_path / "clips/metadata.csv").write_text("video,prompt\na.mp4,a grey wall\n")
    line = refused(capsys, command, words(tmp_path / "s", f"--data.source={tmp_path / 'clips'}"))
    assert "a.mp4 is 48x64 (rows x columns), and the study's clip is 32x32" in line
    assert "no folder" in refused(capsys, command, words(tmp_path / "s", "--data.source=nowhere"))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("option", "part"),
    [
        (
            "--rows={dense: {}, joint: {options: {model.nope: 3}}}",
            "train-joint-seed0: unrecognized arguments: --model.nope",
        ),
        ("--rows={dense: {options: {model.lr: quick}}}", "train-dense-seed0: "),
        ("--finetuning={trainer.nope: 4}", "train-dense-seed0: "),
    ],
)
def test_options_that_training_does_not_take_are_refused_before_the_pretraining(tmp_path, capsys, option, part):
    assert part in refused(capsys, command, words(tmp_path / "s", option))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("file", ["rows/dense-seed0/measures.json", "real/measures.json", "tasks/search.json"])
@pytest.mark.parametrize("content", ["{}", "[]", "3", "{half", ""])
def test_a_damaged_file_is_named_with_what_to_do(studied, tmp_path, capsys, file, content):
    kept = tmp_path / "kept"
    shutil.copytree(studied, kept, ignore=shutil.ignore_patterns("runs", "base.ckpt", "videos", "parts", "scores"))
    (kept / file).write_text(content)
    line = refused(capsys, command, words(kept))
    assert str(kept / file) in line and line.endswith("delete it, and the same command makes it again")


@pytest.mark.parametrize(("visible", "here"), [(None, "0, 1"), ("4,5", "4, 5")])
def test_a_gpu_that_is_not_here_is_refused(tmp_path, capsys, monkeypatch, visible, here):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    line = refused(capsys, command, words(tmp_path / "s", "--devices=1,2"))
    assert line == f"error: devices is '1,2', expected GPUs that are here: {here}"
    assert study_command.as_devices(here) == here.split(", ")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert study_command.as_devices("0,1,2") == ["0", "1", "2"]


def test_no_game(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study_command, "find_spec", lambda name: None)
    line = refused(capsys, command, words(tmp_path / "s", "--data.source=doom"))
    assert "vizdoom" in line and 'pip install ".[study]"' in line


def test_a_command_that_fails_says_why(tmp_path, capsys):
    broken = yaml.safe_load((ROOT / "configs/study/miniature-base.yaml").read_text())
    broken["model"]["lr"] = -1
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(broken))
    line = refused(
        capsys, command, words(tmp_path / "s", f"--pretraining=[{tmp_path / 'base.yaml'}]", "--only=pretrain")
    )
    assert line.startswith("error: pretrain: ") and "lr" in line and "pretrain.log" in line


@pytest.mark.parametrize(
    "option, part",
    [
        ("--only=jiont", "only has 'jiont', expected a stage (pretrain, export"),
        ("--seeds=0,0", "seeds is '0,0', expected whole numbers"),
        ("--seeds=-1", "seeds is '-1', expected whole numbers"),
        ("--devices=a", "devices is 'a', expected whole numbers"),
        ("--measure=nobody", "measure is 'nobody', expected one of real, base, dense, joint-free, joint, proposed"),
        ("--search.windows=[5]", "search.windows"),
        ("--search.windows=[[0, 1, 1]]", "window is (0, 1, 1)"),
        ("--search.granularities=[0]", "granularity is 0"),
        ("--search.budget=3", "search.budget is 3.0, expected more than 0 and at most 1"),
        ("--data.clips=0", "data.clips is 0, expected at least 1"),
        ("--minutes=0", "minutes is 0.0, expected more than 0"),
        ("--measures.videos=1", "measures.videos is 1, expected at least 2"),
        ("--measures.sigmas=[0.1]", "measures.sigmas is (0.1,)"),
        ("--rows={joint: {weights: nobody}}", "rows.joint has weights nobody"),
        ("--rowz={}", "rowz"),
        ("--config={rowz: {}}", "Option 'rowz' is not accepted"),
        ("--config={rowz: {dense: {}}}", "Option 'rowz.dense' is not accepted"),
        ("--data={clipz: {}}", "Group 'data' does not accept option 'clipz'"),
        ("--rows={dense: {optionz: {}}}", "in Row: Option 'optionz' is not accepted"),
        ("--rows={a/b: {}}", "rows has 'a/b', expected a name of letters, digits"),
        ("--rows={'joi*': {}}", "rows has 'joi*', expected a name"),
        ("--rows={'': {}}", "rows has '', expected a name"),
        ("--rows={'a,b': {}}", "rows has 'a,b', expected a name"),
        ("--rows={joint-seed0: {}}", "rows has 'joint-seed0', expected a name"),
        ("--rows={real: {}}", "that is no stage (data, codec"),
        ("--rows={joint: {}, free: {weights: joint}}", "rows.free isn't trained, and has no attention"),
        ("--pretraining=[]", "pretraining is empty"),
        ("--pretraining=configs/study/base.yaml", "pretraining"),
        ("--pretraining=[nowhere.yaml]", "nowhere.yaml"),
        ("--pretraining=[README.md]", "README.md is no YAML"),
        ("--codec={box: [2, 4, 4], channels: 16, clips: 4}", "codec.channels is 16, and"),
        ("--codec={box: [2, 4, 4], channels: 24, clips: 4}", "windows has (2, 2, 1), and the grid (4, 4, 4)"),
        ("--codec={box: [3, 4, 4], channels: 24, clips: 4}", "(8, 32, 32)"),
    ],
)
def test_refusals(tmp_path, capsys, option, part):
    assert part in refused(capsys, command, words(tmp_path / "s", option))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("data", [None, [1], {"batch_size": None}])
def test_a_pretraining_that_says_no_batch_is_read_all_the_same(tmp_path, capsys, data):
    """It runs on one device; what of it can't be meant is train.fit's to say."""
    base = yaml.safe_load((ROOT / "configs/study/miniature-base.yaml").read_text())
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base | {"data": data}))
    option = f"--pretraining=[{tmp_path / 'base.yaml'}]"
    assert refused(capsys, command, words(tmp_path / "s", option, "--only=nothing")).startswith("error: ")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"model": {"wan": {"dim": 32}}}, "short.yaml has model.wan {'dim': 32}, and"),
        ({"data": {"frames": 0}}, "short.yaml: frames is 0"),
        ({"data": {"frames": "many"}}, "short.yaml: frames is 'many'"),
        ({"data": {"frames": 3}}, "short.yaml: clips of (3, 32, 32) (frames, rows, columns) don't divide into boxes"),
    ],
)
def test_a_part_of_the_pretraining_that_does_not_fit_is_refused_before_any(tmp_path, capsys, change, part):
    base = yaml.safe_load((ROOT / "configs/study/miniature-short.yaml").read_text())
    (tmp_path / "short.yaml").write_text(
        yaml.safe_dump({name: value | change.get(name, {}) for name, value in base.items()})
    )
    option = f"--pretraining=[{tmp_path / 'short.yaml'}, configs/study/miniature-base.yaml]"
    codec = "--codec={box: [2, 2, 2], channels: 24, clips: 4}"
    assert part in refused(capsys, command, words(tmp_path / "s", option, codec))
    assert not (tmp_path / "s").exists()


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
