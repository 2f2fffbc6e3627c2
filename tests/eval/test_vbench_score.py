"""Scores of a run: what scores each dimension, what is kept, and what goes wrong, with a stand-in for the package."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from docs.make.parity import Case, write_case
from eval.vbench.__main__ import score as score_command
from eval.vbench.flicker import VERSION, score_flicker
from eval.vbench.official import ScorerFailed, ScorerOptions, _read_line, open_scorer
from eval.vbench.preflight import check
from eval.vbench.score import score
from eval.vbench.scorer_env import check_python, setup_command
from eval.vbench.suite import DIMENSIONS, FLICKER, Plan, Planned, write_plan
from eval.vbench.weights import STATIC_FILTER
from tests.helpers.fake_vbench import WEIGHTS, behave, build_environment, put_weights, read_calls
from tests.helpers.vbench_suite import trust_weights
from train.common.videos import write_video

SUITE = [
    {"prompt_en": "a cat", "dimension": ["subject_consistency", "dynamic_degree", "motion_smoothness"]},
    {"prompt_en": "a dog/hound", "dimension": ["imaging_quality"]},
    {"prompt_en": "a street, still", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a red car", "dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}},
    {"prompt_en": "a bird", "dimension": ["subject_consistency", "dynamic_degree", "motion_smoothness"]},
]
SUITE[1]["prompt_en"] = "a dog"


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return build_environment(tmp_path_factory.mktemp("scorer"), SUITE)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    trust_weights(monkeypatch)
    return put_weights(tmp_path / "weights")


@pytest.fixture(scope="module")
def made_videos(tmp_path_factory):
    """Three of each prompt, of which none has the other's bytes."""
    folder = tmp_path_factory.mktemp("videos")
    random = torch.Generator().manual_seed(0)
    for entry in SUITE:
        for index in range(3):
            pixels = torch.rand(3, 3 + index, 16, 16, generator=random) * 2 - 1
            write_video(folder / f"{entry['prompt_en']}-{index}.mp4", pixels, 8)
    return folder


@pytest.fixture
def videos(made_videos, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for file in made_videos.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def plan_of(dimensions=tuple(DIMENSIONS), count=3):
    videos = [
        Planned(f"{entry['prompt_en']}-{index}.mp4", entry["prompt_en"], index, index, tuple(entry["dimension"]))
        for entry in SUITE
        for index in range(count)
    ]
    return Plan("", tuple(dimensions), None, tuple(videos))


def read_score(out, dimension):
    return json.loads((out / "scores" / f"{dimension}.json").read_text())


def test_videos_of_more_than_8_bits_are_pointed_out(tmp_path):
    with av.open(str(tmp_path / "a street, still-0.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p10le"
        for shade in (50, 60):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p10le")))
        container.mux(stream.encode())
    said = score(tmp_path, plan_of((FLICKER,), 1), tmp_path / "run")[FLICKER]
    assert said.complete and "more than 8 bits, whose official score differs from the third digit on: 1" in said.note


# the official package, in a stand-in environment


def test_scores_are_what_the_official_package_gives_for_all_videos_at_once(python, weights, videos, tmp_path):
    dimensions = ("subject_consistency", "dynamic_degree", "imaging_quality", "color")
    behave(weights, marked=["a cat-0.mp4", "a red car-1.mp4"])
    results = score(videos, plan_of(dimensions), tmp_path, None, ScorerOptions(python, weights, "cpu"))
    code = f"import vbench; vbench.VBench('cpu', vbench.__path__[0] + '/VBench_full_info.json', {str(tmp_path)!r})"
    code += f".evaluate({str(videos)!r}, 'all', dimension_list={list(dimensions)}, local=True)"
    environment = {**os.environ, "VBENCH_CACHE_DIR": str(weights)}
    patched = f"import torch; load = torch.load; torch.load = lambda path: load(path, 'cpu', False); {code}"
    subprocess.run([python, "-I", "-c", patched], env=environment, check=True)
    official = json.loads((tmp_path / "all_eval_results.json").read_text())
    for dimension, (overall, rows) in official.items():
        said = read_score(tmp_path, dimension)
        assert said["score"] == results[dimension].score == pytest.approx(overall, abs=1e-12)
        assert said["videos"] == {Path(row["video_path"]).name: row["video_results"] for row in rows}
        assert said["complete"] and not said["missing"] and said["filtered"] is None
        assert (said["scorer"]["name"], said["scorer"]["version"]) == ("vbench", "0.1.5")
    assert "since no such object was seen: 1" in read_score(tmp_path, "color")["note"]
    values = read_score(tmp_path, "subject_consistency")
    assert values["score"] != pytest.approx(np.mean(list(values["videos"].values())), abs=1e-6)  # frames weigh


def test_what_is_missing_is_named_and_the_rest_goes_on(python, weights, videos, tmp_path, capsys, caplog):
    (videos / "a cat-0.mp4").write_bytes(b"not a video")
    write_case(videos / "a cat-1.mp4", Case("yuv420p", 32, 32, 1), 0)
    (videos / "a bird-2.mp4").rename(videos / "a bird_2.mp4")
    (videos / "notes.txt").touch()
    behave(weights, **{"raise": ["a bird-1.mp4"]})
    plan = plan_of(("subject_consistency", "imaging_quality"))
    score(videos, plan, tmp_path, None, ScorerOptions(python, weights, "cpu"))
    said = read_score(tmp_path, "subject_consistency")
    assert said["missing"] == ["a cat-0.mp4", "a cat-1.mp4", "a bird-1.mp4", "a bird-2.mp4"] and not said["complete"]
    assert sorted(said["videos"]) == ["a bird-0.mp4", "a cat-2.mp4"] and 0 <= said["score"] <= 1
    assert "can't be decoded" in said["errors"]["a cat-0.mp4"]
    assert said["errors"]["a cat-1.mp4"] == "has one frame, expected at least two"
    assert said["errors"]["a bird-1.mp4"] == "RuntimeError: it fell over"
    assert read_score(tmp_path, "imaging_quality")["complete"]
    assert "not in the plan, and are left alone: 1 (a bird_2.mp4)" in caplog.text
    assert "incomplete, missing: 4" in capsys.readouterr().out


def test_a_video_that_kills_the_scorer_is_named(python, weights, videos, tmp_path):
    behave(weights, abort=["a cat-1.mp4"])
    score(videos, plan_of(("dynamic_degree",)), tmp_path, None, ScorerOptions(python, weights, "cpu"))
    said = read_score(tmp_path, "dynamic_degree")
    assert said["missing"] == ["a cat-1.mp4"] and len(said["videos"]) == 5
    assert "ended with code -6" in said["errors"]["a cat-1.mp4"]
    assert sorted(read_calls(weights)) == sorted(f"dynamic_degree {prompt}-{i}.mp4" for prompt in ("a cat", "a bird")
                                                 for i in range(3))  # fmt: skip


def test_a_scorer_that_cannot_start_fails_its_dimension_alone(python, weights, videos, tmp_path, monkeypatch):
    environment = build_environment(tmp_path / "broken", SUITE)
    next((tmp_path / "broken").glob("lib/*/site-packages/vbench/dynamic_degree.py")).write_text("import nothing_such")
    score(
        videos,
        plan_of(("dynamic_degree", "imaging_quality")),
        tmp_path,
        None,
        ScorerOptions(environment, weights, "cpu"),
    )
    said = read_score(tmp_path, "dynamic_degree")
    assert said["score"] is None and not said["complete"] and "nothing_such" in said["note"]
    assert read_score(tmp_path, "imaging_quality")["complete"]


def test_a_link_to_nowhere_is_a_missing_video(videos, tmp_path):
    name = "a street, still-0.mp4"
    (videos / name).unlink()
    (videos / name).symlink_to(tmp_path / "nowhere.mp4")
    said = score(videos, plan_of((FLICKER,)), tmp_path / "run")[FLICKER]
    assert said.missing == (name,) and len(said.videos) == 2 and not said.complete


def test_a_value_that_cant_be_is_no_score(python, weights, videos, tmp_path):
    """Not now, and not from the cache; what the others are worth stays known."""
    environment = build_environment(tmp_path / "high", SUITE)
    module = next((tmp_path / "high").glob("lib/*/site-packages/vbench/imaging_quality.py"))
    module.write_text(module.read_text().replace("100 * look", "(9e4 if 'dog-1' in path else 50) + 0 * look"))
    plan = plan_of(("imaging_quality",))
    said = score(videos, plan, tmp_path, None, ScorerOptions(environment, weights, "cpu"))["imaging_quality"]
    assert said.missing == ("a dog-1.mp4",) and said.score == 0.5 and not said.complete
    assert said.errors == {"a dog-1.mp4": "the official score is 90000.0, expected at most 100"}
    cache = tmp_path / "scores/cache/imaging_quality.jsonl"
    assert cache.read_text().count("\n") == 2
    cache.write_text(cache.read_text().replace("50.0", "9e4"))
    assert read_calls(weights) and score(videos, plan, tmp_path, None, ScorerOptions(environment, weights, "cpu"))
    assert len(read_calls(weights)) == 3


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "null",
        "[]",
        "{}",
        '{"start": "b"}',
        '{"start": ["a"]}',
        '{"name": "a"}',
        '{"name": "a", "value": 1}',
    ],
)
def test_a_scorer_that_says_something_else_has_failed(line):
    with pytest.raises(ScorerFailed, match="the scorer said .*, expected a video and its value"):
        _read_line(line, ["a"], None)
    assert _read_line('{"name": "a", "value": 1, "weight": 2}', ["a"], None)["weight"] == 2


def test_a_python_that_says_something_else_is_no_environment(tmp_path):
    other = tmp_path / "python"
    for said in ("null", "hello", '{"versions": 3}', "\\377"):
        other.write_text(f"#!/bin/sh\nprintf '{said}'\n")
        other.chmod(0o755)
        with pytest.raises(ValueError, match="can't be used .*expected the Python of an environment with vbench"):
            open_scorer(other, "cpu", tmp_path)


@pytest.mark.parametrize(("behaviour", "reason"), [({}, "may not use the network"), ({"wget": True}, "wget")])
def test_nothing_is_downloaded(python, weights, videos, tmp_path, behaviour, reason):
    behave(weights, **behaviour)
    score(videos, plan_of(("motion_smoothness",)), tmp_path, None, ScorerOptions(python, weights, "cpu"))
    said = read_score(tmp_path, "motion_smoothness")
    assert said["score"] is None and not said["complete"]
    assert reason in said["note"] + str(said["errors"])
    assert "wget refused" in (tmp_path / "scores/logs/motion_smoothness.log").read_text() or not behaviour


# preflight


def test_preflight_names_what_is_missing(python, weights, tmp_path):
    scorer = open_scorer(python, "auto", weights)
    assert scorer.device == "cpu" and scorer.versions["vbench"] == "0.1.5"
    assert all(check(name, scorer).ready for name in ("dynamic_degree", "subject_consistency", "color"))
    assert check("dynamic_degree", None).problems[0].startswith("needs --scorer_python")
    (missing,) = check("background_consistency", scorer).problems
    assert missing == f"missing {weights}/clip_model/ViT-B-32.pt"
    os.truncate(weights / "raft_model/models/raft-things.pth", 21_107_999)
    (wrong,) = check(STATIC_FILTER, scorer).problems
    assert f"wrong size: {weights}/raft_model/models/raft-things.pth has 21,107,999 bytes, expected 21,108,000" in wrong
    os.truncate(weights / "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth", 900)
    assert "has 900 bytes, expected 108,503,300 at least" in check("imaging_quality", scorer).problems[0]
    bare = open_scorer(
        build_environment(tmp_path / "bare", SUITE, ("vbench", "vbench-0.1.5.dist-info")), "cpu", weights
    )
    put_weights(weights)
    assert check("dynamic_degree", bare).problems == (f"missing package vbench in the environment of {bare.python}",)
    plain = open_scorer(build_environment(tmp_path / "plain", SUITE, ("detectron2",)), "cpu", weights)
    assert "missing package detectron2" in check("color", plain).problems[0]


def test_every_dimension_has_its_needs():
    from eval.vbench.weights import NEEDS

    assert set(NEEDS) == {*DIMENSIONS, STATIC_FILTER}
    assert set(WEIGHTS) <= {weight.path for _, needs in NEEDS.values() for weight in needs}


def test_without_a_scorer_flicker_alone_is_scored(videos, tmp_path, capsys):
    results = score(videos, plan_of((FLICKER, "color")), tmp_path)
    assert results[FLICKER].complete and results[FLICKER].filtered is False
    assert "unfiltered" in results[FLICKER].note
    for name, value in results[FLICKER].videos.items():
        assert value == score_flicker(videos / name)
    assert results["color"].score is None and "--scorer_python" in results["color"].note
    assert read_score(tmp_path, "color")["complete"] is False
    shown = capsys.readouterr().out
    assert "setup-scorer" in shown and "1 of 2 dimensions complete" in shown


# the static filter


def test_the_first_five_static_videos_of_a_prompt_count(python, weights, videos, tmp_path):
    for index in range(3, 12):
        (videos / f"a street, still-{index}.mp4").write_bytes(
            (videos / f"a street, still-{index % 3}.mp4").read_bytes()
        )
    behave(weights, marked=["a street, still-1.mp4", "a street, still-11.mp4"])  # these move
    plan = plan_of((FLICKER,), 12)
    said = score(videos, plan, tmp_path, None, ScorerOptions(python, weights, "cpu"))[FLICKER]
    assert said.filtered and said.complete
    assert list(said.videos) == [f"a street, still-{i}.mp4" for i in (0, 2, 3, 4, 10)]  # by name, -10 comes before -2
    looked_at = [call.removeprefix("static_filter a street, still-") for call in read_calls(weights)]
    assert looked_at == [f"{i}.mp4" for i in (0, 1, 10, 11, 2, 3, 4)]
    assert said.score == pytest.approx(np.mean([score_flicker(videos / name) for name in said.videos]))
    again = score(videos, plan, tmp_path, None, ScorerOptions(python, weights, "cpu"))[FLICKER]
    assert again == said and read_calls(weights) == []
    behave(weights, marked=[f"a street, still-{i}.mp4" for i in range(10)])
    (tmp_path / "scores/cache/static_filter.jsonl").unlink()
    few = score(videos, plan, tmp_path, None, ScorerOptions(python, weights, "cpu"))[FLICKER]
    assert len(few.videos) == 2 and "prompts with fewer than 5 static videos: 1" in few.note


def test_the_official_five_count_without_the_filter(videos, tmp_path):
    for index in range(3, 8):
        (videos / f"a street, still-{index}.mp4").write_bytes((videos / "a street, still-0.mp4").read_bytes())
    said = score(videos, plan_of((FLICKER,), 8), tmp_path)[FLICKER]
    assert list(said.videos) == [f"a street, still-{i}.mp4" for i in range(5)] and said.filtered is False


# again


def test_a_rerun_scores_only_what_is_new(python, weights, videos, tmp_path):
    plan = plan_of(("dynamic_degree", "subject_consistency", FLICKER))
    first = score(videos, plan, tmp_path, None, ScorerOptions(python, weights, "cpu"))
    files = {name: (tmp_path / f"scores/{name}.json").read_bytes() for name in first}
    read_calls(weights)
    assert score(videos, plan, tmp_path, None, ScorerOptions(python, weights, "cpu")) == first
    assert read_calls(weights) == []
    assert {name: (tmp_path / f"scores/{name}.json").read_bytes() for name in first} == files
    (videos / "a cat-1.mp4").write_bytes((videos / "a bird-0.mp4").read_bytes())
    score(videos, plan, tmp_path, None, ScorerOptions(python, weights, "cpu"))
    assert sorted(read_calls(weights)) == ["dynamic_degree a cat-1.mp4", "subject_consistency a cat-1.mp4"]
    (weights / "raft_model/models/raft-things.pth").write_bytes(b"\1" * 21_108_000)  # other weights, other values
    score(videos, plan, tmp_path, ["dynamic_degree"], ScorerOptions(python, weights, "cpu"))
    assert len(read_calls(weights)) == 6


def test_an_interrupted_file_is_scored_again(python, weights, videos, tmp_path, caplog):
    plan = plan_of(("dynamic_degree",))
    first = score(videos, plan, tmp_path, None, ScorerOptions(python, weights, "cpu"))
    read_calls(weights)
    cache, file = tmp_path / "scores/cache/dynamic_degree.jsonl", tmp_path / "scores/dynamic_degree.json"
    cache.write_text(cache.read_text()[:-9])
    file.write_text(file.read_text()[:50])
    assert score(videos, plan, tmp_path, None, ScorerOptions(python, weights, "cpu")) == first
    assert len(read_calls(weights)) == 1 and "1 of 6 lines can't be read" in caplog.text
    file.write_text(file.read_text()[:50])
    assert score(videos, plan, tmp_path)["dynamic_degree"].score is None  # without the scorer
    assert "can't be read" in caplog.text


def test_a_score_stays_when_its_scorer_is_gone(python, weights, videos, tmp_path, caplog):
    plan = plan_of(("dynamic_degree",))
    first = score(videos, plan, tmp_path, None, ScorerOptions(python, weights, "cpu"))
    assert score(videos, plan, tmp_path) == first and "that score stays" in caplog.text
    (videos / "a cat-1.mp4").write_bytes((videos / "a bird-0.mp4").read_bytes())
    assert score(videos, plan, tmp_path)["dynamic_degree"].score is None


def test_a_killed_run_goes_on_where_it_was(python, weights, videos, tmp_path):
    plan = plan_of(("dynamic_degree",))
    expected = score(videos, plan, tmp_path / "whole", None, ScorerOptions(python, weights, "cpu"))
    read_calls(weights)
    behave(weights, slow=0.3)
    (tmp_path / "run").mkdir()
    write_plan(tmp_path / "run/plan.json", Plan(**{**vars(plan), "folder": str(videos)}))
    code = "from pathlib import Path; from eval.vbench.__main__ import score; "
    code += "from eval.vbench.official import ScorerOptions; "
    options = f"ScorerOptions(Path({str(python)!r}), Path({str(weights)!r}), 'cpu')"
    code += f"score(Path({str(tmp_path / 'run')!r}), {options})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
    cache = tmp_path / "run/scores/cache/dynamic_degree.jsonl"
    while not cache.exists() or cache.read_text().count("\n") < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = cache.read_text().count("\n")
    time.sleep(0.8)  # long enough for two more videos, if the scorer lived on
    assert not (tmp_path / "run/scores/dynamic_degree.json").exists()
    before = read_calls(weights)
    assert done <= len(before) <= done + 2  # the scorer may be a video ahead of what was kept
    behave(weights)
    score_command(tmp_path / "run", ScorerOptions(python, weights, "cpu"))
    assert len(read_calls(weights)) == 6 - done
    assert read_score(tmp_path / "run", "dynamic_degree") == json.loads(json.dumps(vars(expected["dynamic_degree"])))


# usage


def test_what_cannot_be_done_is_said_in_a_line(python, videos, tmp_path):
    plan = plan_of(("color",))
    with pytest.raises(ValueError, match="dimensions scene: the plan has color"):
        score(videos, plan, tmp_path, ["scene"])
    with pytest.raises(ValueError, match="no folder of videos"):
        score(tmp_path / "none", plan, tmp_path)
    with pytest.raises(ValueError, match="can't be used .*expected the Python of an environment with vbench"):
        score(videos, plan, tmp_path, None, ScorerOptions(tmp_path / "none"))
    with pytest.raises(ValueError, match="sees no GPU"):
        score(videos, plan, tmp_path, None, ScorerOptions(python, None, "cuda"))
    with pytest.raises(ValueError, match=r"no plan .*plan.json"):
        score_command(tmp_path, ScorerOptions())


def test_setting_up_wants_python_3_11(tmp_path):
    other = tmp_path / "python3.12"
    other.write_text("#!/bin/sh\necho 3.12\n")
    other.chmod(0o755)
    with pytest.raises(ValueError, match=r"python3.12 is Python 3.12: expected a Python 3.11"):
        check_python(str(other))
    with pytest.raises(ValueError, match="can't be run .*expected a Python 3.11"):
        check_python(str(tmp_path / "none"))
    other.write_text("#!/bin/sh\necho 3.11\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="is not empty"):
        setup_command(tmp_path / "full", str(other))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_setting_up_that_is_stopped_leaves_nothing_at_work(tmp_path, number):
    other, works = tmp_path / "python3.11", tmp_path / "works"
    lines = ["#!/bin/sh", '[ "$1" = -c ] && echo 3.11 && exit', f"echo $$ > {works}.part", f"mv {works}.part {works}"]
    other.write_text("\n".join([*lines, "exec sleep 600"]))
    other.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "eval.vbench", "setup-scorer", str(tmp_path / "env"), f"--python={other}"],
        cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: [signal.signal(x, signal.SIG_DFL) for x in (signal.SIGINT, signal.SIGHUP)],
    )  # fmt: skip
    while not works.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == "error: stopped; the same command goes on with what is missing\n"
    place, begun = Path(f"/proc/{int(works.read_text())}"), time.monotonic()
    while place.exists() and time.monotonic() < begun + 20:
        time.sleep(0.1)  # the system clears it away in its own time
    assert process.returncode == 128 + number and not place.exists()


def test_the_native_scorer_is_named(videos, tmp_path):
    said = score(videos, plan_of((FLICKER,)), tmp_path)[FLICKER].scorer
    assert (said["name"], said["version"], said["av"]) == ("native", VERSION, av.__version__)
