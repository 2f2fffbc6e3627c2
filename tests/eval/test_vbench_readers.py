"""What is read of a run and of others' results: what can be a score, and files of all kinds of wrong."""

import json
import os
import random
import re
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from eval.reading import parse, parse_json, read_bytes, shape, write_json
from eval.vbench.__main__ import command
from eval.vbench.aggregate import combine, find_intervals
from eval.vbench.cache import Cache
from eval.vbench.check import Findings, Seen, read_seen
from eval.vbench.compare import compare_runs, describe_comparison, open_runs
from eval.vbench.report import collect, describe_report, to_dict
from eval.vbench.results import Results, read_results
from eval.vbench.suite import DIMENSIONS, load_suite, read_plan, write_plan
from eval.vbench.values import Result, mean
from tests.helpers.vbench_suite import (
    full_results,
    plan_of,
    refused,
    write_results,
    write_score,
    write_suite,
    write_wheel,
)

# what the official package writes


def draw_official(name, gpus, even, seed=0):
    """A dimension's [overall, videos] as vbench 0.1.5 forms them, of made-up frames; even: of as many each."""
    rng, about, rows, frames = np.random.default_rng(seed), DIMENSIONS[name], [], []
    for i in range(about.prompts):
        for j in range(5):
            count = 16 if even else int(rng.integers(2, 60))
            values = about.unit * rng.uniform(0.1, 0.9, count)
            row = {"video_path": f"/data/a {name} {i}-{j}.mp4", "video_results": float(values.mean())}
            if name in ("dynamic_degree", "human_action"):
                row["video_results"] = bool(values[0] > 0.4)
            if name == "background_consistency":
                row |= {"video_sim": float(values.sum()), "cnt_per_video": count}
            if name in ("object_class", "multiple_objects", "scene"):
                row |= {"frame_count": count}
            if name in ("appearance_style", "spatial_relationship"):
                row |= {"frame_results": values.tolist()}
            if name == "appearance_style":
                row |= {"cur_sim": float(values[-1])}
            rows.append(row)
            frames.append(count)
    values = np.array([float(row["video_results"]) for row in rows])
    by_frame = about.framed and (gpus == 1 or name not in ("subject_consistency", "spatial_relationship"))
    overall = np.average(values, weights=frames) if by_frame else values.mean()
    if name == "appearance_style" and gpus > 1:
        overall = np.mean([row["cur_sim"] for row in rows])
    return [float(overall) / about.unit, rows]


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


ROWS = '[{"video_path": "a-0.mp4", "video_results": 0.25}, {"video_path": "a-1.mp4", "video_results": 0.75}]'


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


# files of all kinds of wrong


def write_zip(path, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as packed:
        for name in ("scene", "color"):
            packed.writestr(f"{name}_eval_results.json", json.dumps({name: 0.5}))
    return path


def spoil(data, kind):
    """A zip that is encrypted, packed by an unknown method, of wrong content, cut short, or that claims to be huge."""
    data, central = bytearray(data), data.index(b"PK\x01\x02")
    if kind == "encrypted":
        data[6] |= 1
        data[central + 8] |= 1
    if kind == "method":
        data[8] = data[central + 10] = 77
    if kind == "content":
        data[14] ^= 255
        data[central + 16] ^= 255
    if kind == "cut":
        del data[-40:]
    if kind == "huge":
        data[central + 24 : central + 28] = (2**31).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize(
    ("kind", "whole", "why"),
    [
        ("encrypted", False, "needs a password"),
        ("method", False, "compression method is not supported"),
        ("content", False, "Bad CRC-32"),
        ("cut", True, "can't be unpacked (File is not a zip file)"),
        ("huge", True, "bytes, expected at most"),
    ],
)
def test_a_zip_that_cant_be_unpacked_is_named(tmp_path, capsys, kind, whole, why):
    path = write_zip(tmp_path / "a.zip")
    path.write_bytes(spoil(path.read_bytes(), kind))
    if whole:
        line = refused(capsys, ["aggregate", path])
        assert why in line and str(path) in line
    else:  # the first of two files
        results = read_results(path)
        assert [*results.scores] == ["color"] and why in results.problems[0]
        assert f"{path}:scene_eval_results.json" in results.problems[0]
    wheel = write_wheel(tmp_path / "a.whl")
    with zipfile.ZipFile(wheel) as packed:
        text = packed.read("vbench/VBench_full_info.json")
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("vbench/VBench_full_info.json", text)
    wheel.write_bytes(spoil(wheel.read_bytes(), kind))
    line = refused(capsys, ["plan", f"--suite={wheel}", f"--out={tmp_path / 'run'}"])
    assert why in line and str(wheel) in line


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_in_a_zip_are_both_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for score in (0.5, 0.6):
            packed.writestr("scene_eval_results.json", json.dumps({"scene": score}))
    results = read_results(tmp_path / "a.zip")
    assert results.scores["scene"].score is None and "both score scene, differently" in results.problems[0]


def test_what_is_written_over_a_folder_or_a_device_is_refused_in_a_line(tmp_path, capsys):
    path = write_results(tmp_path / "a", {"scene": 0.5})
    (tmp_path / "folder").mkdir()
    assert f"{tmp_path / 'folder'} can't be replaced (Is a directory)" in refused(
        capsys, ["aggregate", path, f"--json={tmp_path / 'folder'}"]
    )
    assert "/dev/null is a device" in refused(capsys, ["aggregate", path, "--json=/dev/null"])
    assert "/proc/x/a.json can't be written" in refused(capsys, ["aggregate", path, "--json=/proc/x/a.json"])
    assert f"{path}/x_eval_results.json/a can't be" in refused(
        capsys, ["aggregate", path, f"--json={path}/x_eval_results.json/a"]
    )
    command(["aggregate", path, f"--json={tmp_path / 'new/folder/a.json'}"])
    assert json.loads((tmp_path / "new/folder/a.json").read_text())["dimensions"]["scene"]["score"] == 0.5


@pytest.mark.parametrize("place", ["a folder", "a device", "a pipe", "a loop"])
@pytest.mark.parametrize("name", ["plan.json", "scores/scene.json", "cache/scene.jsonl"])
def test_what_is_no_file_is_named(run, capsys, place, name):
    file = run / name
    file.unlink()
    make = {"a folder": file.mkdir, "a device": lambda: file.symlink_to("/dev/zero"),
            "a pipe": lambda: os.mkfifo(file), "a loop": lambda: file.symlink_to(file)}  # fmt: skip
    make[place]()
    with pytest.raises(ValueError, match=name.split("/")[-1]):
        READERS[name](run)


def test_what_can_be_made_again_is_left_with_a_warning(run, caplog, name="seen.json"):
    for text in ("null", "[]", "3", "{", '{"a": 1}', "[" * 100_000):
        (run / name).write_text(text)
        assert not READERS[name](run) and f"{name} can't be used" in caplog.text
        caplog.clear()
    (run / name).unlink()
    (run / name).mkdir()
    assert not READERS[name](run) and "is a folder, expected a file" in caplog.text


# fuzzing

SCORES = {"a-0.mp4": 0.25, "a-1.mp4": 0.75}
OTHERS = (None, [], {}, 0, -1, 3.5, 1e308, True, "", "x", "../x", [[]], {"a": []}, float("nan"), float("inf"), 10**400)


@pytest.fixture
def run(tmp_path):
    """A run with each kind of file, and others beside it."""
    tmp_path /= "run"
    tmp_path.mkdir()
    plan = plan_of("a-0.mp4", "a-1.mp4")
    write_plan(tmp_path / "plan.json", plan)
    findings = Findings(2, 2, ("a-1.mp4",), 0, {"b": "c"}, {}, ("a-0.mp4",), {"x": ""})
    write_json(tmp_path / "check.json", asdict(findings))
    write_json(tmp_path / "seen.json", {"a-0.mp4": asdict(Seen(["x", 3, 5], 4, 16, 16, 8.0, None))})
    result = Result("scene", 0.5, SCORES, True, ("a",), {"a": "b"}, None, {"name": "x"}, "note", "0", {})
    write_json(tmp_path / "scores/scene.json", asdict(result))
    write_json(tmp_path / "records/a-0.json", {"name": "a-0", "prompt": "a", "seed": 0, "steps": 2})
    cache = Cache(tmp_path / "cache", "scene", {})
    for name, value in SCORES.items():
        cache.add(name, "0", value, 16.0)
    write_results(
        tmp_path.parent / "official", {"scene": draw_official("scene", 1, False), "color": [0.5, json.loads(ROWS)]}
    )
    write_zip(tmp_path / "a.zip")
    write_suite(tmp_path / "suite.json")
    write_wheel(tmp_path / "suite.whl")
    return tmp_path


def read_whole(path):
    """As `aggregate` does, and what it makes of it."""
    found = collect(path)
    return "\n".join(describe_report(found)).encode(), json.dumps(to_dict(found), ensure_ascii=False).encode()


READERS = {
    "plan.json": lambda run: read_plan(run / "plan.json"),
    "check.json": lambda run: parse(Findings, read_bytes(run / "check.json")),
    "seen.json": lambda run: read_seen(run / "seen.json"),
    "scores/scene.json": read_whole,
    "records/a-0.json": read_whole,
    "cache/scene.jsonl": lambda run: Cache(run / "cache", "scene", {}).find("a-0.mp4", "0"),
    "../official/x_eval_results.json": lambda run: read_whole(run.parent / "official"),
    "a.zip": lambda run: read_whole(run / "a.zip"),
    "suite.json": lambda run: load_suite(run / "suite.json"),
    "suite.whl": lambda run: load_suite(run / "suite.whl"),
}


def mutate(data, draw):
    """Cut short, some bytes changed, or a part of the JSON replaced by other JSON."""
    kind = draw.choice(("cut", "flip", "part", "part", "part"))
    if kind == "cut":
        return data[: draw.randrange(len(data))]
    if kind == "part":
        try:
            said = json.loads(data)
        except ValueError:
            kind = "flip"
        else:
            return json.dumps(replace_part(said, draw)).encode()
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def replace_part(said, draw):
    if not isinstance(said, (dict, list)) or not said or draw.random() < 0.15:
        return draw.choice(OTHERS)
    keys = [*said] if isinstance(said, dict) else [*range(len(said))]
    key = draw.choice(keys)
    changed = said.copy()
    if draw.random() < 0.1:
        del changed[key]
    else:
        changed[key] = replace_part(said[key], draw)
    return changed


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_anything_is_read_or_refused_in_a_line(run, name):
    """Only ValueError comes out; and what is taken is a score."""
    draw, data = random.Random(name), (run / name).read_bytes()
    assert READERS[name](run) is not None  # as it should be, it is read
    refusals = 0
    for _ in range(150):
        (run / name).write_bytes(mutate(data, draw))
        try:
            found = READERS[name](run)
        except ValueError as error:
            refusals += 1
            assert len(str(error).splitlines()) == 1, error
        else:
            if isinstance(found, tuple) and found and isinstance(found[-1], bytes):
                scores = [one["score"] for one in parse_json("it", found[-1])["dimensions"].values()]
                assert all(score is None or -1.002 <= score <= 1.002 for score in scores)
    assert refusals > 20 or name in ("check.json", "seen.json", "cache/scene.jsonl", "records/a-0.json")


def test_shapes_are_those_of_the_fields():
    with pytest.raises(ValueError, match=r"it.videos is \[\], expected a dict"):
        shape("it", Result, {"dimension": "scene", "videos": []})
    with pytest.raises(ValueError, match="it lacks dimension"):
        shape("it", Result, {})
    with pytest.raises(ValueError, match="it has an unknown beauty"):
        shape("it", Result, {"dimension": "scene", "beauty": 1})
    with pytest.raises(ValueError, match=r"it.missing\[0\] is 3, expected a text"):
        shape("it", Result, {"dimension": "scene", "missing": [3]})
    assert shape("it", Result, {"dimension": "scene", "missing": ["a"]}).missing == ("a",)
