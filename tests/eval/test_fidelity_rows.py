"""Five rows of videos compared with those of dense attention."""

import json

import numpy as np
import pytest

from eval.fidelity import scores as fidelity_scores
from eval.fidelity.command import command, plan_rows
from eval.fidelity.similarity import read_frames
from fps_flex import FPSAttention
from tests.helpers.commands import refused
from tests.helpers.tiny_run import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Of two steps with dense attention, and of two more with FPS attention and another shift."""
    folder = tmp_path_factory.mktemp("runs")
    dense = tiny_checkpoint(folder / "dense", "--model.attention.quantize=false", "--model.attention.sparse=false")
    return dense, tiny_checkpoint(folder / "fps", f"--model.checkpoint={dense}", "--model.shift=2.0")


def five(checkpoints, out, *extra):
    dense, fps = checkpoints
    return ["models", f"--checkpoint={dense}", f"--trained={fps}", "--prompt=a red circle", "--count=2",
            "--steps=4", "--guidance=1", f"--out={out}", *extra]  # fmt: skip


@pytest.fixture(scope="module")
def report(checkpoints, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "out"
    command(five(checkpoints, out))
    return out


def test_five_rows_of_the_same_prompts_and_seeds(report):
    said = json.loads((report / "fidelity.json").read_text())
    rows = {row["name"]: row for row in said["rows"]}
    assert list(rows) == ["dense", "quantised", "sparse", "joint", "joint-trained"]
    assert [row["attention"] for row in said["rows"]] == ["dense", "FP8", "windows", *["FP8 and windows"] * 2]
    assert all("2 steps with dense" in row["weights"] for row in said["rows"][:4])
    assert "2 steps with FPS" in rows["joint-trained"]["weights"]
    assert rows["dense"]["density"] == rows["quantised"]["density"] == 1
    assert rows["sparse"]["density"] == rows["joint"]["density"] < 0.6
    files = {name: sorted(path.name for path in (report / name).glob("*.mp4")) for name in rows}
    assert len(files["dense"]) == 2 and all(names == files["dense"] for names in files.values())
    made = {name: (report / name / files["dense"][0]).read_bytes() for name in rows}
    assert len(set(made.values())) == 5
    records = [json.loads((report / name / files["dense"][0]).with_suffix(".json").read_text()) for name in rows]
    same = ("seed", "prompt", "shift", "steps", "guidance", "sampler", "clip", "negative_prompt")
    assert all(record[name] == records[0][name] for record in records for name in same)
    assert records[0]["shift"] == 2.0  # what the trained model was trained with
    text = (report / "fidelity.md").read_text()
    assert "Videos a row: 2, of 1 prompt. No confidence interval: that needs two prompts or more." in text
    assert "joint-trained has other weights than dense" in text and "no row is training-free" not in text
    assert "MS-SSIM (frames of 32x32 are too small" in text


def test_the_dense_row_is_dense_attention(report, checkpoints, tmp_path):
    from eval.generate.command import command as generate

    generate([f"--checkpoint={checkpoints[0]}", "--prompt=a red circle", "--steps=4", "--guidance=1", "--shift=2",
              f"--out={tmp_path}"])  # fmt: skip
    (name,) = (path.name for path in tmp_path.glob("*.mp4"))
    with_all_windows, row = (np.stack(list(read_frames(folder / name))) for folder in (tmp_path, report / "dense"))
    assert np.abs(with_all_windows.astype(int) - row).mean() < 0.5


def test_started_again_it_makes_and_measures_nothing(report, checkpoints, monkeypatch, capsys):
    before = {path: path.read_bytes() for path in report.rglob("*") if path.is_file()}
    monkeypatch.setattr(fidelity_scores, "compare", None)
    command(five(checkpoints, report))
    assert capsys.readouterr().out.count("2 of 2 videos are there already") == 5
    assert {path: path.read_bytes() for path in report.rglob("*") if path.is_file()} == before
    line = refused(capsys, command, five(checkpoints, report, "--steps=5"))
    assert "was made with steps 4 (now 5)" in line


def test_of_several_processes_the_last_to_finish_writes_the_report(checkpoints, tmp_path, monkeypatch, capsys):
    arguments = [*five(checkpoints, tmp_path)[:-1], f"--out={tmp_path}", "--steps=1"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, written in (("0", False), ("1", True)):
        monkeypatch.setenv("RANK", rank)
        command(arguments)
        assert (tmp_path / "fidelity.md").exists() == written
    monkeypatch.setattr("eval.fidelity.command.write_report", None)
    command(arguments)
    assert "the first one where all are there" in capsys.readouterr().out


def test_weights_that_were_trained_for_it_are_not_called_training_free(checkpoints, tmp_path, capsys):
    command(
        ["models", f"--checkpoint={checkpoints[1]}", "--prompt=a", "--steps=1", "--guidance=1", f"--out={tmp_path}"]
    )
    said = json.loads((tmp_path / "fidelity.json").read_text())
    assert [row["name"] for row in said["rows"]] == ["dense", "quantised", "sparse", "joint"]
    assert "no row is training-free" in (tmp_path / "fidelity.md").read_text()


def test_released_weights_need_attention_to_compare_with(wan_folder, tmp_path, capsys):
    shared = ["models", f"--checkpoint={wan_folder}", "--prompt=a", "--frames=9", "--height=32", "--width=48",
              "--steps=1", "--guidance=1", f"--out={tmp_path / 'out'}"]  # fmt: skip
    assert "there is nothing to compare with dense attention: that is what" in refused(capsys, command, shared)
    assert not (tmp_path / "out").exists()
    assert "or name a tile" in refused(capsys, command, [*shared, "--attention.schedule=fps"])
    command([*shared, "--attention.schedule=fps", "--attention.tile=[1,2,2]", "--attention.block=16"])
    said = json.loads((tmp_path / "out/fidelity.json").read_text())
    assert {row["weights"] for row in said["rows"]} == {"released, trained with dense attention"}
    assert said["rows"][-1]["attention"] == "FP8 and windows of fps" and said["settings"]["shift"] == 3.0


def test_rows_that_would_be_the_same_are_left_out():
    def rows(**options):
        return [name for name, *_ in plan_rows("a", None, FPSAttention(**options))]

    assert rows() == ["dense", "quantised", "sparse", "joint"]
    assert rows(quantize=False) == ["dense", "sparse"]
    assert rows(sparse=False) == ["dense", "quantised"]
    assert [name for name, *_ in plan_rows("a", "b", FPSAttention())][-1] == "joint-trained"
    carriers = {name: how.carrier for name, _, how in plan_rows("a", None, FPSAttention(carrier="float8"))}
    assert carriers == {"dense": "input", "quantised": "float8", "sparse": "input", "joint": "float8"}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--attention.schedule=dense"], "--attention.schedule made it so, leave out what did"),
        (["--attention.quantize=false", "--attention.sparse=false"],
         "--attention.quantize and --attention.sparse made it so"),
        (["--trained={fps}"], "are the same weights: leave --trained out"),
    ],
)  # fmt: skip
def test_what_leaves_nothing_to_compare_is_named(checkpoints, tmp_path, capsys, options, line):
    fps = checkpoints[1]
    words = [f"--checkpoint={fps}", f"--out={tmp_path / 'out'}", "--prompt=a", "--steps=1"]
    assert line in refused(capsys, command, ["models", *words, *(word.format(fps=fps) for word in options)])
    assert not (tmp_path / "out").exists()
