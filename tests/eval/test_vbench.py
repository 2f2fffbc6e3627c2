"""VBench from a checkpoint to a report. Plan, totals and scorers have files of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from eval.generate.jobs import Clip
from eval.vbench.__main__ import command
from eval.vbench.aggregate import combine
from eval.vbench.results import read_results
from eval.vbench.suite import DIMENSIONS, read_plan
from tests.helpers.tiny_run import tiny_checkpoint
from tests.helpers.vbench_suite import (
    contents,
    entries,
    full_results,
    refused,
    write_results,
)

ROOT = Path(__file__).parents[2]
SMALL = ["--steps=2", "--frames=4", "--height=16", "--width=16"]

REPORTS = ("report.md", "report.json", "report.html", "chart.png", "scores.csv", "scores.tex", "contact.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of two steps on moving shapes of 16x16."""
    return tiny_checkpoint(tmp_path_factory.mktemp("trained") / "run", "--data.height=16", "--data.width=16")


def options(suite, trained, out):
    return ["--config", "configs/vbench.yaml", f"--checkpoint={trained}", f"--suite={suite}", f"--out={out}",
            "--quick", "1", *SMALL]  # fmt: skip


@pytest.fixture(scope="module")
def whole(suite, trained, tmp_path_factory):
    """A whole run, never stopped."""
    out = tmp_path_factory.mktemp("vbench") / "run"
    command(options(suite, trained, out))
    return out


def reports(out):
    """Its reports, written again as if each video had taken as long."""
    for file in out.glob("records/*.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "seconds": 2.5, "peak_gb": 1.5}))
    command(["report", f"--out={out}"])
    return contents(out, *REPORTS)


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
    before = contents(out, *REPORTS[:6], "leaderboard.zip")
    command(["report", f"--out={out}", "--name=A <model> & more"])
    assert contents(out, *REPORTS[:6], "leaderboard.zip") == before


def test_a_report_goes_to_wandb(whole, tmp_path, monkeypatch):
    import wandb

    out, logged = tmp_path / "run", {}
    shutil.copytree(whole, out)
    log = wandb.Run.log
    monkeypatch.setattr(wandb.Run, "log", lambda run, data: (logged.update(data), log(run, data)))
    monkeypatch.setenv("WANDB_MODE", "offline")
    command(["report", f"--out={out}", "--wandb=vbench-test"])
    cost = {f"vbench/{name}" for name in ("seconds_per_video", "density", "peak_gb")}
    assert {*logged} - cost == {f"vbench/{name}" for name in ("temporal_flickering", "videos", "report")}  # no totals
    (kept,) = (out / "wandb").glob("offline-run-*")
    (page,) = kept.glob("files/media/html/vbench/*.html")
    assert "In a still frame, a lamp" in page.read_text() and len(list(kept.rglob("videos_*.png"))) == 11


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
    assert said["totals"]["reasons"][0].startswith("a quick run has 1 prompt a dimension")
    assert said["check"]["found"] == 11 and said["making"]["settings"]["checkpoint"] == str(trained)
    assert not (whole / "leaderboard.zip").exists()
    page = (whole / "report.html").read_text()
    assert page.count("<figure>") == 11 and "In a still frame, a lamp" in page
    command(["aggregate", str(whole)])
    assert "a quick run has 1 prompt a" in capsys.readouterr().out


def test_killed_while_generating_and_started_again_gives_the_same_report(whole, suite, trained, tmp_path, capfd):
    out = tmp_path / "run"
    arguments = [sys.executable, "-m", "eval.vbench", *options(suite, trained, out)]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.time() + 300
    while not list(out.glob("videos/[!.]*.mp4")) and time.time() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    videos = list(out.glob("videos/[!.]*.mp4"))
    assert 1 <= len(videos) < 11
    done = {path: path.stat().st_mtime_ns for path in (*videos, *(out / f"records/{x.stem}.json" for x in videos))}
    torn = next(iter(out.glob("records/*.json")))
    capfd.readouterr()
    command(options(suite, trained, out))
    assert f"{len(videos)} of 11 videos are there already" in capfd.readouterr().out
    assert all(path.stat().st_mtime_ns == moment for path, moment in done.items())
    assert reports(out) == reports(whole)
    torn.write_text('{"name": "')  # interrupted while it was written
    command(["generate", *options(suite, trained, out)[:3], f"--out={out}", *SMALL])
    assert "is broken: its video is made again" in capfd.readouterr().out and json.loads(torn.read_text())["name"]


def test_two_shares_merged_give_the_report_of_one_process(whole, suite, trained, tmp_path, capsys):
    here, there = tmp_path / "here/run", tmp_path / "there/run"
    for share, out in (("1/2", here), ("2/2", there)):
        command([*options(suite, trained, out), "--shard", share])
        said = capsys.readouterr()
        assert f"share {share[0]} of 2: {6 if share == '1/2' else 5} of 11 videos" in said.out
        assert "the first video took" in said.err and " of a CPU to go" in said.err
        assert "videos of the other shares are missing" in said.out
        assert not (out / "report.md").exists()
    assert len(list((here / "videos").iterdir())) == 6 and len(list((there / "videos").iterdir())) == 5
    for name in ("videos", "records"):
        shutil.copytree(there / name, here / name, dirs_exist_ok=True)
    command(options(suite, trained, here))
    assert "wrote" in capsys.readouterr().out
    assert reports(here) == reports(whole)
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
        (
            ["plan", "--out={out}", "--suite={suite}", "--prompt-map=nowhere"],
            "nowhere can't be read (No such file or directory); expected a text file with a long prompt a line",
        ),
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
