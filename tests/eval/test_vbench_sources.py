"""What scores are read, of which plan, and what is never written over."""

import json
import shutil
import sys
import zipfile

import pytest

from eval.vbench.__main__ import command
from eval.vbench.compare import open_runs
from eval.vbench.report import collect
from eval.vbench.suite import write_plan
from tests.helpers.vbench_runs import build_run, plan_run
from tests.helpers.vbench_suite import full_results, refused, write_results, write_score


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("quick") / "run", quick=10, shown="none")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("full") / "run", shown="none")


def copy(run, to):
    shutil.copytree(run, to)
    return to


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def frames_of(name, count=lambda i: 16 if i % 2 else 80):
    """full_results' of a dimension, as one GPU gives it of videos that differ in length."""
    score, rows = full_results()[name]
    rows = [{**row, "frame_count": count(i)} for i, row in enumerate(rows)]
    whole = sum(row["frame_count"] for row in rows)
    return [sum(row["frame_count"] * row["video_results"] for row in rows) / whole, rows]


def last_frames():
    _, rows = full_results()["appearance_style"]
    rows = [{**row, "cur_sim": row["video_results"] - 0.1} for row in rows]
    return [sum(row["cur_sim"] for row in rows) / len(rows), rows]


def test_scores_of_another_plan_dont_count(quick, full, tmp_path):
    run = copy(quick, tmp_path / "stale")
    write_plan(run / "plan.json", plan_run())
    found = collect(run)
    assert found.totals.total is None and found.reasons["color"].startswith("10 of 425 videos of the plan are scored")
    run = copy(full, tmp_path / "other")
    assert collect(run).totals.total is not None
    scored = json.loads((run / "scores/color.json").read_text())["videos"]
    for videos, why in (
        ({name: 0.5 for name in [*scored][:7]}, "7 of 425 videos of the plan are scored: "),
        (
            {f"other-{i}.mp4": 0.5 for i in range(425)},
            "0 of 425 videos of the plan are scored, 425 that are scored",
        ),
        ({**scored, "other-0.mp4": 0.5}, "1 that are scored are not in the plan"),
    ):
        edit(run / "scores/color.json", videos=videos, score=sum(videos.values()) / len(videos))
        assert collect(run).reasons["color"].startswith(why) and collect(run).totals.semantic is None
    kept = {name: 0.5 for name in [*scored][:400]}
    edit(run / "scores/color.json", videos=kept, score=0.5, left_out=[*scored][400:])
    assert collect(run).reasons == {}


def test_the_static_filter_may_keep_fewer_than_five(full, tmp_path):
    run = copy(full, tmp_path / "run")
    file = run / "scores/temporal_flickering.json"
    scored = json.loads(file.read_text())["videos"]
    kept = dict([*scored.items()][3:])
    edit(file, videos=kept, score=sum(kept.values()) / len(kept))
    assert collect(run).reasons["temporal_flickering"].startswith("2 of 5 videos of the plan")
    edit(file, left_out=[*scored][:3])
    assert collect(run).totals.total is not None
    said = full_results()
    rows = said["temporal_flickering"][1][:-3]
    said["temporal_flickering"] = [sum(row["video_results"] for row in rows) / len(rows), rows]
    found = collect(tmp_path / write_results(tmp_path / "official", said))
    assert found.totals.total is not None and "372 of 375 videos" in found.results.scores["temporal_flickering"].note


def test_a_record_that_contradicts_itself_isnt_complete(full, tmp_path):
    run = copy(full, tmp_path / "run")
    edit(run / "scores/color.json", errors={"a": "broken"})
    edit(run / "scores/scene.json", missing=["a"])
    assert {*collect(run).reasons} == {"color", "scene"}


def test_a_part_of_a_run_and_its_zip_have_its_plan(quick, tmp_path, capsys):
    run = copy(quick, tmp_path / "run")
    command(["report", f"--out={run}"])
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "run")
    for path in (run, run / "scores", run / "eval_results", tmp_path / "packed.zip"):
        found = collect(path)
        assert found.totals.total is None and found.totals.reasons[0].startswith("a quick run has 10 prompts"), path
        assert found.totals.warnings == () or path.name == "eval_results"
    assert {collect(run / "scores/color.json").plan.quick} == {10}
    write_plan(tmp_path / "run/again/plan.json", plan_run(10))
    shutil.make_archive(str(tmp_path / "two"), "zip", tmp_path, "run")
    assert "holds 2 runs, expected one" in refused(capsys, ["aggregate", tmp_path / "two.zip"])


def test_a_summary_beside_results_in_a_zip_is_no_result(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("x_eval_results.json", json.dumps(full_results()))
        packed.writestr("scaled_results.json", json.dumps({"color": 0.1, "scene": 0.2}))
    found = collect(tmp_path / "a.zip")
    assert found.totals.total is not None and found.totals.warnings == ()


def test_what_report_wrote_is_not_read_again(tmp_path, capsys):
    said = {**full_results(), "scene": frames_of("scene"), "appearance_style": last_frames()}
    folder = tmp_path / "official"
    write_results(folder, said)
    before = collect(folder)
    for _ in range(2):
        command(["report", f"--out={folder}"])
        assert collect(folder) == before and before.totals.total is not None
    corrected = full_results(0.9, seed=1)
    (folder / "x_eval_results.json").write_text(json.dumps(corrected))
    command(["report", f"--out={folder}"])
    assert "left out" not in capsys.readouterr().out
    assert collect(folder).score("color") == corrected["color"][0]


@pytest.mark.parametrize("unfiltered", [False, True])
def test_what_report_wrote_can_be_read_back(full, tmp_path, unfiltered):
    said = {**full_results(), "scene": frames_of("scene"), "appearance_style": last_frames()}
    folder = tmp_path / "official"
    write_results(folder, said)
    if unfiltered:
        (folder / "x_eval_results.json").unlink()
        build_run(folder, unfiltered=True, shown="none")
    command(["report", f"--out={folder}"])
    before = collect(folder)
    shutil.copytree(folder / "eval_results", tmp_path / "alone")
    for path in (folder / "leaderboard.zip", tmp_path / "alone"):
        after = collect(path)
        assert after.totals == before.totals and after.intervals == before.intervals
        assert any("unfiltered" in one for one in after.warnings) == unfiltered


def test_official_results_beside_own_scores_are_both_read(tmp_path):
    said = full_results()
    write_results(tmp_path / "mix", said)
    write_score(tmp_path / "mix", "temporal_flickering", 0.9, filtered=True)
    write_score(tmp_path / "mix", "scene", None, complete=False, note="needs --scorer_python")
    del said["temporal_flickering"]
    (tmp_path / "mix/x_eval_results.json").write_text(json.dumps(said))
    found = collect(tmp_path / "mix")
    assert found.totals.total is not None and found.score("scene") == said["scene"][0]


@pytest.mark.parametrize("name", ["report.md", "chart.png", "report.json", "scores.csv"])
def test_a_report_writes_over_nothing_of_the_users(tmp_path, capsys, name):
    folder = tmp_path / "mine"
    write_results(folder, full_results())
    (folder / name).write_text("precious")
    assert f"{name} isn't as this command wrote it" in refused(capsys, ["report", f"--out={folder}"])
    assert sorted(x.name for x in folder.iterdir()) == sorted([name, "x_eval_results.json"])
    (folder / name).unlink()
    (folder / name).mkdir()
    assert f"{name} is a folder, expected a file to write" in refused(capsys, ["report", f"--out={folder}"])


def test_the_users_leaderboard_zip_and_results_stay(tmp_path, capsys):
    folder = tmp_path / "mine"
    write_results(folder / "eval_results", {"color": full_results()["color"]})
    (folder / "eval_results/x_eval_results.json").rename(folder / "eval_results/color_eval_results.json")
    official = (folder / "eval_results/color_eval_results.json").read_bytes()
    (folder / "leaderboard.zip").write_bytes(b"precious")
    command(["report", f"--out={folder}"])
    assert (folder / "leaderboard.zip").read_bytes() == b"precious"
    assert (folder / "eval_results/color_eval_results.json").read_bytes() == official
    assert "color_eval_results.json isn't this command's, and is left as it is" in capsys.readouterr().out
    (folder / "leaderboard.zip").unlink()
    (folder / "leaderboard.zip").mkdir()
    command(["report", f"--out={folder}"])
    (folder / "x_eval_results.json").write_text(json.dumps(full_results()))
    (folder / "leaderboard.zip").rmdir()
    command(["report", f"--out={folder}"])
    assert (folder / "leaderboard.zip").is_file()
    (folder / "x_eval_results.json").unlink()
    command(["report", f"--out={folder}"])  # no Total any more: its own zip goes
    assert not (folder / "leaderboard.zip").exists()


def test_json_of_totals_writes_over_no_scores(tmp_path, capsys):
    scores = tmp_path / "bom.json"
    scores.write_text(json.dumps(full_results()))
    assert "bom.json was not written by this command: choose another --json" in refused(
        capsys, ["aggregate", scores, f"--json={scores}"]
    )
    assert json.loads(scores.read_text()) == full_results()
    for _ in range(2):
        command(["aggregate", str(scores), f"--json={tmp_path / 'totals.json'}"])


def test_a_comparison_writes_over_nothing_of_the_users(tmp_path, capsys):
    path = write_results(tmp_path / "a", full_results())
    (tmp_path / "out").mkdir()
    (tmp_path / "out/compare.md").write_text("precious")
    assert "compare.md isn't as" in refused(capsys, ["compare", f"x={path}", f"y={path}", f"--out={tmp_path / 'out'}"])


def test_a_score_that_its_videos_dont_give_isnt_comparable(tmp_path):
    said = full_results()
    said["subject_consistency"][0] = max(row["video_results"] for row in said["subject_consistency"][1])
    write_results(tmp_path / "a", said)
    command(["aggregate", str(tmp_path / "a"), f"--json={tmp_path / 'a.json'}"])
    figures = json.loads((tmp_path / "a.json").read_text())
    assert not figures["comparable"] and "subject_consistency can't be checked" in figures["totals"]["warnings"][0]


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_check_is_among_the_notes(full, tmp_path, text):
    run = copy(full, tmp_path / "run")
    (run / "check.json").write_text(text)
    (warning,) = collect(run).warnings
    assert "check.json can't be used" in warning


def test_a_comparison_says_why_the_same_videos_score_differently(tmp_path, capsys):
    one = write_results(tmp_path / "one", full_results())
    many = write_results(tmp_path / "many", {**full_results(), "appearance_style": last_frames()})
    command(["compare", one, many])
    said = capsys.readouterr().out
    assert "Signs differ in appearance_style" in said
    assert "Note: appearance_style of many: the mean of its videos' last frames" in said


def test_the_very_same_scores_get_no_interval(tmp_path, capsys):
    path = write_results(tmp_path / "a", full_results())
    command(["compare", f"x={path}", f"y={path}"])
    said = capsys.readouterr().out
    assert said.count("| the same scores |") == 19 and "scores the same in both" in said
    assert "| +0.00 | - | the same scores | - |" in said


def test_labels_are_text_whatever_they_hold(tmp_path, monkeypatch):
    paths = [write_results(tmp_path / str(i), full_results(1 - i / 50, i)) for i in range(4)]
    labels = ["a", r"$\frac{$", "_mine", f"$y$ \u202e{'w' * 75}"]
    command(["compare", *map("=".join, zip(labels, paths, strict=True)), f"--out={tmp_path / 'out'}"])
    page = (tmp_path / "out/compare.html").read_text()
    assert "\u202e" not in page and '<bdi dir="auto">_mine</bdi>' in page
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_runs(["joint trained=~/0", "b=~/1"])[0].path == tmp_path / "0"


def test_small_words(tmp_path, capsys):
    assert "typo holds no scores: there is no folder" in refused(capsys, ["report", f"--out={tmp_path / 'typo'}"])
    assert not (tmp_path / "typo").exists()
    write_results(tmp_path / "a", full_results())
    command(["report", f"--out={tmp_path / 'a'}", "--name=two\nlines"])
    assert (tmp_path / "a/report.md").read_text().startswith("# VBench: two lines\n")
    for args, text in (
        (["--help"], "Without a subcommand it is `run`"),
        (["compare", "--help"], "usage: python -m eval.vbench compare"),
        (["compare", "--help"], "joint training-free"),
        (["aggregate", "--help"], "a run's folder, one of *_eval_results.json"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            command(args)
        assert text in " ".join(capsys.readouterr().out.split())


def test_a_reader_that_has_read_enough_is_no_fault(tmp_path, monkeypatch):
    import subprocess

    line = f"{sys.executable} -m eval.vbench weights --scorer_weights={tmp_path} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode in (0, 1) and done.stderr == ""
