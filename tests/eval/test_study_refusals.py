"""What eval.study refuses, in a line, and before hours of work."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from eval.study import command as study_command
from eval.study.command import command
from tests.helpers.commands import ROOT, refused
from tests.helpers.miniature import long_base, words
from train.common.videos import write_video

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("at_root")]


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


def test_another_base_than_a_study_has(studied, tmp_path, capsys):
    """Whose rows would be of one, and its record of the other."""
    kept, other = tmp_path / "kept", tmp_path / "other.safetensors"
    shutil.copytree(studied, kept, ignore=shutil.ignore_patterns("runs", "videos", "parts", "scores"))
    with safe_open(studied / "base.safetensors", "pt") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file({name: x + 1 for name, x in tensors.items()}, other, metadata=header)
    line = refused(capsys, command, words(kept, f"--base={other}"))
    assert line == f"error: {kept} has another base than {other}: choose another --out, or leave --base out"
    assert (kept / "base.safetensors").read_bytes() == (studied / "base.safetensors").read_bytes()
    (kept / "base.safetensors").unlink()
    assert refused(capsys, command, words(kept, f"--base={other}")) == line  # by the checkpoint that rows begin from
    command(words(kept, f"--base={studied / 'base.safetensors'}"))


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
        (
            "--rows={joint: {}, free: {weights: joint, attention: {schedule: fps}, options: {model.lr: 1}}}",
            "rows.free isn't trained, and has options of training: leave them out",
        ),
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


@pytest.mark.parametrize("data", [None, [1], {"batch_size": None}, {"batch_size": "4"}])
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
