"""VBench's totals and the comparison of runs."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from eval.vbench.__main__ import command
from eval.vbench.aggregate import combine, normalise
from eval.vbench.compare import open_runs
from eval.vbench.paired import compare
from eval.vbench.plan import PlanOptions, make_plan
from eval.vbench.results import read_results
from eval.vbench.suite import DIMENSIONS, Plan, write_plan
from eval.vbench.values import Result
from tests.helpers.vbench_suite import (
    full_results,
    plan_of,
    refused,
    save,
    write_results,
    write_score,
)

PUBLISHED = {
    "HunyuanVideo": "83.24 85.09 75.82 97.37 97.76 99.44 98.99 70.83 60.36 67.56 "
                    "86.10 68.55 94.40 91.60 68.68 53.88 19.80 23.89 26.44",
    "CogVideoX-5B": "81.61 82.75 77.04 96.23 96.52 98.66 96.92 70.97 61.98 62.90 "
                    "85.23 62.11 99.40 82.81 66.35 53.20 24.91 25.38 27.59",
    "Mira": "71.87 78.78 44.21 96.23 96.92 98.29 97.54 60.33 42.51 60.16 "
            "52.06 12.52 63.80 42.24 27.83 16.34 21.89 18.77 18.72",
}  # fmt: skip


def scores_of(row):
    return dict(zip(DIMENSIONS, row, strict=True))


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_totals(model):
    total, quality, semantic, *row = map(float, PUBLISHED[model].split())
    found = combine(scores_of([value / 100 for value in row]))
    for got, expected in ((found.total, total), (found.quality, quality), (found.semantic, semantic)):
        assert abs(100 * got - expected) < 0.01
    assert found.reasons == ()


@pytest.mark.parametrize("absent", DIMENSIONS)
def test_no_total_without_all_sixteen(absent):
    scores = scores_of([0.5] * 16)
    del scores[absent]
    found = combine(scores)
    assert found.total is None and getattr(found, DIMENSIONS[absent].group) is None
    assert found.reasons == (f"{absent}: missing",)
    other = "semantic" if DIMENSIONS[absent].group == "quality" else "quality"
    assert getattr(found, other) == getattr(combine(scores_of([0.5] * 16)), other)
    assert normalise("dynamic_degree", 0.5) == 0.5 and normalise("scene", 0.8222) == 1.0
    assert normalise("temporal_flickering", 0.5) < 0  # not clipped


def test_official_results_in_a_file_a_folder_and_a_zip(tmp_path, capsys):
    said = full_results()
    (tmp_path / "one_eval_results.json").write_text(json.dumps(said))
    folder = tmp_path / "folder"
    for name, value in said.items():
        (folder / name).mkdir(parents=True)
        (folder / name / f"{name}_eval_results.json").write_text(json.dumps({name.replace("_", " "): value}))
    (folder / "scene/results_full_info.json").write_text("[]")
    with zipfile.ZipFile(tmp_path / "scores.zip", "w") as packed:
        for name, value in said.items():
            packed.writestr(f"{name}_eval_results.json", json.dumps({name: value}))
        packed.writestr("__MACOSX/._x.json", "nonsense")
    found = [read_results(tmp_path / name) for name in ("one_eval_results.json", "folder", "scores.zip")]
    assert found[0] == found[1] == found[2] and found[0].problems == ()
    assert all(result.complete for result in found[0].scores.values()) and [*found[0].scores] == [*DIMENSIONS]
    imaging = found[0].scores["imaging_quality"]
    assert imaging.score < 1 < max(imaging.videos.values()) and max(imaging.per_video().values()) < 1
    expected = combine({name: value[0] for name, value in said.items()})
    command(["aggregate", str(tmp_path / "scores.zip"), f"--json={tmp_path / 'totals.json'}"])
    assert f"Total {100 * expected.total:.2f}, Quality {100 * expected.quality:.2f}" in capsys.readouterr().out
    assert json.loads((tmp_path / "totals.json").read_text())["totals"]["total"] == expected.total


def test_what_is_wrong_with_results_is_named_and_the_totals_are_withheld(tmp_path, capsys):
    said = full_results()
    said["scene"][1].pop()
    said["color"][1] = said["color"][1][:7]  # it lists only videos in which the object was found
    said["color"][0] = sum(row["video_results"] for row in said["color"][1]) / 7
    said["human_action"][0] = float("nan")
    said["temporal_style"][0] = 23.1
    del said["motion_smoothness"]
    for name, value in said.items():
        (tmp_path / f"{name}_eval_results.json").write_text(json.dumps({name: value}))
    (tmp_path / "object_class_eval_results.json").write_text('{"object_class": [0.9')
    (tmp_path / "again_eval_results.json").write_text(json.dumps({"dynamic_degree": [0.1, []], "beauty": [1, []]}))
    command(["aggregate", str(tmp_path)])
    out = capsys.readouterr().out
    for line in (
        "Withheld: Total, Quality, Semantic", "- scene: only 429 of 430 videos",
        "- human_action: not scored: its score is nan, not a number", "- motion_smoothness, object_class: not scored\n",
        "- temporal_style: not scored: its score is 23.1, expected at most 1",
        "object_class_eval_results.json can't be read, and is left out", "both score dynamic_degree, differently",
        "scores beauty, which is no dimension of VBench", "7 of 425 videos: the others were not scored, or",
    ):  # fmt: skip
        assert line in out
    assert read_results(tmp_path).scores["color"].complete


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "scores can't be read"),
        (
            "{",
            "holds no scores that can be used: {path} can't be read, and is left out: it can't be read as JSON: Expe",
        ),
        ("[]", "holds no scores: expected a run's folder"),
        ("3", "expected scores of dimensions, found 3"),
        ('{"scene": [0.5, [{"video_path": "a"}]]}', "scene is left out: it is not a list of an overall score and its"),
        ('{"beauty": 1}', "it scores beauty, which is no dimension of VBench"),
    ],
)
def test_files_without_scores(tmp_path, capsys, content, message):
    path = tmp_path / "a_eval_results.json"
    assert "holds no scores" in refused(capsys, ["aggregate", tmp_path])
    if content is not None:
        path.write_text(content)
    assert message.format(path=path) in refused(capsys, ["aggregate", path])


@pytest.mark.parametrize(
    ("quick", "faulty", "reason"),
    [
        (None, False, None),
        (4, False, "a quick run has 4 prompts a dimension"),
        (None, True, "scene: 2 of its 3 videos can't count (1 missing, 1 of one frame)"),
    ],
)
def test_a_runs_plan_and_check_decide_whether_it_has_a_total(tmp_path, capsys, quick, faulty, reason):
    names = ("a-0.mp4", "b-0.mp4", "c-0.mp4")
    plan = plan_of(*names, quick=quick)
    write_plan(tmp_path / "plan.json", Plan(plan.suite, tuple(DIMENSIONS), quick, plan.videos))
    for name in DIMENSIONS:
        videos = dict.fromkeys(names if name in ("scene", "background_consistency") else (), 0.5)
        write_score(tmp_path, name, 0.5, videos=videos, filtered=False if name == "temporal_flickering" else None)
    save(tmp_path / "videos/a-0.mp4", frames=1 if faulty else 4)
    for name in names[1:] if not faulty else names[2:]:
        save(tmp_path / "videos" / name)
    try:
        command(["check", f"--out={tmp_path}"])
    except SystemExit:
        assert faulty
    command(["report", f"--out={tmp_path}"])
    out = capsys.readouterr().out
    assert "temporal_flickering is unfiltered" in out
    assert (reason is None) == ("Withheld" not in out) == (tmp_path / "leaderboard.zip").is_file()
    if reason:
        assert reason in out
    if faulty:  # the dimensions that are complete still count
        dimensions = json.loads((tmp_path / "report.json").read_text())["dimensions"]
        assert dimensions["color"]["counts"] and not dimensions["scene"]["counts"]


def differ(first, other, **more):
    return compare({"scene": first}, {"scene": other}, (), **more)["scene"]


def test_paired_differences_are_of_the_same_videos():
    values = {f"p{i}-{j}.mp4": 50.0 + i for i in range(40) for j in range(5)}
    shifted = {name: value + 2 + (i % 7 - 3) / 10 for i, (name, value) in enumerate(values.items())}
    first = Result("imaging_quality", 0.7, values)
    other = Result("imaging_quality", 0.72, {**dict(reversed(shifted.items())), "only here-0.mp4": 99.0})
    (found,) = compare({"imaging_quality": first}, {"imaging_quality": other}, ()).values()
    assert (found.videos, found.prompts, found.only_first, found.only_other) == (200, 40, 0, 1)
    by_prompt = np.array([shifted[f"p{i}-{j}.mp4"] / 100 - (50 + i) / 100 for i in range(40) for j in range(5)])
    test = stats.ttest_1samp(by_prompt.reshape(40, 5).mean(1), 0)
    assert found.mean == pytest.approx(by_prompt.mean()) and found.verdict == "better"
    assert (found.low, found.high) == pytest.approx([*test.confidence_interval(0.95)], rel=0.01)
    (same,) = compare({"imaging_quality": first}, {"imaging_quality": first}, ()).values()
    assert (same.mean, same.low, same.high, same.p, same.verdict) == (0, None, None, None, "the same scores")
    one = {"x-0.mp4": 0.1}
    assert compare({"scene": Result("scene", 0.5, one)}, {"scene": Result("scene", 0.5, {"y-0.mp4": 0.1})}, ()) == {}
    lone = differ(Result("scene", 0.1, one), Result("scene", 0.3, {"x-0.mp4": 0.3}))
    assert (lone.low, lone.high, lone.p, lone.verdict) == (None, None, None, "too few prompts")


@pytest.mark.parametrize(
    ("prompts", "quick", "verdict"),
    [(9, False, "too few prompts"), (10, False, "better"), (10, True, "a quick run")],
)
def test_a_verdict_takes_ten_prompts_and_no_quick_run(prompts, quick, verdict):
    """All by the same 0.5, which is told apart where there are enough."""
    first = Result("scene", 0.1, {f"p{i}-0.mp4": 0.1 for i in range(prompts)})
    other = Result("scene", 0.6, {f"p{i}-0.mp4": 0.6 for i in range(prompts)})
    found = differ(first, other, quick=quick)
    assert found.verdict == verdict and 0 < found.low < found.mean == pytest.approx(0.5)


def draw_runs(random, prompts, videos):
    """Two runs of one model: by prompt its videos are alike, and two runs' too."""
    runs = {}, {}
    for name, about in DIMENSIONS.items():
        level = np.clip(random.normal(0.6, 0.1, (prompts, 1)), 0.1, 0.9)
        for run in runs:
            drawn = level + random.normal(0, 0.05, (prompts, 1)) + random.normal(0, 0.05, (prompts, videos))
            if name in ("dynamic_degree", "human_action"):
                drawn = random.random((prompts, videos)) < level
            values = about.unit * np.clip(drawn, 0, 1)
            files = {f"{i}-{j}.mp4": float(values[i, j]) for i in range(prompts) for j in range(videos)}
            run[name] = Result(name, float(values.mean() / about.unit), files, True)
    return runs


@pytest.mark.parametrize(("prompts", "repeats"), [(4, 60), (10, 100), (72, 60)])
def test_two_runs_of_one_model_are_told_apart_in_few_tables(prompts, repeats):
    """A bootstrap without a correction did in 97, 85 and 62 % of tables."""
    random, wrong, held, rows = np.random.default_rng(prompts), 0, 0, 0
    for _ in range(repeats):
        found = compare(*draw_runs(random, prompts, 2), ("quality", "semantic"))
        assert len(found) == 19
        wrong += any(one.verdict in ("better", "worse") for one in found.values())
        held += sum(one.low <= 0 <= one.high for one in found.values())
        rows += len(found)
    assert wrong <= (0 if prompts < 10 else 0.05 * repeats + 2 * (0.05 * 0.95 * repeats) ** 0.5)
    assert 0.93 <= held / rows <= 0.985


def test_a_score_that_is_better_is_told_in_a_table_of_nineteen_rows():
    random = np.random.default_rng(0)
    first, other = draw_runs(random, 72, 2)
    better = {name: min(1.0, value + 0.1 + random.normal(0, 0.05)) for name, value in first["scene"].videos.items()}
    found = compare(first, {**other, "scene": Result("scene", 0.7, better)}, ("quality", "semantic"))
    assert found["scene"].verdict == "better" and found["scene"].p < 0.001


def test_the_difference_of_totals_is_that_of_the_official_ones(tmp_path):
    first, other = (read_results(Path(write_results(tmp_path / str(i), full_results(1 + i / 50, i)))) for i in (0, 1))
    totals = [combine({name: result.score for name, result in x.scores.items()}) for x in (first, other)]
    found = compare(first.scores, other.scores, ("quality", "semantic"))
    assert [*found] == [*DIMENSIONS, "quality", "semantic", "total"]
    for name in ("quality", "semantic", "total"):
        assert found[name].mean == pytest.approx(getattr(totals[1], name) - getattr(totals[0], name), abs=1e-9)
        assert found[name].low < found[name].mean < found[name].high


def test_the_papers_five_rows(tmp_path, capsys):
    runs = [write_results(tmp_path / f"run{i}", full_results(1 - i / 50, i)) for i in range(5)]
    partial = full_results(0.9)
    del partial["scene"]
    runs[3] = write_results(tmp_path / "partial", partial)
    command(["compare", *runs, f"--out={tmp_path / 'out'}"])
    said = (tmp_path / "out/compare.md").read_text()
    assert said.strip() == capsys.readouterr().out.split("\nwrote ")[0].strip()
    rows = [line.split(" | ")[0] for line in said.splitlines()[4:9]]
    assert rows == ["| dense", "| quantised", "| sparse", "| joint training-free", "| joint trained"]
    assert "joint training-free has no Total: scene: not scored." in said and "| 63.25 |" in said.splitlines()[7]
    assert said.count(" | worse |") > 10 and "corrected for the table's 19 rows (Holm)" in said
    total = json.loads((tmp_path / "out/compare.json").read_text())["runs"][0]["intervals"]["total"]
    assert f"| {100 * total['mean']:.2f} ({100 * total['low']:.2f} to {100 * total['high']:.2f}) |" in said
    figures = json.loads((tmp_path / "out/compare.json").read_text())["differences"]
    assert "total" not in figures["joint training-free"] and figures["sparse"]["total"]["high"] < 0
    command(["compare", f"dense={runs[0]}", f"mine={runs[1]}"])
    assert "## mine against dense" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{a}"], "1 runs to compare, expected 2 to 5"),
        (["{a}"] * 6, "6 runs to compare"),
        (["x={a}", "x={a}"], "runs are called x, x: give them different labels"),
        (["{a}", "{a}/nowhere"], "scores can't be read"),
    ],
)
def test_runs_that_cant_be_compared(tmp_path, capsys, arguments, message):
    path = write_results(tmp_path / "a", full_results())
    assert message in refused(capsys, ["compare", *(text.format(a=path) for text in arguments)])


def test_runs_of_other_prompts_or_seeds_are_told_apart(suite, tmp_path, capsys):
    for name, seed, score in (("a", 0, 0.5), ("b", 7, 0.6)):
        write_plan(tmp_path / name / "plan.json", make_plan(PlanOptions(suite, ["scene"], seed=seed, quick=None)))
        write_score(tmp_path / name, "scene", score, videos={"boathouse-0.mp4": score, "hay barn-0.mp4": score})
    command(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    out = capsys.readouterr().out
    assert "Not the model's alone: 10 videos have another seed." in out and "too few prompts" in out
    assert open_runs([str(tmp_path / "a"), str(tmp_path / "b")])[0].totals.total is None
