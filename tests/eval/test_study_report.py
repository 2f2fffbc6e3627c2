"""What eval.study's report takes for a row's, and what it refuses in a line."""

import json
import re
import shutil

import pytest

from eval.study.command import command
from tests.helpers.commands import refused
from tests.helpers.miniature import words

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("at_root")]


def keep(studied, tmp_path):
    leave = shutil.ignore_patterns("runs", "base.ckpt", "videos", "parts", "scores", "*.png")
    return shutil.copytree(studied, tmp_path / "kept", ignore=leave)


def spoil(file, change):
    """What a file of JSON holds, changed."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("row", "change", "said"),
    [
        ("joint", lambda x: x.pop("prompts"), "measures.json lacks prompts"),
        ("base", lambda x: x.pop("scales_of_v"), "lacks the errors of both scales of V"),
        ("joint", lambda x: x["grid"].pop(), "other losses than those of 2 clips at 3 noise levels"),
        ("joint", lambda x: x["grid"][0].pop(), "other losses than those of 2 clips at 3 noise levels"),
        ("joint", lambda x: x["grid"][0].__setitem__(0, float("nan")), r"grid\[0\]\[0\] is nan, expected a float"),
        ("joint", lambda x: x.update(frechet=None), "frechet is None, expected an object with distance, spread, clips"),
        ("joint", lambda x: x["frechet"].update(distance="9"), "frechet.distance is '9', expected a float"),
        ("joint", lambda x: x["fidelity"].update(psnr=3), "fidelity.psnr is 3, expected an object with mean"),
        (
            "joint",
            lambda x: x.update(right_action=[]),
            "is of other videos than the 4 that real clips' prompts ask for",
        ),
        ("joint", lambda x: x.update(not_measured=[]), r"not_measured is \[\], expected a dict"),
        ("base", lambda x: x["scales_of_v"].pop("tile"), "lacks the errors of both scales of V"),
        ("base", lambda x: x["scales_of_v"].update(tile=[]), "lacks the errors of both scales of V"),
        ("dense", lambda x: x["grid"][0].__setitem__(0, 0.0), "holds losses, shares, distances or steps that can't be"),
        ("joint", lambda x: x.update(density=-5), "holds losses, shares, distances or steps that can't be"),
        ("joint", lambda x: x["right_action"].__setitem__(0, 700), "shares, distances or steps that can't be"),
        ("joint", lambda x: x["curve"].update(x=1.0), "distances or steps that can't be"),
        ("joint", lambda x: x["curve"].update({"0": 0.0}), "distances or steps that can't be"),
        ("joint", lambda x: x["frechet"].update(clips=3), "distances or steps that can't be"),
        ("joint", lambda x: x.update(against="nobody"), "is compared with the row nobody"),
        (
            "joint-free",
            lambda x: x.update(weights="others"),
            "is of others, and .*dense-seed0 of run .*should be the same",
        ),
        ("joint", lambda x: x.update(seed=7), "is of the row joint, seed 7"),
        ("joint", lambda x: x.update(row="dense"), "is of the row dense, seed 0"),
        ("real", lambda x: x["rows"].update(more={}), "rows.more lacks right_action, flicker"),
        ("real", lambda x: x.update(prompts=[]), "is of no clips or prompts"),
    ],
)
def test_damaged_measures_are_named_with_what_to_do(studied, tmp_path, capsys, row, change, said):
    kept = keep(studied, tmp_path)
    spoil(kept / "real/measures.json" if row == "real" else kept / f"rows/{row}-seed0/measures.json", change)
    line = refused(capsys, command, words(kept, "--only=joint"))
    assert re.search(said, line) and line.endswith(", and the same command makes it again"), line


def test_without_real_clips_it_says_how_to_have_them(studied, tmp_path, capsys):
    kept = keep(studied, tmp_path)
    (kept / "real/measures.json").unlink()
    assert refused(capsys, command, words(kept, "--only=joint")).endswith("measures.json: make it with --only real")


def test_a_copied_row_is_no_seed(studied, tmp_path, capsys):
    """By a name that the study gives, it is told what it is; by any other, it isn't looked at."""
    kept = keep(studied, tmp_path)
    for name in ("joint-seed01", "joint-seed\N{ARABIC-INDIC DIGIT THREE}", "joint-seed0-old", "base-seed1"):
        shutil.copytree(kept / f"rows/{name.split('-')[0]}-seed0", kept / "rows" / name)
    command(words(kept, "--only=joint"))
    rows = json.loads((kept / "study.json").read_text())["rows"]
    assert [[*rows[row]["seeds"]] for row in ("joint", "base")] == [["0"], ["0"]]
    shutil.copytree(kept / "rows/joint-seed0", kept / "rows/joint-seed9")
    assert "joint-seed9/measures.json is of the row joint, seed 0" in refused(
        capsys, command, words(kept, "--only=joint")
    )


def test_without_the_base_there_is_no_report_and_that_is_said(studied, tmp_path, capsys):
    kept = keep(studied, tmp_path)
    shutil.rmtree(kept / "rows/base-seed0")
    before = (kept / "study.md").read_bytes()
    command(words(kept, "--only=propose"))
    assert capsys.readouterr().out.endswith("no report yet: it begins with the row base\n")
    assert (kept / "study.md").read_bytes() == before


def test_a_picture_of_ones_own_is_left_alone(studied, tmp_path, capsys):
    kept = keep(studied, tmp_path)
    (kept / "levels.png").write_bytes(b"mine")
    line = refused(capsys, command, words(kept, "--only=joint"))
    assert f"{kept / 'levels.png'} was not written by this command" in line
    (kept / "levels.png").unlink()
    for _ in range(2):  # over what it wrote itself
        command(words(kept, "--only=joint"))


def test_without_shown_videos_there_is_no_sheet(studied, tmp_path):
    kept = keep(studied, tmp_path)
    command(words(kept, "--only=joint"))
    assert (kept / "sheet.png").exists()
    for shown in kept.glob("rows/*/shown"):
        shutil.rmtree(shown)
    command(words(kept, "--only=joint"))
    assert not (kept / "sheet.png").exists() and "sheet.png" not in (kept / "study.md").read_text()
