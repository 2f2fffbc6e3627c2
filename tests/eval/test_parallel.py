"""A video made by several processes together: the same as by one, and what such processes refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eval.generate.command import command
from eval.generate.teams import Parallel, _obstacle
from fps_flex.wan.flow import guided_velocity
from tests.helpers.commands import refused
from train.common.videos import read_clip

ROOT = Path(__file__).parents[2]
SIZE = (9, 64, 96)
OPTIONS = [
    "--steps=3", "--frames=9", "--height=64", "--width=96", "--fps=8", "--lossless=true", "--attention.schedule=fps",
    "--attention.tile=[1,2,3]", "--attention.block=8", "--guidance=4", "--count=2",
]  # fmt: skip


def words(wan_folder, out, *more):
    return [f"--checkpoint={wan_folder}", f"--out={out}", "--prompt=a red circle", *OPTIONS, *more]


def run(processes, *words):
    """Under torchrun: the exit code, and the lines that the processes themselves wrote."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [*launcher, "-m", "--", "eval.generate", *map(str, words)], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def frames(video):
    return read_clip(video, *SIZE[:1], 8.0, *SIZE[1:]).int()


@pytest.fixture(scope="module")
def alone(wan_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "videos"
    command(words(wan_folder, out))
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (2, ["--parallel.sequence=2", "--parallel.exchange=halo"]),
        (4, ["--parallel.sequence=2", "--parallel.guidance=2", "--parallel.exchange=ulysses"]),
        (4, ["--parallel.guidance=2"]),  # two teams, a video each
    ],
)
def test_the_same_videos_as_of_one_process(alone, wan_folder, tmp_path, processes, options):
    """Up to what rounding moves: of a pixel at most one of its 256 levels. One process of all speaks of each video."""
    code, told = run(processes, *words(wan_folder, tmp_path / "out", *options))
    assert code == 0, told
    names = sorted(path.name for path in alone.iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    for video in alone.glob("*.mp4"):
        made = tmp_path / "out" / video.name
        assert (frames(made) - frames(video)).abs().max() <= 1
        assert told.count(f"wrote {made}") == 1
        ours, theirs = (json.loads(path.with_suffix(".json").read_text()) for path in (made, video))
        own = ("seconds", "peak_gb", "sha256", "processes")
        assert {x: y for x, y in ours.items() if x not in own} == {x: y for x, y in theirs.items() if x not in own}
        assert (ours["processes"], theirs["processes"]) == (4 if "--parallel.sequence=2" in options[:1] and
                                                            processes == 4 else 2, 1)  # fmt: skip
    assert told.count("gets another attention than it was trained with") == 1


def test_a_run_of_one_process_is_kept_by_two(alone, wan_folder, capfd):
    """How many make a video is no setting of it."""
    before = {path: path.stat().st_mtime_ns for path in alone.iterdir() if path.name != "contact.png"}
    code, told = run(2, *words(wan_folder, alone, "--parallel.guidance=2"))
    assert code == 0 and told.count("2 of 2 videos are there already") == 1, told
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_a_team_cannot_share_is_said_once_and_ends_all(wan_folder, tmp_path):
    code, told = run(3, *words(wan_folder, tmp_path, "--parallel.sequence=3", "--parallel.exchange=ulysses"))
    assert code != 0
    (line,) = [line for line in told.splitlines() if line.startswith("error:")]
    assert line == (
        "error: Ulysses deals 2 heads out to 3 processes, expected a number that divides them: take 2, or halo, which "
        "takes any number of heads"
    )
    assert told.count("exitcode  : 2") == 3 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("parallel", "world", "told"),
    [
        (
            Parallel(2, 1),
            1,
            "--parallel.sequence 2: 2 processes make a video, got 1, expected 2 or a multiple of it: torchrun",
        ),
        (Parallel(2, 2), 6, "--parallel.sequence 2 --parallel.guidance 2: 4 processes make a video, got 6, expected 4"),
        (Parallel(0), 2, "parallel.sequence is 0, expected a whole number of at least 1"),
        (Parallel(1, 3), 3, "parallel.guidance is 3, expected 1 or 2"),
        (Parallel(1, 0), 3, "parallel.guidance is 0, expected 1 or 2"),
    ],
)
def test_processes_that_do_not_fit_are_told_how_many_do(parallel, world, told):
    assert told in _obstacle(parallel, world) and "\n" not in _obstacle(parallel, world)


def test_processes_that_fit_are_let_be():
    assert [_obstacle(*x) for x in ((Parallel(2), 2), (Parallel(2), 8), (Parallel(3, 2), 6))] == [None] * 3


def test_each_process_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert "4 processes on 2 GPUs, expected a GPU each" in _obstacle(Parallel(2), 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert _obstacle(Parallel(2), 8) is None


@pytest.mark.parametrize("option", ["--parallel.sequence=2", "--parallel.guidance=2", "--parallel.exchange=halo"])
def test_one_process_refuses_to_be_several(wan_folder, tmp_path, capfd, option):
    line = refused(capfd, command, words(wan_folder, tmp_path / "out", option))
    assert (
        "torchrun --nproc_per_node 2" in line
        if "=2" in option
        else "--parallel.exchange halo is for several processes, and there is one: leave it out" in line
    )
    assert not (tmp_path / "out").exists()


def test_guidance_of_one_pass_takes_one_process(wan_folder, tmp_path):
    code, told = run(2, *words(wan_folder, tmp_path / "out", "--parallel.guidance=2", "--guidance=1"))
    assert code != 0 and told.count("error: guidance is 1, which takes one pass: leave parallel.guidance out") == 1


def test_passes_are_those_of_guidance():
    text, no_text = torch.randn(2, 1, 5, 4)
    both = guided_velocity(lambda x: x * 2, text, no_text, 3.0, lambda run, *states: tuple(map(run, states)))
    assert torch.equal(both, guided_velocity(lambda x: x * 2, text, no_text, 3.0))
