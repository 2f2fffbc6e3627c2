"""Comparing videos with those of dense attention: metrics, five rows, folders, and going on after a stop."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from raw_clips import scene, write

import eval.fidelity_report as reports
from eval import similarity
from eval.fidelity import command, plan_rows
from eval.similarity import compare, find_interval, find_metrics, read_frames
from fps_flex import FPSAttention
from train.fit import main as fit

CPU = torch.device("cpu")
SHAPE = {"height": 176, "width": 192}


def clip(path, frames=5, crf=20, seed=0, **shape):
    return write(path, scene(seed, frames=frames, **(shape or SHAPE)), crf=crf)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same scene, good and badly compressed."""
    folder = tmp_path_factory.mktemp("pair")
    return clip(folder / "good.mp4"), clip(folder / "bad.mp4", crf=45)


def refused(capsys, arguments):
    """The one line in which the command refuses."""
    with pytest.raises(SystemExit) as stopped:
        command([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("error: ")
    return line


# metrics


def test_psnr_of_each_frame_by_its_definition(pair):
    good, bad = pair
    found = compare(bad, good, find_metrics(176, 192)[0], CPU)
    frames = [np.stack(list(read_frames(path))).astype(np.float64) / 255 for path in (good, bad)]
    expected = [-10 * np.log10(((a - b) ** 2).mean()) for a, b in zip(*frames, strict=True)]
    np.testing.assert_allclose(found["psnr"], expected, rtol=1e-5)
    assert len(expected) == 5 and 20 < min(expected) < max(expected) < 45
    for name in ("ssim", "ms_ssim"):
        assert len(found[name]) == 5 and all(0 < x < 0.99 for x in found[name])


def test_a_video_is_like_itself(pair):
    found = compare(pair[0], pair[0], find_metrics(176, 192)[0], CPU)
    assert found["psnr"] == [100.0] * 5
    assert all(found[name] == pytest.approx([1.0] * 5, abs=1e-4) for name in ("ssim", "ms_ssim"))


def test_frames_are_measured_one_by_one_however_many_are_read_together(pair, monkeypatch):
    metrics, _ = find_metrics(176, 192)
    together = compare(*pair, metrics, CPU)
    monkeypatch.setattr(similarity, "TOGETHER", 2)
    apart = compare(*pair, metrics, CPU)
    assert all(apart[name] == pytest.approx(together[name], rel=1e-4) for name in metrics)


def test_what_cant_be_measured_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    here = {"torchvision": False, "vmaf_torch": False}
    monkeypatch.setattr(similarity, "find_spec", lambda name: here[name] or None)
    metrics, left_out = find_metrics(176, 192)
    assert list(metrics) == ["psnr", "ssim", "ms_ssim"]
    assert left_out == {"lpips": "torchvision is not installed", "vmaf": "vmaf-torch is not installed"}
    metrics, left_out = find_metrics(175, 300)
    assert list(metrics) == ["psnr", "ssim"]
    assert left_out["ms_ssim"] == "frames of 175x300 are too small: it needs 176 rows and columns"
    assert list(find_metrics(10, 10)[0]) == ["psnr"]

    here |= {"torchvision": True, "vmaf_torch": True}
    assert "AlexNet's weights are not at" in find_metrics(176, 192)[1]["lpips"]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / similarity.ALEXNET).touch()
    assert list(find_metrics(176, 192)[0]) == ["psnr", "ssim", "ms_ssim", "lpips", "vmaf"]


def test_the_smallest_frames_of_each_metric_are_just_large_enough():
    frames = torch.rand(2, 2, 3, 176, 176)
    metrics, _ = find_metrics(176, 176)
    assert metrics["ms_ssim"](*frames).shape == (2,)
    with pytest.raises(ValueError):
        metrics["ms_ssim"](*frames[..., :175, :])
    assert metrics["ssim"](*frames[..., :11, :11]).shape == (2,)


def test_the_interval_draws_whole_groups():
    assert find_interval([1.0, 2.0], ["a", "a"]) is None
    assert find_interval([0.0, 1.0], ["a", "b"]) == (0.0, 1.0)  # both alike in one draw of four
    values = np.random.default_rng(1).normal(5, 2, 200)
    low, high = find_interval(values.tolist(), [str(i) for i in range(200)])
    half = 1.96 * values.std() / 200**0.5
    assert low == pytest.approx(values.mean() - half, abs=0.05) and high == pytest.approx(
        values.mean() + half, abs=0.05
    )
    doubled = find_interval(np.repeat(values, 4).tolist(), [str(i) for i in range(200) for _ in range(4)])
    assert doubled == pytest.approx((low, high), abs=1e-9)


# two folders


@pytest.fixture
def two(tmp_path):
    """Two folders with three pairs, in a folder with a space."""
    for i in range(3):
        clip(tmp_path / "with dense" / f"clip {i}.mp4", seed=i)
        clip(tmp_path / "with fps" / f"clip {i}.mp4", seed=i, crf=32 + 4 * i)
    return tmp_path / "with dense", tmp_path / "with fps", tmp_path / "report"


def on(reference, candidate, out):
    return ["folders", f"--reference={reference}", f"--candidate={candidate}", f"--out={out}"]


def test_a_report_of_two_folders(two, capsys):
    reference, candidate, out = two
    command(on(*two))
    said = json.loads((out / "fidelity.json").read_text())
    first, second = said["rows"]
    assert first["folder"] == str(reference) and "total" not in first
    by_hand = [compare(candidate / f"clip {i}.mp4", reference / f"clip {i}.mp4", find_metrics(176, 192)[0], CPU)
               for i in range(3)]  # fmt: skip
    means = [np.mean(found["psnr"]) for found in by_hand]
    assert [video["psnr"] for video in second["videos"]] == pytest.approx(means)
    assert means[0] > means[1] > means[2]
    assert [video["worst_psnr"] for video in second["videos"]] == pytest.approx([min(x["psnr"]) for x in by_hand])
    assert second["total"]["psnr"]["mean"] == pytest.approx(np.mean(means))
    low, high = second["total"]["psnr"]["interval"]
    assert means[2] <= low < np.mean(means) < high <= means[0]
    text = (out / "fidelity.md").read_text()
    assert f"{np.mean(means):.2f} [{low:.2f}, {high:.2f}]" in text and "| clip 1 | candidate | 5 |" in text
    assert text in capsys.readouterr().out
    assert Image.open(out / "side-by-side.png").size[1] > 1000


def test_stopped_in_the_middle_goes_on_with_what_is_missing(two, monkeypatch, capsys):
    *_, out = two
    measured = []

    def stopping(candidate, *rest):
        measured.append(candidate.stem)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return compare(candidate, *rest)

    monkeypatch.setattr(reports, "compare", stopping)
    with pytest.raises(SystemExit) as stopped:
        command(on(*two))
    assert stopped.value.code == 130 and "goes on with what is missing" in capsys.readouterr().err
    assert not (out / "fidelity.md").exists()
    command(on(*two))
    assert measured == ["clip 0", "clip 1", "clip 1", "clip 2"]
    first = (out / "fidelity.json").read_bytes()
    command(on(*two))
    assert len(measured) == 4 and (out / "fidelity.json").read_bytes() == first

    (out / "scores/candidate/clip 2.json").write_text('{"candidate"')
    clip(two[1] / "clip 0.mp4", seed=9)
    command(on(*two))
    assert measured[4:] == ["clip 0", "clip 2"] and (out / "fidelity.json").read_bytes() != first


def test_folders_that_dont_pair_are_one_clear_line(two, tmp_path, capsys):
    reference, candidate, out = two
    (tmp_path / "none").mkdir()
    assert "holds no .mp4" in refused(capsys, on(reference, tmp_path / "none", out))
    assert "nowhere is no folder" in refused(capsys, on(tmp_path / "nowhere", candidate, out))
    for i in range(7):
        clip(reference / f"more {i}.mp4", frames=1)
    clip(candidate / "other.mp4", frames=1)
    line = refused(capsys, on(*two))
    assert "with dense has more 0.mp4, more 1.mp4, more 2.mp4, more 3.mp4, more 4.mp4 and 2 more" in line
    assert "with fps has other.mp4; expected the same names in both" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: clip(path, height=176, width=176), "clip 1.mp4 is 176x176 (rows x columns)"),
        (lambda path: clip(path, frames=4), "clip 1.mp4 has 4 frames"),
        (lambda path: path.write_bytes(path.read_bytes()[:900]), "clip 1.mp4: can't be decoded"),
        (lambda path: path.write_text("no video"), "clip 1.mp4: can't be decoded"),
        (lambda path: path.write_bytes(b""), "clip 1.mp4: can't be decoded"),
    ],
    ids=["size", "length", "cut short", "text", "empty"],
)
def test_a_video_that_cant_be_compared_is_one_clear_line(two, capsys, make, message):
    make(two[1] / "clip 1.mp4")
    assert message in refused(capsys, on(*two))
    assert not (two[2] / "fidelity.md").exists()


def test_videos_of_one_frame_and_of_several_sizes(tmp_path, capsys):
    for name, shape in (("a", {"height": 32, "width": 48}), ("b", SHAPE)):
        for folder, crf in (("x", 20), ("y", 40)):
            clip(tmp_path / folder / f"{name}.mp4", frames=1, crf=crf, **shape)
    command(on(tmp_path / "x", tmp_path / "y", tmp_path / "out"))
    said = json.loads((tmp_path / "out/fidelity.json").read_text())
    assert [video["frames"] for video in said["rows"][1]["videos"]] == [1, 1]
    assert said["left_out"]["ms_ssim"].startswith("frames of 32x48 are too small")
    Image.open(tmp_path / "out/side-by-side.png").verify()


def test_an_unwritable_report_is_refused_before_anything_is_measured(two, capsys, monkeypatch):
    monkeypatch.setattr(reports, "compare", None)
    assert "/proc/report can't be written" in refused(capsys, on(two[0], two[1], "/proc/report"))


# the five rows


def train(run, *extra):
    fit(["--config=configs/tiny.yaml", f"--run={run}", "--trainer.max_steps=2", "--trainer.val_check_interval=2",
         "--checkpoint.every_n_train_steps=2", "--data.val_clips=1", "--sample.steps=1", "--sample.count=1",
         "--model.val_levels=1", "--data.batch_size=1", "--model.lr=0.1", *extra])  # fmt: skip
    return run / "checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Of two steps with dense attention, and of two more with FPS attention and another shift."""
    folder = tmp_path_factory.mktemp("runs")
    dense = train(folder / "dense", "--model.attention.quantize=false", "--model.attention.sparse=false")
    return dense, train(folder / "fps", f"--model.checkpoint={dense}", "--model.shift=2.0")


def five(checkpoints, out, *extra):
    dense, fps = checkpoints
    return ["models", f"--checkpoint={dense}", f"--trained={fps}", "--prompt=a red circle", "--count=2",
            "--steps=4", "--guidance=1", f"--out={out}", *extra]  # fmt: skip


@pytest.fixture(scope="module")
def report(checkpoints, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "out"
    command(five(checkpoints, out))
    return out


def test_five_rows_of_the_same_prompts_and_seeds(report):
    said = json.loads((report / "fidelity.json").read_text())
    rows = {row["name"]: row for row in said["rows"]}
    assert list(rows) == ["dense", "quantised", "sparse", "joint", "joint-trained"]
    assert [row["attention"] for row in said["rows"]] == ["dense", "FP8", "windows", *["FP8 and windows"] * 2]
    assert all("2 steps with dense" in row["weights"] for row in said["rows"][:4])
    assert "2 steps with FPS" in rows["joint-trained"]["weights"]
    assert rows["dense"]["density"] == rows["quantised"]["density"] == 1
    assert rows["sparse"]["density"] == rows["joint"]["density"] < 0.6
    files = {name: sorted(path.name for path in (report / name).glob("*.mp4")) for name in rows}
    assert len(files["dense"]) == 2 and all(names == files["dense"] for names in files.values())
    made = {name: (report / name / files["dense"][0]).read_bytes() for name in rows}
    assert len(set(made.values())) == 5
    records = [json.loads((report / name / files["dense"][0]).with_suffix(".json").read_text()) for name in rows]
    same = ("seed", "prompt", "shift", "steps", "guidance", "sampler", "clip", "negative_prompt")
    assert all(record[name] == records[0][name] for record in records for name in same)
    assert records[0]["shift"] == 2.0  # what the trained model was trained with
    text = (report / "fidelity.md").read_text()
    assert "no confidence interval: that needs two prompts or more" in text
    assert "joint-trained has other weights than dense" in text and "no row is training-free" not in text
    assert "MS-SSIM (frames of 32x32 are too small" in text


def test_the_dense_row_is_dense_attention(report, checkpoints, tmp_path):
    from eval.generate import command as generate

    generate([f"--checkpoint={checkpoints[0]}", "--prompt=a red circle", "--steps=4", "--guidance=1", "--shift=2",
              f"--out={tmp_path}"])  # fmt: skip
    (name,) = (path.name for path in tmp_path.glob("*.mp4"))
    with_all_windows, row = (np.stack(list(read_frames(folder / name))) for folder in (tmp_path, report / "dense"))
    assert np.abs(with_all_windows.astype(int) - row).mean() < 0.5


def test_started_again_it_makes_and_measures_nothing(report, checkpoints, monkeypatch, capsys):
    before = {path: path.read_bytes() for path in report.rglob("*") if path.is_file()}
    monkeypatch.setattr(reports, "compare", None)
    command(five(checkpoints, report))
    assert capsys.readouterr().out.count("2 of 2 videos are there already") == 5
    assert {path: path.read_bytes() for path in report.rglob("*") if path.is_file()} == before
    line = refused(capsys, five(checkpoints, report, "--steps=5"))
    assert "was made with steps 4 (now 5)" in line


def test_of_several_processes_the_last_to_finish_writes_the_report(checkpoints, tmp_path, monkeypatch, capsys):
    arguments = [*five(checkpoints, tmp_path)[:-1], f"--out={tmp_path}", "--steps=1"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, written in (("0", False), ("1", True)):
        monkeypatch.setenv("RANK", rank)
        command(arguments)
        assert (tmp_path / "fidelity.md").exists() == written
    monkeypatch.setattr("eval.fidelity.write_report", None)
    command(arguments)
    assert "the first one where all are there" in capsys.readouterr().out


def test_weights_that_were_trained_for_it_are_not_called_training_free(checkpoints, tmp_path, capsys):
    command(
        ["models", f"--checkpoint={checkpoints[1]}", "--prompt=a", "--steps=1", "--guidance=1", f"--out={tmp_path}"]
    )
    said = json.loads((tmp_path / "fidelity.json").read_text())
    assert [row["name"] for row in said["rows"]] == ["dense", "quantised", "sparse", "joint"]
    assert "no row is training-free" in (tmp_path / "fidelity.md").read_text()


def test_released_weights_need_attention_to_compare_with(wan_folder, tmp_path, capsys):
    shared = ["models", f"--checkpoint={wan_folder}", "--prompt=a", "--frames=9", "--height=32", "--width=48",
              "--steps=1", "--guidance=1", f"--out={tmp_path / 'out'}"]  # fmt: skip
    assert "there is nothing to compare it with" in refused(capsys, shared)
    assert not (tmp_path / "out").exists()
    assert "larger than the grid" in refused(capsys, [*shared, "--attention.schedule=fps"])
    command([*shared, "--attention.schedule=fps", "--attention.tile=[1,2,2]", "--attention.block=16"])
    said = json.loads((tmp_path / "out/fidelity.json").read_text())
    assert {row["weights"] for row in said["rows"]} == {"released, trained with dense attention"}
    assert said["rows"][-1]["attention"] == "FP8 and windows of fps" and said["settings"]["shift"] == 3.0


def test_rows_that_would_be_the_same_are_left_out():
    def rows(**options):
        return [name for name, *_ in plan_rows("a", None, FPSAttention(**options))]

    assert rows() == ["dense", "quantised", "sparse", "joint"]
    assert rows(quantize=False) == ["dense", "sparse"]
    assert rows(sparse=False) == ["dense", "quantised"]
    assert [name for name, *_ in plan_rows("a", "b", FPSAttention())][-1] == "joint-trained"
    carriers = {name: how.carrier for name, _, how in plan_rows("a", None, FPSAttention(carrier="float8"))}
    assert carriers == {"dense": "input", "quantised": "float8", "sparse": "input", "joint": "float8"}


def test_frames_of_the_sheet_are_spread_over_the_video(pair):
    strip = reports._read_strip(pair[0], 5)
    assert strip.shape == (3, 5, 176, 192)
    first = torch.from_numpy(next(islice(read_frames(pair[0]), 1))).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(strip[:, 0], first)
