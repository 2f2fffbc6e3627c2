"""VBench before scoring: the suite, the plan and the check of its videos."""

import json
import sys
from pathlib import Path

import pytest

import eval.vbench.check
import eval.vbench.plan
from eval.generate.jobs import Clip
from eval.vbench.__main__ import command
from eval.vbench.check import check_videos
from eval.vbench.plan import PlanOptions, find_clashes, ignores_case, make_plan, name_video
from eval.vbench.suite import DIMENSIONS, load_suite, read_plan, read_suite, write_plan
from tests.helpers.vbench_suite import (
    PROMPTS,
    entries,
    plan_of,
    refused,
    save,
    write_suite,
    write_wheel,
)


def test_the_suite_is_found_in_files_wheels_packages_and_environments(suite, tmp_path):
    package = write_suite(tmp_path / "env/lib/python3.11/site-packages/vbench/VBench_full_info.json").parent
    wheel = write_wheel(tmp_path / "vbench-0.1.5-py3-none-any.whl")
    places = [suite, wheel, package, package.parent, tmp_path / "env", suite.parent]
    expected = load_suite(suite)
    assert len(expected) == 24 and len({entry.prompt for entry in expected}) == PROMPTS
    for place in places:
        assert load_suite(place) == expected and read_suite(place) == read_suite(suite)
    assert "vbench" not in sys.modules


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{", "can't be read as JSON"),
        ("{}", "expected a list of VBench's prompts, found dict"),
        ('[{"prompt": "a"}]', "entry 0 is {'prompt': 'a'}, expected prompt_en and dimension of VBench's"),
        ('[{"prompt_en": "a", "dimension": ["beauty"]}]', "entry 0 is {'prompt_en': 'a', 'dimension': ['beauty']}"),
        ('[{"prompt_en": " ", "dimension": ["scene"]}]', "expected prompt_en and dimension of"),
        ('[{"prompt_en": "\\ud800", "dimension": ["scene"]}]', "surrogates not allowed"),
    ],
)
def test_a_suite_that_is_none_is_refused(tmp_path, capsys, said, message):
    (tmp_path / "suite.json").write_text(said)
    assert message in refused(capsys, ["plan", f"--suite={tmp_path / 'suite.json'}", f"--out={tmp_path / 'out'}"])


def test_five_videos_a_prompt_and_twenty_five_for_flicker(suite):
    plan = make_plan(PlanOptions(suite))
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
    full = {video.name: video.seed for video in make_plan(PlanOptions(suite)).videos}
    quick = make_plan(PlanOptions(suite, quick=1))
    assert len(quick.videos) == 11 and all(full[video.name] == video.seed for video in quick.videos)
    spread = make_plan(PlanOptions(suite, ["imaging_quality"], quick=2))
    assert [video.prompt for video in spread.videos] == ["a quiet harbour", "A quiet harbour"]
    command(["plan", f"--suite={suite}", "--quick", "1", f"--out={tmp_path}"])
    said = capsys.readouterr().out
    assert "11 videos of 11 prompts for 16 of 16 dimensions" in said and "NOT comparable" in said


def test_a_plan_is_read_as_it_was_written_and_kept(suite, tmp_path, capsys):
    long = tmp_path / "long.txt"
    long.write_text("\n".join(f"{entry['prompt_en']}, at length" for entry in entries()))
    plan = make_plan(PlanOptions(suite, ["scene", "color"], prompt_map=long))
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
            make_plan(PlanOptions(suite, prompt_map=tmp_path / "long.txt"))
        return
    long = {
        video.prompt: video.long for video in make_plan(PlanOptions(suite, prompt_map=tmp_path / "long.txt")).videos
    }
    prompts = list(dict.fromkeys(entry["prompt_en"] for entry in entries()))
    assert [*long] == prompts and long["A person is juggling"] == "long 5"
    assert long["boathouse"] == f"long {20 if lines == 24 else 19}"  # one prompt is there twice before
    (tmp_path / "long.txt").write_text("a\n\n" + "b\n" * 22)
    with pytest.raises(ValueError, match="line 2 is empty"):
        make_plan(PlanOptions(suite, prompt_map=tmp_path / "long.txt"))


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
        make_plan(PlanOptions(write_suite(tmp_path / "suite.json", two)))


def test_file_systems_that_ignore_case_are_noticed(suite, tmp_path, capsys, monkeypatch):
    plan = make_plan(PlanOptions(suite))
    assert find_clashes(plan.videos)[0] == ("a quiet harbour-0.mp4", "A quiet harbour-0.mp4")
    assert len(find_clashes(plan.videos)) == 5 and not ignores_case(tmp_path) and not list(tmp_path.iterdir())
    monkeypatch.setattr(eval.vbench.plan, "ignores_case", lambda folder: True)
    line = refused(capsys, ["plan", f"--suite={suite}", f"--out={tmp_path}"])
    assert "ignores case, where 'a quiet harbour-0.mp4' and 'A quiet harbour-0.mp4' and 4 more pairs are one" in line
    command(["plan", f"--suite={suite}", "--dimensions", "scene,color", f"--out={tmp_path}"])
    assert read_plan(tmp_path / "plan.json").dimensions == ("color", "scene")


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
    assert plan.folder == str(folder) and len(make_plan(PlanOptions(suite, videos=folder)).videos) == PROMPTS * 5
    save(folder / "In a still frame, a lamp-7.mp4")
    assert len(make_plan(PlanOptions(suite, videos=folder)).videos) == 21 * 5 + 2 * 25
    line = refused(capsys, ["generate", "--checkpoint=any", f"--out={tmp_path / 'out'}"])
    assert "is for videos that are there already" in line
