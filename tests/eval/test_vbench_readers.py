"""What is read of results: what can be a score, its interval, and what it is compared with."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from eval.reading import write_json
from eval.vbench.__main__ import command
from eval.vbench.aggregate import combine, find_intervals
from eval.vbench.compare import compare_runs, describe_comparison, open_runs
from eval.vbench.results import Results, read_results
from eval.vbench.suite import DIMENSIONS, write_plan
from eval.vbench.values import Result, mean
from tests.helpers.vbench_suite import (
    ROWS,
    draw_official,
    full_results,
    plan_of,
    refused,
    write_results,
    write_score,
)


@pytest.mark.parametrize("gpus", [1, 8])
@pytest.mark.parametrize("even", [True, False])
def test_no_genuine_result_is_refused_and_an_intervals_centre_is_the_score(tmp_path, gpus, even):
    said = {name: draw_official(name, gpus, even) for name in DIMENSIONS}
    results = read_results(Path(write_results(tmp_path / "a", said)))
    assert results.problems == () and all(result.complete for result in results.scores.values())
    found = find_intervals(results)
    for name, result in results.scores.items():
        assert result.score == said[name][0]
        if name in found:
            assert found[name].mean == pytest.approx(result.score, abs=5.1e-5)
            assert found[name].low < result.score < found[name].high
    unknown = {"appearance_style"} if gpus > 1 else set() if even else {"subject_consistency"}
    assert DIMENSIONS.keys() - found.keys() == unknown
    assert all(results.scores[name].note for name in unknown) and ("total" in found) == (not unknown)


def test_a_score_of_frames_that_no_video_reaches_is_refused(tmp_path):
    said = draw_official("subject_consistency", 1, even=False)
    best = max(row["video_results"] for row in said[1])
    write_results(tmp_path / "a", {"subject_consistency": [best + 0.01, said[1]], "scene": [0.5, []]})
    (problem,) = read_results(tmp_path / "a").problems
    assert "subject_consistency is left out: its score is 0." in problem and "but the mean of its videos is" in problem


def test_half_precision_may_end_beyond_one(tmp_path):
    rows = [{"video_path": f"a-{i}.mp4", "video_results": 1.0009765625} for i in range(5)]
    write_results(tmp_path / "a", {"background_consistency": [1.0009765625, rows]})
    results = read_results(tmp_path / "a")
    assert results.problems == () and results.scores["background_consistency"].score > 1
    found = find_intervals(results)["background_consistency"]
    assert found.low is None


def with_rows(name, score, rows):
    return f'{{"{name}": [{score}, {rows}]}}'


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ('{"color": true}', "its score is True, not a number"),
        ('{"color": "0.5"}', "its score is '0.5', not a number"),
        ('{"color": null}', "its score is None, not a number"),
        ('{"color": [NaN, []]}', "its score is nan, not a number"),
        ('{"color": [Infinity, []]}', "its score is inf, not a number"),
        ('{"color": [1e999, []]}', "its score is inf, not a number"),
        (f'{{"color": [{10**400}, []]}}', "not a number"),
        ('{"color": [-0.1, []]}', "its score is -0.1, expected at least 0"),
        ('{"color": [1.001, []]}', "its score is 1.001, expected at most 1"),
        ('{"subject_consistency": [1.01, []]}', "its score is 1.01, expected at most 1"),
        ('{"temporal_style": [-1.1, []]}', "its score is -1.1, expected at least -1"),
        ('{"color": {"a": 1}}', "not a number"),
        ('{"color": []}', "not a number"),
        ('{"color": [0.5, {}]}', "not a list of an overall score and its videos"),
        ('{"color": [0.5, [], 3]}', "not a list of an overall score and its videos"),
        (with_rows("color", 0.6, ROWS), "its score is 0.6, but the mean of its videos is 0.5"),
        (with_rows("scene", 0.8, ROWS), "its score is 0.8, but the mean of its videos is 0.5"),
        (with_rows("color", 0.5, ROWS.replace("0.25", "null")), "'a-0.mp4' has the value None, not a number"),
        (with_rows("color", 0.5, ROWS.replace("0.25", "true")), "'a-0.mp4' has the value True, not a number"),
        (with_rows("color", 0.5, ROWS.replace("0.25", '"x"')), "'a-0.mp4' has the value 'x', not a number"),
        (with_rows("color", 0.5, ROWS.replace("0.25", "-0.5")), "'a-0.mp4' has the value -0.5, expected at least 0"),
        (with_rows("imaging_quality", 0.5, ROWS.replace("0.25", "130")), "has the value 130, expected at most 100"),
        (with_rows("color", 0.5, ROWS.replace("a-1", "/b/a-0")), "it has the video 'a-0.mp4' twice"),
        (with_rows("color", 0.5, ROWS.replace('"a-1.mp4"', "3")), "a video_path is 3, expected a file's"),
        ('{"color": 0.5, "color": 0.6}', "it has 'color' 2 times"),
        ('{"human_action": 0.5, "human action": 0.5}', "it has human_action twice"),
        ('{"color": [0.5, [{"video_path": "a", "video_path": "b", "video_results": 0.5}]]}', "'video_path' 2 times"),
        ('{"color": "\\ud800"}', "surrogates not allowed"),
        ("[" * 100_000, "nested too deeply"),
        ('{"color": ' + 400 * "[" + 400 * "]" + "}", "nested too deeply"),
        ('{"dimension": "color", "score": 0.5}', "it lacks videos, complete"),
        ('{"dimension": "color", "score": 0.5, "videos": [], "complete": true}', "its videos are []"),
        ('{"dimension": "color", "score": true, "videos": {}, "complete": true}', "score is True, expected a float"),
        ('{"dimension": "color", "score": 0.5, "videos": {"a-0.mp4": null}, "complete": true}', "value None, not a"),
        ('{"dimension": "color", "score": 0.5, "videos": {"a-0.mp4": 0.9}, "complete": true}', "mean of its videos is"),
        ('{"dimension": "color", "score": 0.5, "videos": {}, "complete": 1}', "complete is 1, expected a bool"),
        ('{"dimension": ["color"], "score": 0.5, "videos": {}, "complete": true}', "no dimension of VBench"),
    ],
)
def test_what_is_no_score_is_named_and_left_out(tmp_path, capsys, said, why):
    path = tmp_path / "a_eval_results.json"
    path.write_text(said)
    line = refused(capsys, ["aggregate", path])
    assert why in line and str(path) in line
    (tmp_path / "b_eval_results.json").write_text('{"object_class": 0.5}')
    results = read_results(tmp_path)  # what else is there counts
    assert results.scores["object_class"].score == 0.5 and len(results.problems) == 1
    assert all(result.score is None for name, result in results.scores.items() if name != "object_class")


def test_yes_and_no_are_values_where_the_package_writes_them(tmp_path):
    rows = ROWS.replace("0.25", "false").replace("0.75", "true")
    write_results(tmp_path / "a", {"human_action": [0.5, json.loads(rows)]})
    assert read_results(tmp_path / "a").scores["human_action"].videos == {"a-0.mp4": 0.0, "a-1.mp4": 1.0}


def test_the_interval_of_a_total_holds_what_runs_of_a_model_have_on_average():
    """Dimensions of the same prompts; a model whose scores are 0.6 on average."""
    random, held = np.random.default_rng(0), 0
    truth = combine(dict.fromkeys(DIMENSIONS, 0.6)).total
    for _ in range(200):
        level, scores = random.normal(0, 0.05, 20), {}
        for name, about in DIMENSIONS.items():
            drawn = about.unit * (0.6 + level[:, None] + random.normal(0, 0.05, (20, 2)))
            files = {f"{i}-{j}.mp4": float(drawn[i, j]) for i in range(20) for j in range(2)}
            scores[name] = Result(name, float(drawn.mean() / about.unit), files, True)
        found = find_intervals(Results(scores))
        assert found["total"].mean == pytest.approx(combine({x: one.score for x, one in scores.items()}).total)
        held += found["total"].low <= truth <= found["total"].high
    assert 0.9 <= held / 200 <= 0.99


def test_results_of_windows_pair_with_others(tmp_path):
    """Its paths have backslashes, and its editors put a mark before the text."""
    rows = json.dumps([{"video_path": f"C:\\videos\\a-{i}.mp4", "video_results": 0.5} for i in range(2)])
    (tmp_path / "a_eval_results.json").write_text(with_rows("color", 0.5, rows), encoding="utf-8-sig")
    assert [*read_results(tmp_path).scores["color"].videos] == ["a-0.mp4", "a-1.mp4"]


def test_two_files_of_a_dimension_are_one_where_they_agree(tmp_path):
    (tmp_path / "a_eval_results.json").write_text('{"color": 0.5}')
    (tmp_path / "b_eval_results.json").write_text(with_rows("color", 0.5, ROWS))
    results = read_results(tmp_path)
    assert results.problems == () and len(results.scores["color"].videos) == 2
    (tmp_path / "c_eval_results.json").write_text(with_rows("color", 0.5, ROWS.replace("0.25", "0.5")[:-1] + "]"))
    assert read_results(tmp_path).scores["color"].videos == {"a-0.mp4": 0.25, "a-1.mp4": 0.75}


def test_weights_are_kept_where_videos_weigh_unequally(tmp_path):
    said = draw_official("scene", 1, even=False)
    result = read_results(Path(write_results(tmp_path / "a", {"scene": said}))).scores["scene"]
    assert mean(result.videos, result.weights) == pytest.approx(result.score, abs=1e-9)
    assert abs(mean(result.videos, {}) - result.score) > 1e-4
    write_json(tmp_path / "run/scores/scene.json", asdict(result))
    assert read_results(tmp_path / "run").scores["scene"] == result


# runs of other videos


def test_rows_of_other_videos_say_so_and_signs_that_differ_are_named(tmp_path, capsys):
    first, other = full_results(), full_results()
    best = sorted(other["color"][1], key=lambda row: -row["video_results"])[:200]
    other["color"][1] = [{**row, "video_results": row["video_results"] - 0.02} for row in best]
    other["color"][0] = sum(row["video_results"] for row in other["color"][1]) / 200
    runs = open_runs([f"a={write_results(tmp_path / 'a', first)}", f"b={write_results(tmp_path / 'b', other)}"])
    found = compare_runs(runs)["b"]
    color = found["color"]
    assert color.mean < 0 < other["color"][0] - first["color"][0]
    assert (color.videos, color.only_first, color.only_other) == (200, 225, 0)
    assert (found["total"].only_first, found["scene"].only_first) == (225, 0)
    command(["compare", str(tmp_path / "a"), str(tmp_path / "b"), f"--out={tmp_path / 'out'}"])
    said = capsys.readouterr().out
    assert "Signs differ in color, semantic, total: the pairs say otherwise" in said
    assert re.search(r"\n\| color \|.* \| worse \| \S+ \| 200 \| 82 \| 225 \| 0 \|\n", said)
    assert re.search(r"\n\| scene \|.* \| not told apart \| \S+ \| 430 \| 86 \| 0 \| 0 \|\n", said)
    assert json.loads((tmp_path / "out/compare.json").read_text())["contradictions"]["b"][0] == "color"
    assert "Signs differ" not in describe_comparison(runs[:1] * 2, {"a": compare_runs(runs[:1] * 2)["a"]})


def test_a_quick_run_gets_no_verdict(tmp_path):
    names = [f"p{i}-0.mp4" for i in range(12)]
    for label, value in (("a", 0.2), ("b", 0.8)):
        write_plan(tmp_path / label / "plan.json", plan_of(*names, quick=12 if label == "b" else None))
        write_score(tmp_path / label, "scene", value, videos=dict.fromkeys(names, value))
    runs = open_runs([str(tmp_path / "a"), str(tmp_path / "b")])
    found = compare_runs(runs)["b"]["scene"]
    assert found.verdict == "a quick run" and found.low > 0 and found.p < 0.05
    assert "a quick run" in describe_comparison(runs, {"b": {"scene": found}})
