"""VBench around its scorers, which test_vbench_score.py has: plan, generate, check, totals, comparison, report."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from vbench_suite import PROMPTS, entries, official, write_suite, write_wheel

import eval.vbench.check
import eval.vbench.plan
from eval.models import Clip
from eval.vbench.__main__ import command
from eval.vbench.aggregate import combine, normalise
from eval.vbench.check import check_videos
from eval.vbench.compare import open_runs
from eval.vbench.paired import compare, pair
from eval.vbench.plan import find_clashes, ignores_case, make_plan, name_video
from eval.vbench.results import Result, read_results
from eval.vbench.suite import DIMENSIONS, Plan, Planned, digest_suite, load_suite, read_plan, write_plan
from train.fit import main as fit
from train.videos import write_video

ROOT = Path(__file__).parent.parent
PUBLISHED = {
    "HunyuanVideo": "83.24 85.09 75.82 97.37 97.76 99.44 98.99 70.83 60.36 67.56 "
                    "86.10 68.55 94.40 91.60 68.68 53.88 19.80 23.89 26.44",
    "CogVideoX-5B": "81.61 82.75 77.04 96.23 96.52 98.66 96.92 70.97 61.98 62.90 "
                    "85.23 62.11 99.40 82.81 66.35 53.20 24.91 25.38 27.59",
    "Mira": "71.87 78.78 44.21 96.23 96.92 98.29 97.54 60.33 42.51 60.16 "
            "52.06 12.52 63.80 42.24 27.83 16.34 21.89 18.77 18.72",
}  # fmt: skip
SMALL = ["--steps=2", "--frames=4", "--height=16", "--width=16"]


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return write_suite(tmp_path_factory.mktemp("suite") / "VBench_full_info.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of one step on moving shapes."""
    run = tmp_path_factory.mktemp("trained") / "run"
    fit(["--config=configs/tiny.yaml", f"--run={run}", "--trainer.max_steps=1", "--trainer.val_check_interval=1",
         "--checkpoint.every_n_train_steps=1", "--data.val_clips=1", "--sample.steps=1", "--sample.count=1",
         "--model.val_levels=1", "--data.batch_size=1", "--data.height=16", "--data.width=16"])  # fmt: skip
    return run / "checkpoints/last.ckpt"


def options(suite, trained, out):
    return ["--config", "configs/vbench.yaml", f"--checkpoint={trained}", f"--suite={suite}", f"--out={out}",
            "--quick", "1", *SMALL]  # fmt: skip


def contents(folder, *names):
    return {name: (folder / name).read_bytes() for name in names}


REPORTS = ("report.md", "report.json", "report.html", "chart.png", "contact.png")


@pytest.fixture(scope="module")
def whole(suite, trained, tmp_path_factory):
    """A whole run, never stopped."""
    out = tmp_path_factory.mktemp("vbench") / "run"
    command(options(suite, trained, out))
    return out


def refused(capsys, arguments):
    """The one line in which the command refuses to go on."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        command([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


# ----------------------------------------------------------------------------------------------- suite and plan


def test_the_suite_is_found_in_files_wheels_packages_and_environments(suite, tmp_path):
    package = write_suite(tmp_path / "env/lib/python3.11/site-packages/vbench/VBench_full_info.json").parent
    wheel = write_wheel(tmp_path / "vbench-0.1.5-py3-none-any.whl")
    places = [suite, wheel, package, package.parent, tmp_path / "env", suite.parent]
    expected = load_suite(suite)
    assert len(expected) == 24 and len({entry.prompt for entry in expected}) == PROMPTS
    assert expected[10].auxiliary == {"color": {"color": "teal"}} and expected[0].auxiliary == {}
    for place in places:
        assert load_suite(place) == expected and digest_suite(place) == digest_suite(suite)
    assert "vbench" not in sys.modules


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{", "can't be read as JSON"),
        ("{}", "expected a list of VBench's prompts, found dict"),
        ('[{"prompt": "a"}]', "entry 0 has no prompt_en and dimension that can be used"),
        ('[{"prompt_en": "a", "dimension": ["beauty"]}]', "entry 0 is 'a' for ('beauty',)"),
        ('[{"prompt_en": " ", "dimension": ["scene"]}]', "expected a prompt and its dimensions"),
        ('[{"prompt_en": "\\ud800", "dimension": ["scene"]}]', "surrogates not allowed"),
    ],
)
def test_a_suite_that_is_none_is_refused(tmp_path, capsys, said, message):
    (tmp_path / "suite.json").write_text(said)
    assert message in refused(capsys, ["plan", f"--suite={tmp_path / 'suite.json'}", f"--out={tmp_path / 'out'}"])


def test_five_videos_a_prompt_and_twenty_five_for_flicker(suite):
    plan = make_plan(suite)
    assert len(plan.videos) == 21 * 5 + 2 * 25 and len({video.seed for video in plan.videos}) == len(plan.videos)
    names = [video.name for video in plan.videos if video.prompt == "boathouse"]
    assert names == [f"boathouse-{i}.mp4" for i in range(5)]
    flicker = [video for video in plan.videos if video.dimensions == ("temporal_flickering",)]
    assert len(flicker) == 50 and {video.index for video in flicker} == {*range(25)}
    assert len(plan.expected("temporal_flickering")) == 10 and len(plan.expected("imaging_quality")) == 20
    (both,) = {video.dimensions for video in plan.videos if video.prompt == "A quiet harbour, woodcut"}
    assert both == ("aesthetic_quality", "imaging_quality", "appearance_style", "overall_consistency")
    assert [dimension.prompts for dimension in DIMENSIONS.values()] == [
        72, 86, 75, 72, 72, 93, 93, 79, 82, 100, 85, 84, 86, 90, 100, 93]  # fmt: skip


def test_a_quick_run_has_some_of_the_full_runs_videos(suite, capsys, tmp_path):
    full = {video.name: video.seed for video in make_plan(suite).videos}
    quick = make_plan(suite, quick=1)
    assert len(quick.videos) == 11 and all(full[video.name] == video.seed for video in quick.videos)
    spread = make_plan(suite, ["imaging_quality"], quick=2)
    assert [video.prompt for video in spread.videos] == ["a quiet harbour", "A quiet harbour"]
    command(["plan", f"--suite={suite}", "--quick", "1", f"--out={tmp_path}"])
    said = capsys.readouterr().out
    assert "11 videos of 11 prompts for 16 of 16 dimensions" in said and "NOT comparable" in said


def test_a_plan_is_read_as_it_was_written_and_kept(suite, tmp_path, capsys):
    long = tmp_path / "long.txt"
    long.write_text("\n".join(f"{entry['prompt_en']}, at length" for entry in entries()))
    plan = make_plan(suite, ["scene", "color"], prompt_map=long)
    assert plan.dimensions == ("color", "scene") and {video.long for video in plan.videos} >= {"boathouse, at length"}
    write_plan(tmp_path / "run/plan.json", plan)
    assert read_plan(tmp_path / "run/plan.json") == plan
    line = refused(capsys, ["plan", f"--suite={suite}", f"--out={tmp_path / 'run'}"])
    assert "is of a run with other dimensions, videos, prompt_map: choose another --out" in line
    (tmp_path / "run/plan.json").write_text('{"suite": "')
    line = refused(capsys, ["check", f"--out={tmp_path / 'run'}"])
    assert "plan.json is not a plan" in line and "remove it and plan again" in line
    assert "no plan" in refused(capsys, ["check", f"--out={tmp_path}"])


@pytest.mark.parametrize(("lines", "message"), [(24, None), (23, None), (25, "has 25 lines"), (0, "has 0 lines")])
def test_long_prompts_come_in_the_suites_order(suite, tmp_path, lines, message):
    (tmp_path / "long.txt").write_text("".join(f"long {i}\n" for i in range(lines)) + "\n")
    if message:
        with pytest.raises(ValueError, match=message):
            make_plan(suite, prompt_map=tmp_path / "long.txt")
        return
    long = {video.prompt: video.long for video in make_plan(suite, prompt_map=tmp_path / "long.txt").videos}
    prompts = list(dict.fromkeys(entry["prompt_en"] for entry in entries()))
    assert [*long] == prompts and long["A person is juggling"] == "long 5"
    assert long["boathouse"] == f"long {20 if lines == 24 else 19}"  # one prompt is there twice before
    (tmp_path / "long.txt").write_text("a\n\n" + "b\n" * 22)
    with pytest.raises(ValueError, match="line 2 is empty"):
        make_plan(suite, prompt_map=tmp_path / "long.txt")


def test_names_are_the_official_ones_and_never_leave_their_folder(tmp_path):
    assert name_video("Ein Café bei Nacht, close-up.", 3) == "Ein Café bei Nacht, close-up.-3.mp4"
    for prompt in ("../../etc/passwd", "/root", "a\\b", "..", ".hidden", "a\nb\0c", "é" * 400, "x" * 300, "a/b"):
        name = name_video(prompt, 24)
        assert (tmp_path / name).parent == tmp_path and Path(name).name == name and len(name.encode()) <= 244
        (tmp_path / name).touch()
    assert len(list(tmp_path.glob("[!.]*"))) == 9
    assert name_video("x" * 300, 0) != name_video("x" * 301, 0)


def test_prompts_that_would_have_one_name_are_refused(tmp_path):
    two = [{"prompt_en": prompt, "dimension": ["scene"]} for prompt in ("a/b", "a%2Fb")]
    with pytest.raises(ValueError, match="several prompts would be named a%2Fb-0.mp4"):
        make_plan(write_suite(tmp_path / "suite.json", two))


def test_file_systems_that_ignore_case_are_noticed(suite, tmp_path, capsys, monkeypatch):
    plan = make_plan(suite)
    assert find_clashes(plan.videos)[0] == ("a quiet harbour-0.mp4", "A quiet harbour-0.mp4")
    assert len(find_clashes(plan.videos)) == 5 and not ignores_case(tmp_path) and not list(tmp_path.iterdir())
    monkeypatch.setattr(eval.vbench.plan, "ignores_case", lambda folder: True)
    line = refused(capsys, ["plan", f"--suite={suite}", f"--out={tmp_path}"])
    assert "ignores case, where 'a quiet harbour-0.mp4' and 'A quiet harbour-0.mp4' and 4 more pairs are one" in line
    command(["plan", f"--suite={suite}", "--dimensions", "scene,color", f"--out={tmp_path}"])
    assert read_plan(tmp_path / "plan.json").dimensions == ("color", "scene")


# ----------------------------------------------------------------------------------------------- check


def save(path, frames=4, size=16, fps=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(len(path.name))
    write_video(path, torch.rand(3, frames, size, size) * 2 - 1, fps)


def plan_of(*names, clip=None, folder=None, quick=None):
    videos = tuple(
        Planned(name, name[:-6], i, int(name[-5]), ("scene", "background_consistency")) for i, name in enumerate(names)
    )
    return Plan("0", ("background_consistency", "scene"), quick, videos, folder, clip=clip)


def test_everything_wrong_with_a_folder_is_named_and_counted(tmp_path, capsys):
    names = [f"{word}-0.mp4" for word in ("good", "two words", "cut", "noise", "one", "long", "wide", "slow")]
    write_plan(tmp_path / "plan.json", plan_of(*names, clip=Clip(4, 16, 16, 8.0)))
    videos = tmp_path / "videos"
    for name in ("good-0.mp4", "two_words-0.mp4", "other-0.mp4"):
        save(videos / name)
    save(videos / "cut-0.mp4", 40, 64)
    data = (videos / "cut-0.mp4").read_bytes()
    (videos / "cut-0.mp4").write_bytes(data[: len(data) // 2])
    (videos / "noise-0.mp4").write_bytes(b"not a video")
    (videos / "notes.txt").touch()
    (videos / ".good-0.part.mp4").touch()
    save(videos / "one-0.mp4", frames=1)
    save(videos / "long-0.mp4", frames=5)
    save(videos / "wide-0.mp4", size=32)
    save(videos / "slow-0.mp4", fps=4)
    with pytest.raises(SystemExit) as stopped:
        command(["check", f"--out={tmp_path}"])
    assert stopped.value.code == 1
    said = json.loads((tmp_path / "check.json").read_text())
    assert (said["expected"], said["found"], said["missing"]) == (8, 7, ["two words-0.mp4"])
    assert said["unreadable"].keys() == {"cut-0.mp4", "noise-0.mp4"} and said["one_frame"] == ["one-0.mp4"]
    assert said["wrong"] == {
        "long-0.mp4": "5 frames, expected 4", "wide-0.mp4": "32x32, expected 16x16",
        "slow-0.mp4": "4 frames a second, expected 8",
    }  # fmt: skip
    assert said["stray"] == {
        ".good-0.part.mp4": "an unfinished video", "notes.txt": "", "other-0.mp4": "",
        "two_words-0.mp4": "may be meant as 'two words-0.mp4'",
    }  # fmt: skip
    out = capsys.readouterr().out
    assert "7 of 8 videos are there\n1 missing:\n  two words-0.mp4\n2 unreadable:" in out
    assert "4 not in the plan, not scored" in out


def test_only_what_changed_is_decoded_again(tmp_path, monkeypatch):
    plan = plan_of("a-0.mp4", "b-0.mp4", clip=Clip(4, 16, 16, 8.0))
    for name in ("a-0.mp4", "b-0.mp4"):
        save(tmp_path / "videos" / name)
    first, seen = check_videos(tmp_path, plan), []
    see = eval.vbench.check.see
    monkeypatch.setattr(eval.vbench.check, "see", lambda path: (seen.append(path.name), see(path))[1])
    assert first.complete and check_videos(tmp_path, plan) == first and seen == []
    save(tmp_path / "videos/b-0.mp4", frames=5)
    assert check_videos(tmp_path, plan).wrong and seen == ["b-0.mp4"]


def test_an_interrupted_check_keeps_what_it_has_seen(tmp_path, monkeypatch):
    names = [f"{i}-0.mp4" for i in range(9)]
    for name in names:
        save(tmp_path / "videos" / name)
    see, seen = eval.vbench.check.see, []

    def interrupt(path):
        seen.append(path.name)
        if path.name == "5-0.mp4":
            raise KeyboardInterrupt
        return see(path)

    monkeypatch.setattr(eval.vbench.check, "see", interrupt)
    with pytest.raises(KeyboardInterrupt):
        check_videos(tmp_path, plan_of(*names))
    seen.clear()
    monkeypatch.setattr(eval.vbench.check, "see", lambda path: (seen.append(path.name), see(path))[1])
    assert check_videos(tmp_path, plan_of(*names)).complete and sorted(seen) == names[5:]


def test_in_a_folder_from_elsewhere_most_videos_say_how_all_should_be(suite, tmp_path, capsys):
    folder = tmp_path / "theirs"
    for i in range(5):
        save(folder / f"boathouse-{i}.mp4")
        save(folder / f"hay barn-{i}.mp4", frames=6 if i == 2 else 4)
    before = sorted(folder.iterdir())
    shared = [f"--suite={suite}", f"--videos={folder}", f"--out={tmp_path / 'out'}", "--dimensions=[scene]"]
    command(["--name=Theirs", *shared])
    out = capsys.readouterr().out
    assert "10 of 10 videos are there" in out and "hay barn-2.mp4: 6 frames, expected 4" in out
    assert "# VBench: Theirs" in (tmp_path / "out/report.md").read_text() and sorted(folder.iterdir()) == before
    plan = read_plan(tmp_path / "out/plan.json")
    assert plan.folder == str(folder) and len(make_plan(suite, folder=folder).videos) == PROMPTS * 5
    save(folder / "In a still frame, a lamp-7.mp4")
    assert len(make_plan(suite, folder=folder).videos) == 21 * 5 + 2 * 25
    line = refused(capsys, ["generate", "--checkpoint=any", f"--out={tmp_path / 'out'}"])
    assert "is for videos that are there already" in line


# ----------------------------------------------------------------------------------------------- totals


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


def full_results(scale=1.0, seed=0):
    """As the official package would write them for the whole of VBench."""
    rng = np.random.default_rng(seed)
    values = {}
    for name, dimension in DIMENSIONS.items():
        middle, spread = (70.0, 5.0) if name == "imaging_quality" else (0.6, 0.05)
        files = [f"{name} {i}-{j}.mp4" for i in range(dimension.prompts) for j in range(5)]
        values[name] = dict(zip(files, (scale * rng.normal(middle, spread, len(files))).tolist(), strict=True))
    return official(values)


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


@pytest.mark.parametrize("content", [None, "{", "[]", "3", '{"scene": [0.5, [{"video_path": "a"}]]}'])
def test_files_without_scores(tmp_path, capsys, content):
    path = tmp_path / "a_eval_results.json"
    if content is None:
        assert "holds no scores" in refused(capsys, ["aggregate", tmp_path])
        assert "scores can't be read" in refused(capsys, ["aggregate", path])
    else:
        path.write_text(content)
        command(["aggregate", str(path)])
        assert "Withheld: Total, Quality, Semantic" in capsys.readouterr().out


def write_score(out, name, score, complete=True, **more):
    (out / "scores").mkdir(parents=True, exist_ok=True)
    said = {"dimension": name, "score": score, "videos": {}, "complete": complete, "missing": [], "filtered": None,
            "scorer": {}, "note": "", **more}  # fmt: skip
    (out / f"scores/{name}.json").write_text(json.dumps(said))


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
        write_score(tmp_path, name, 0.5, filtered=False if name == "temporal_flickering" else None)
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


# ----------------------------------------------------------------------------------------------- comparison


def write_results(folder, said):
    folder.mkdir(parents=True)
    (folder / "x_eval_results.json").write_text(json.dumps(said))
    return str(folder)


def test_paired_differences_are_of_the_same_videos(tmp_path):
    values = {f"p{i}-{j}.mp4": 50.0 + i for i in range(40) for j in range(5)}
    shifted = {name: value + 2 + (i % 7 - 3) / 10 for i, (name, value) in enumerate(values.items())}
    first = Result("imaging_quality", 0.7, values)
    other = Result("imaging_quality", 0.72, {**dict(reversed(shifted.items())), "only here-0.mp4": 99.0})
    difference, draws = pair(first, other)
    assert (difference.videos, difference.prompts) == (200, 40) and difference.mean == pytest.approx(0.02, abs=1e-4)
    assert difference.low < difference.mean < difference.high and difference.certain
    by_prompt = (
        np.array([shifted[f"p{i}-{j}.mp4"] - 50 - i for i in range(40) for j in range(5)]).reshape(40, 5).mean(1)
    )
    assert draws.std() == pytest.approx(by_prompt.std() / np.sqrt(40) / 100, rel=0.05)
    assert (difference.high - difference.low) / 2 == pytest.approx(1.96 * draws.std(), rel=0.05)
    same, _ = pair(first, first)
    assert (same.mean, same.low, same.high, same.certain) == (0, 0, 0, False)
    assert pair(first, other)[0] == difference  # the seed is fixed
    assert pair(first, Result("imaging_quality", 0.5, {"x-0.mp4": 1.0})) is None
    assert pair(Result("scene", 0.1, {"x-0.mp4": 0.1}), Result("scene", 0.3, {"x-0.mp4": 0.3}))[0].low is None


def test_an_interval_holds_the_true_difference_nineteen_times_in_twenty():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        prompts = rng.normal(0.01, 0.05, 60)
        other = {f"p{i}-{j}.mp4": prompts[i] + rng.normal(0, 0.02) for i in range(60) for j in range(5)}
        difference, _ = pair(Result("scene", 0, dict.fromkeys(other, 0.0)), Result("scene", 0, other))
        hits += difference.low < 0.01 < difference.high
    assert 88 <= hits <= 99  # videos drawn one by one instead of by prompt would give about 65


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
    assert said.count(" | worse |") > 30
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
    for name, seed in (("a", 0), ("b", 7)):
        write_plan(tmp_path / name / "plan.json", make_plan(suite, ["scene"], seed=seed, quick=None))
        write_score(tmp_path / name, "scene", 0.5, videos={"boathouse-0.mp4": 0.5, "hay barn-0.mp4": 0.5})
    command(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    out = capsys.readouterr().out
    assert "Not the model's alone: 10 videos have another seed." in out and "not told apart" in out
    assert open_runs([str(tmp_path / "a"), str(tmp_path / "b")])[0].totals.total is None


# ----------------------------------------------------------------------------------------------- report


def read_as_the_leaderboard_does(path):
    """The scores in a zip, with 0 for what is missing."""
    with zipfile.ZipFile(path) as packed:
        said = [json.loads(packed.read(name)) for name in packed.namelist()]
    found = {key: value[0] for one in said for key, value in one.items()}
    return {name: found.get(name, 0) for name in DIMENSIONS}


def test_a_report_of_a_complete_run(tmp_path, capsys):
    said = full_results()
    write_results(tmp_path / "run", said)
    command(["report", f"--out={tmp_path / 'run'}", "--name=A <model> & more"])
    out = tmp_path / "run"
    expected = combine({name: value[0] for name, value in said.items()})
    assert f"Total {100 * expected.total:.2f}" in (out / "report.md").read_text()
    page = (out / "report.html").read_text()
    assert "A &lt;model&gt; &amp; more" in page and "http" not in page.split("base64,")[0] and "Withheld" not in page
    figures = json.loads((out / "report.json").read_text())
    assert figures["comparable"] and figures["totals"]["total"] == expected.total
    scores = read_as_the_leaderboard_does(out / "leaderboard.zip")
    assert scores == {name: said[name][0] for name in DIMENSIONS}
    assert read_results(out / "leaderboard.zip").scores["imaging_quality"].videos
    before = contents(out, *REPORTS[:4], "leaderboard.zip")
    command(["report", f"--out={out}", "--name=A <model> & more"])
    assert contents(out, *REPORTS[:4], "leaderboard.zip") == before


def test_a_report_goes_to_wandb(whole, tmp_path, monkeypatch):
    import wandb

    out, logged = tmp_path / "run", {}
    shutil.copytree(whole, out)
    log = wandb.Run.log
    monkeypatch.setattr(wandb.Run, "log", lambda run, data: (logged.update(data), log(run, data)))
    monkeypatch.setenv("WANDB_MODE", "offline")
    command(["report", f"--out={out}", "--wandb=vbench-test"])
    assert [*logged] == ["vbench/temporal_flickering", "vbench/videos", "vbench/report"]  # totals are withheld
    (kept,) = (out / "wandb").glob("offline-run-*")
    (page,) = kept.glob("files/media/html/vbench/*.html")
    assert "In a still frame, a lamp" in page.read_text() and len(list(kept.rglob("videos_*.png"))) == 11


# ----------------------------------------------------------------------------------------------- the whole chain


def test_one_command_from_a_checkpoint_to_a_report(whole, trained, capsys):
    plan = read_plan(whole / "plan.json")
    videos = sorted(path.name for path in (whole / "videos").iterdir())
    assert videos == sorted(video.name for video in plan.videos) and len(videos) == 11
    assert plan.clip == Clip(4, 16, 16, 8.0) and plan.quick == 1
    record = json.loads((whole / "records/boathouse-0.json").read_text())
    assert (record["guidance"], record["shift"], record["steps"]) == (6.0, 3.0, 2)
    assert record["seed"] == next(video.seed for video in plan.videos if video.prompt == "boathouse")
    said = json.loads((whole / "report.json").read_text())
    flicker = said["dimensions"]["temporal_flickering"]
    assert 0 < flicker["score"] < 1 and flicker["videos"] == 1 and flicker["filtered"] is False
    assert said["totals"]["total"] is None and not said["comparable"]
    assert said["totals"]["reasons"][0].startswith("a quick run has 1 prompts a dimension")
    assert said["check"]["found"] == 11 and said["settings"]["checkpoint"] == str(trained)
    assert not (whole / "leaderboard.zip").exists()
    page = (whole / "report.html").read_text()
    assert page.count("<figure>") == 11 and "In a still frame, a lamp" in page
    command(["aggregate", str(whole)])
    assert "a quick run has 1 prompts" in capsys.readouterr().out


def test_killed_while_generating_and_started_again_gives_the_same_report(whole, suite, trained, tmp_path, capfd):
    out = tmp_path / "run"
    arguments = [sys.executable, "-m", "eval.vbench", *options(suite, trained, out)]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.time() + 300
    while not list(out.glob("records/*.json")) and time.time() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in out.glob("records/*.json")}
    assert 1 <= len(done) < 11
    videos = {out / f"videos/{path.stem}.mp4" for path in done}
    done |= {path: path.stat().st_mtime_ns for path in videos}
    torn = next(iter(out.glob("records/*.json")))
    capfd.readouterr()
    command(options(suite, trained, out))
    assert f"{len(videos)} of 11 videos are there already" in capfd.readouterr().out
    assert all(path.stat().st_mtime_ns == moment for path, moment in done.items())
    assert contents(out, *REPORTS) == contents(whole, *REPORTS)
    torn.write_text('{"name": "')  # interrupted while it was written
    command(["generate", *options(suite, trained, out)[:3], f"--out={out}", *SMALL])
    assert "is broken: its video is made again" in capfd.readouterr().out and json.loads(torn.read_text())["name"]


def test_two_shares_merged_give_the_report_of_one_process(whole, suite, trained, tmp_path, capsys):
    here, there = tmp_path / "here/run", tmp_path / "there/run"
    for share, out in (("1/2", here), ("2/2", there)):
        command([*options(suite, trained, out), "--shard", share])
        said = capsys.readouterr()
        assert f"share {share[0]} of 2: {6 if share == '1/2' else 5} of 11 videos" in said.out
        assert "the first video took" in said.err and "CPU-hours to go" in said.err
        assert "videos of the other shares are missing" in said.out
        assert not (out / "report.md").exists()
    assert len(list((here / "videos").iterdir())) == 6 and len(list((there / "videos").iterdir())) == 5
    for name in ("videos", "records"):
        shutil.copytree(there / name, here / name, dirs_exist_ok=True)
    command(options(suite, trained, here))
    assert "wrote" in capsys.readouterr().out
    assert contents(here, *REPORTS) == contents(whole, *REPORTS)
    assert not os.path.exists(here / "videos/contact.png")


def test_long_prompts_make_other_videos_of_the_same_names(whole, suite, trained, tmp_path):
    (tmp_path / "long.txt").write_text("".join(f"{entry['prompt_en']}, blue and slow\n" for entry in entries()))
    chosen = [*options(suite, trained, tmp_path / "run"), "--prompt-map", str(tmp_path / "long.txt")]
    command([*chosen, "--dimensions=[scene]"])
    record = json.loads((tmp_path / "run/records/boathouse-0.json").read_text())
    assert record["prompt"] == "boathouse, blue and slow"
    ours, theirs = (run / "videos/boathouse-0.mp4" for run in (tmp_path / "run", whole))
    assert ours.read_bytes() != theirs.read_bytes()
    assert read_plan(tmp_path / "run/plan.json").prompt_map


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--out={out}"], "expected either --checkpoint CKPT to make videos with, or --videos FOLDER"),
        (["--out={out}", "--checkpoint=a", "--videos=b"], "expected either --checkpoint"),
        (["plan", "--out={out}", "--suite=nowhere.whl"], "no suite nowhere.whl: expected vbench's"),
        (["plan", "--out={out}", "--suite=configs"], "configs holds no VBench_full_info.json"),
        (["plan", "--out={out}"], "no suite: --suite names vbench's wheel"),
        (["plan", "--out={out}", "--suite={suite}", "--quick=0"], "quick is 0, expected at least 1 prompt"),
        (["plan", "--out={out}", "--suite={suite}", "--dimensions=[beauty]"], "dimensions beauty: expected some of"),
        (["plan", "--out={out}", "--suite={suite}", "--videos=nowhere"], "no folder nowhere: expected one of videos"),
        (["plan", "--out={out}", "--suite={suite}", "--prompt-map=nowhere"], "nowhere can't be read as text"),
        (["plan", "--out=/proc/x", "--suite={suite}"], "/proc/x can't be written"),
        (["plan", "--outt={out}"], "--outt"),
        (["generate", "--out={run}", "--checkpoint=nowhere", "--shard=0/2"], "shard is '0/2', expected i/n"),
        (["generate", "--out={run}", "--checkpoint=nowhere.ckpt"], "no checkpoint nowhere.ckpt"),
        (["generate", "--out={run}", "--checkpoint={ckpt}", "--frames=8"], "choose another --out"),
        (["generate", "--out={out}", "--checkpoint={ckpt}"], "no plan"),
        (["score", "--out={out}"], "no plan"),
        (["report", "--out={out}"], "holds no scores"),
        (["--config=nowhere.yaml", "--out={out}"], "nowhere.yaml"),
        (["nonsense"], "nonsense"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_clear_line_and_exit_code_2(suite, whole, trained, tmp_path, capsys, arguments, message):
    places = {"out": tmp_path / "out", "suite": suite, "run": whole, "ckpt": trained}
    assert message in refused(capsys, [text.format(**places) for text in arguments])


def test_the_config_of_a_run_serves_its_stages(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("quick: 1\nsteps: 3\nsuite: nowhere.whl\nbeauty: 3\n")
    shared = ["--config", str(tmp_path / "mine.yaml"), f"--out={tmp_path / 'out'}"]
    assert "beauty" in refused(capsys, ["plan", *shared])
    (tmp_path / "mine.yaml").write_text("quick: 1\nsteps: 3\nsuite: nowhere.whl\n")
    assert "no suite nowhere.whl" in refused(capsys, ["plan", *shared])
