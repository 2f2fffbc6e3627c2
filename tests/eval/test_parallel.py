"""A video made by several processes together: the same as by one, and what such processes refuse."""

import json
import shutil
from dataclasses import dataclass

import pytest
import torch

from eval.bench.command import command as run_bench
from eval.generate.command import command
from eval.generate.teams import Parallel, _obstacle
from fps_flex.wan.flow import guided_velocity
from tests.helpers.commands import refused
from tests.helpers.once import once
from tests.helpers.together import run_in_turn
from train.common.videos import read_clip

SIZE = (9, 64, 96)
OPTIONS = [
    "--steps=3", "--frames=9", "--height=64", "--width=96", "--fps=8", "--lossless=true", "--attention.schedule=fps",
    "--attention.tile=[1,2,3]", "--attention.block=8", "--guidance=4", "--count=2",
]  # fmt: skip


def words(wan_folder, out, *more):
    return [f"--checkpoint={wan_folder}", f"--out={out}", "--prompt=a red circle", *OPTIONS, *more]


def frames(video):
    return read_clip(video, *SIZE[:1], 8.0, *SIZE[1:]).int()


@dataclass(frozen=True)
class Together:
    """Commands that several processes ran in turn. told: all that they wrote. codes: of each command, by rank."""

    code: int
    told: str
    codes: list


def make(wan_folder, folder, processes, others=(), **options):
    """Videos in folders of these names, in turn, each with its options; then other commands."""
    lines = [("eval.generate", words(wan_folder, folder / name, *more)) for name, more in options.items()]
    (folder / f"{processes}.json").write_text(json.dumps(run_in_turn(folder, processes, *lines, *others)))


def bench(command, out, *more):
    common = ("--size=tiny", "--layers=1", "--schedules=[dense,fps]", f"--out={out}")
    return "eval.bench", [command, *common, *more]


@pytest.fixture(scope="module")
def made(wan_folder, tmp_path_factory):
    """Folders of videos, beside what two processes, and four, told and ended with."""
    folder = once(tmp_path_factory, "made", lambda folder: make_all(wan_folder, folder))
    return folder, *(Together(*json.loads((folder / f"{n}.json").read_text())) for n in (2, 4))


@pytest.fixture
def alone(made):
    """What one process made."""
    return made[0] / "alone"


def make_all(wan_folder, folder):
    command(words(wan_folder, folder / "alone"))
    shutil.copytree(folder / "alone", folder / "kept", copy_function=shutil.copy2)
    two = {
        "halo": ["--parallel.sequence=2", "--parallel.exchange=halo"],
        "kept": ["--parallel.guidance=2"],
        "one_pass": ["--parallel.guidance=2", "--guidance=1"],
    }
    four = {
        "ulysses": ["--parallel.sequence=2", "--parallel.guidance=2", "--parallel.exchange=ulysses"],
        "teams": ["--parallel.guidance=2"],  # two, a video each
        "heads": ["--parallel.sequence=4", "--parallel.exchange=ulysses"],
    }
    video = ["video", "--size=tiny", "--linears=bf16", "--steps=2"]
    benches = [
        bench("train", folder / "train.json", "--parallel=[one,shard,ulysses,halo]", "--scale_formats=[pow2]",
              "--steps=1", "--warmup=1"),
        bench("train", folder / "lora.json", "--parallel=[ulysses]", "--scale_formats=[pow2]", "--steps=1",
              "--warmup=1", "--lora=2", "--base=bf16", "--objective=distill"),
        bench("model", folder / "model.json", "--parallel=[one,ulysses,halo]", "--repeats=1"),
        ("eval.bench", video),
        ("eval.bench", [*video, f"--out={folder / 'video.json'}", "--parallel.sequence=2", "--parallel.exchange=halo"]),
        bench("train", folder / "refused.json", "--parallel=[halo]", "--schedules=[sdpa]"),
    ]  # fmt: skip
    make(wan_folder, folder, 2, benches, **two)
    make(wan_folder, folder, 4, **four)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "processes"), [("halo", 2), ("ulysses", 4), ("teams", 2)])
def test_the_same_videos_as_of_one_process(alone, made, name, processes):
    """Up to what rounding moves: of a pixel at most one of its 256 levels. One process of all speaks of each video."""
    folder, two, four = made
    told = (two if name == "halo" else four).told
    names = sorted(path.name for path in alone.iterdir())
    assert sorted(path.name for path in (folder / name).iterdir()) == names, told
    for video in alone.glob("*.mp4"):
        other = folder / name / video.name
        assert (frames(other) - frames(video)).abs().max() <= 1
        assert told.count(f"wrote {other}") == 1
        ours, theirs = (json.loads(path.with_suffix(".json").read_text()) for path in (other, video))
        own = ("seconds", "peak_gb", "sha256", "processes")
        assert {x: y for x, y in ours.items() if x not in own} == {x: y for x, y in theirs.items() if x not in own}
        assert (ours["processes"], theirs["processes"]) == (processes, 1)


@pytest.mark.slow
def test_of_all_processes_one_warns(made):
    """Of each of three commands."""
    _, two, four = made
    warned = [one.told.count("gets another attention than it was trained with") for one in (two, four)]
    assert warned == [3, 3], (two.told, four.told)


@pytest.mark.slow
def test_a_run_of_one_process_is_kept_by_two(alone, made):
    """How many make a video is no setting of it."""
    folder, two, _ = made
    assert two.codes[1] == [0, 0] and two.told.count("2 of 2 videos are there already") == 1, two.told
    before, after = (
        {path.name: path.stat().st_mtime_ns for path in x.iterdir() if path.name != "contact.png"}
        for x in (alone, folder / "kept")
    )
    assert before == after


@pytest.mark.slow
def test_what_a_team_cannot_share_is_said_once_and_ends_all(made):
    folder, _, four = made
    assert four.code != 0 and four.codes == [[0] * 4, [0] * 4, [2] * 4]
    (line,) = [line for line in four.told.splitlines() if line.startswith("error:")]
    assert line == (
        "error: Ulysses deals 2 heads out to 4 processes, expected a number that divides them: take 2, or halo, which "
        "takes any number of heads"
    )
    assert four.told.count("exitcode  : 2") == 4 and not (folder / "heads").exists()


@pytest.mark.slow
def test_guidance_of_one_pass_takes_one_process(made):
    folder, two, _ = made
    assert two.codes[2] == [2, 2] and not (folder / "one_pass").exists()
    assert two.told.count("error: guidance is 1, which takes one pass: leave parallel.guidance out") == 1


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
        (Parallel(1, 2, exchange="halo"), 2, "parallel.exchange is halo, of processes that share a video's tokens"),
    ],
)
def test_processes_that_do_not_fit_are_told_how_many_do(parallel, world, told):
    line = _obstacle(parallel, world)
    assert told in line and "\n" not in line


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
        else "parallel.exchange is halo, of processes that share a video's tokens, and parallel.sequence is 1" in line
    )
    assert not (tmp_path / "out").exists()


SLOTS, HEADS, HEAD_DIM = 320, 2, 64  # of the tiny size


@pytest.mark.slow
def test_bench_measures_processes_beside_one(made):
    """In one run; counted are as many bytes as are predicted, which with Ulysses are as many by hand."""
    folder, two, _ = made
    assert two.codes[3:6] == [[0, 0]] * 3, two.told
    rows = json.loads((folder / "train.json").read_text())["rows"]
    regimes = ["all", "early", "middle", "late", "mix"]
    assert [row["regime"] for row in rows] == 4 * regimes
    assert [(row["parallel"], row["clips"]) for row in rows[::5]] == [("one", 1), ("shard 2", 2), ("ulysses 2", 1),
                                                                       ("halo 2", 1)]  # fmt: skip
    one = rows[0]["step_seconds"]
    for row in rows:
        assert row["speedup"] == pytest.approx(one * row["clips"] / row["step_seconds"])
        assert row["tokens_per_second"] == pytest.approx(row["clips"] * SLOTS / row["step_seconds"])
        assert row["parallel"] == "one" or row["regime"] == "mix" or len(row["all_peak_gb"]) == 2
    shared = [row for row in rows if "exchanged_mb" in row]
    assert [row["parallel"] for row in shared] == 5 * ["ulysses 2"] + 5 * ["halo 2"]
    assert all(row["exchanged_mb"] == row["predicted_mb"] for row in shared)
    # q, k, v and the output, forward twice and backward: half the slots, half the heads, four bytes each
    by_hand = 3 * 4 * (SLOTS // 2) * (HEADS // 2) * HEAD_DIM * 4 / 1e6
    assert all(row["exchanged_mb"] == pytest.approx(by_hand) for row in shared[:5])
    assert shared[5]["exchanged_mb"] > 0 == shared[6]["exchanged_mb"], "whose windows reach no other's tiles"


@pytest.mark.slow
def test_bench_counts_what_a_teacher_exchanges(made):
    """Forward alone, of all tokens in one tile, beside weights that are frozen."""
    rows = json.loads((made[0] / "lora.json").read_text())["rows"]
    assert [row["objective"] for row in rows] == ["flow"] + 4 * ["distill"]
    assert all(row["exchanged_mb"] == row["predicted_mb"] > 0 for row in rows)
    assert rows[1]["exchanged_mb"] == pytest.approx(rows[0]["exchanged_mb"] * 4 / 3)


@pytest.mark.slow
def test_bench_measures_a_pass_of_several_processes(made):
    rows = json.loads((made[0] / "model.json").read_text())["rows"]
    assert [row["parallel"] for row in rows[:6:2]] == ["one", "ulysses 2", "halo 2"] and len(rows) == 3 * 2 + 3 * 4
    shared = [row for row in rows if "exchanged_mb" in row]
    assert len(shared) == 2 + 6 and all(row["exchanged_mb"] == row["predicted_mb"] for row in shared)
    assert shared[0]["exchanged_mb"] == pytest.approx(4 * (SLOTS // 2) * (HEADS // 2) * HEAD_DIM * 4 / 1e6)


@pytest.mark.slow
def test_bench_times_a_video_that_two_make(made):
    """The first writes it, and the second is there for denoising alone."""
    folder, two, _ = made
    assert two.codes[7] == [0, 0], two.told
    report = json.loads((folder / "video.json").read_text())
    assert report["parallel"] == "--parallel.sequence 2 --parallel.exchange halo"
    assert report["exchanges"] == dict.fromkeys(("early", "middle", "late"), "halo")
    assert report["command"].startswith("torchrun --nproc_per_node 2 -- tests/helpers/in_turn.py ")
    assert [row["stage"] for row in report["rows"]] == ["text encoder", "denoising", "VAE", "mp4", "all"]
    assert two.told.count("| denoising | ") == 1


@pytest.mark.slow
def test_bench_of_a_video_refuses_processes_to_spare(made):
    _, two, _ = made
    assert two.codes[6] == [2, 2]
    (line,) = {x for x in two.told.splitlines() if "would make the video" in x}
    assert line == (
        "error: 2 processes, of which 1 would make the video: start 1, or let parallel.sequence times "
        "parallel.guidance be 2"
    )


@pytest.mark.slow
def test_bench_refuses_in_a_line(made):
    _, two, _ = made
    assert two.code != 0 and two.codes[8] != [0, 0]
    line = "error: parallel is halo, and schedule sdpa attends to a clip as one tile: leave either out"
    assert {x for x in two.told.splitlines() if "parallel is halo" in x} == {line}


@pytest.mark.parametrize("command", ["train", "model"])
def test_bench_of_one_process_refuses_to_be_several(capsys, command):
    line = refused(capsys, run_bench, [command, "--size=tiny", "--parallel=[one,halo]", "--schedules=[fps]"])
    assert "parallel is halo, of several processes, and there is one: torchrun --nproc_per_node 2 -m -- " in line
    assert f"eval.bench {command}" in line


def test_passes_are_those_of_guidance():
    text, no_text = torch.randn(2, 1, 5, 4)
    both = guided_velocity(lambda x: x * 2, text, no_text, 3.0, lambda run, *states: tuple(map(run, states)))
    assert torch.equal(both, guided_velocity(lambda x: x * 2, text, no_text, 3.0))
