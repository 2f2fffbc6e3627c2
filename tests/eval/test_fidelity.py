"""Comparing videos with those of dense attention: metrics, five rows, folders, and going on after a stop."""

import json
import os
import shutil
from fractions import Fraction
from hashlib import sha256
from io import BytesIO
from itertools import islice

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.signal import convolve2d

from eval.fidelity import scores as fidelity_scores
from eval.fidelity import sheet as fidelity_sheet
from eval.fidelity import similarity
from eval.fidelity.command import command, plan_rows
from eval.fidelity.pairs import Row, Video, pair_folders
from eval.fidelity.scores import measure
from eval.fidelity.similarity import compare, find_metrics, read_frames
from eval.fidelity.summary import to_db, total
from eval.intervals import Sample, estimate
from eval.markdown import table
from fps_flex import FPSAttention
from tests.helpers.raw_clips import scene, write
from train.common.faults import ClipError
from train.common.videos import write_video
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


def frames_of(*paths):
    return [np.stack(list(read_frames(path))).astype(np.float64) / 255 for path in paths]


def test_error_of_each_frame_by_its_definition(pair):
    good, bad = pair
    found = compare(bad, good, find_metrics(176, 192)[0], CPU)
    np.testing.assert_allclose(
        found["mse"], [((a - b) ** 2).mean() for a, b in zip(*frames_of(*pair), strict=True)], rtol=1e-6
    )
    assert len(found["mse"]) == 5 and 20 < to_db(max(found["mse"])) < to_db(min(found["mse"])) < 45
    for name in ("ssim", "ms_ssim"):
        assert len(found[name]) == 5 and all(0 < x < 0.99 for x in found[name])


def test_a_video_is_like_itself(pair):
    found = compare(pair[0], pair[0], find_metrics(176, 192)[0], CPU)
    assert found["mse"] == [0.0] * 5
    assert all(found[name] == pytest.approx([1.0] * 5, abs=1e-4) for name in ("ssim", "ms_ssim"))
    assert all(x <= 1 for x in found["ssim"])


def ssim_and_contrast(one, other):
    """Of two pictures [h, w] in float64, over the places where an 11-pixel Gaussian window fits."""
    bell = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / bell.sum() ** 2
    mean_a, mean_b, aa, bb, ab = (
        convolve2d(x, window, mode="valid") for x in (one, other, one**2, other**2, one * other)
    )
    contrast = (2 * (ab - mean_a * mean_b) + 0.03**2) / (aa - mean_a**2 + bb - mean_b**2 + 0.03**2)
    return (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2) * contrast, contrast


def pictures(kind, size):
    """Two [3, size, size] in 0 to 1: noise, smooth with a little noise, flat with a bit flipped, or unlike scenes."""
    if kind == "unlike":
        scenes = (next(scene(seed, frames=1, height=size, width=size)) for seed in (1, 2))
        return tuple(picture.transpose(2, 0, 1) / 255 for picture in scenes)
    random = np.random.default_rng(size)
    one, other = random.random((2, 3, size, size))
    if kind == "smooth":
        one = cv2.resize(one[:, :9, :9].transpose(1, 2, 0), (size, size), interpolation=cv2.INTER_LINEAR).transpose(
            2, 0, 1
        )
        other = 0.9 * one + 0.1 * other
    if kind == "flat":
        one = np.full_like(one, 0.9)
        other = one + np.round(other) / 255
    return one, other


@pytest.mark.parametrize("kind", ["noise", "smooth", "flat"])
@pytest.mark.parametrize("size", [11, 32, 177])
def test_ssim_is_the_mean_where_windows_fit(kind, size):
    one, other = pictures(kind, size)
    expected = np.mean([ssim_and_contrast(a, b)[0].mean() for a, b in zip(one, other, strict=True)])
    batch = (torch.from_numpy(x).float()[None] for x in (one, other))
    assert similarity.ssim(*batch).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["smooth", "unlike", "flat"])
@pytest.mark.parametrize("size", [176, 205])
def test_ms_ssim_is_that_of_five_scales_where_windows_fit(kind, size):
    one, other = pictures(kind, size)
    batch = [torch.from_numpy(x).float()[None] for x in (one, other)]
    expected = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        maps = [ssim_and_contrast(a, b) for a, b in zip(one, other, strict=True)]
        expected *= np.mean([found[0 if scale == 4 else 1].mean() for found in maps]) ** weight
        half = one.shape[-1] // 2
        one, other = (x[:, : 2 * half, : 2 * half].reshape(3, half, 2, half, 2).mean((2, 4)) for x in (one, other))
    assert similarity.ms_ssim(*batch).item() == pytest.approx(expected, abs=1e-3 if kind == "flat" else 1e-4)


def test_mirrored_edges_would_be_other_values():
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
    from torchmetrics.functional.image import structural_similarity_index_measure as mirrored_ssim

    noise = [torch.from_numpy(x).float()[None] for x in pictures("noise", 32)]
    assert abs(mirrored_ssim(*noise, data_range=1.0) - similarity.ssim(*noise)) > 0.003
    unlike = [torch.from_numpy(x).float()[None] for x in pictures("unlike", 176)]
    assert similarity.ms_ssim(*unlike) > 0.1
    assert multiscale_structural_similarity_index_measure(*unlike, data_range=1.0) < 0.01


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_isnt_finite_is_no_score(pair, value):
    def broken(candidate, reference):
        return torch.tensor([0.5, value, 0.5, 0.5, 0.5])

    with pytest.raises(ClipError, match=rf"bad.mp4: LPIPS is {value} at frame 1"):
        compare(pair[1], pair[0], {"lpips": broken}, CPU)


def test_h264_sets_videos_apart_that_were_sixty_db_apart(tmp_path):
    """As the report says of crf 18."""
    video = torch.from_numpy(np.stack(list(scene(0, frames=5, **SHAPE)))).permute(3, 0, 1, 2) / 127.5 - 1
    moved = video + 2e-3 * torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    for name, each in (("a", video), ("b", moved)):
        write_video(tmp_path / f"{name}.mp4", each, 16)
    found = compare(tmp_path / "b.mp4", tmp_path / "a.mp4", {"mse": similarity.mse}, CPU)
    assert 30 < to_db(np.mean(found["mse"])) < 46


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
    assert list(metrics) == ["mse", "ssim", "ms_ssim"]
    assert left_out == {"lpips": "torchvision is not installed", "vmaf": "vmaf-torch is not installed"}
    metrics, left_out = find_metrics(175, 300)
    assert list(metrics) == ["mse", "ssim"]
    assert left_out["ms_ssim"] == "frames of 175x300 are too small: it needs 176 rows and columns"
    assert list(find_metrics(10, 10)[0]) == ["mse"]

    here |= {"torchvision": True, "vmaf_torch": True}
    assert "AlexNet's weights are not at" in find_metrics(176, 192)[1]["lpips"]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / similarity.ALEXNET).touch()
    assert list(find_metrics(176, 192)[0]) == ["mse", "ssim", "ms_ssim", "lpips", "vmaf"]


def test_the_smallest_frames_of_each_metric_are_just_large_enough():
    frames = torch.rand(2, 2, 3, 176, 176)
    metrics, _ = find_metrics(176, 176)
    assert metrics["ms_ssim"](*frames).isfinite().tolist() == [True, True]
    assert metrics["ms_ssim"](*frames[..., :175, :]).isnan().all()
    assert metrics["ssim"](*frames[..., :11, :11]).isfinite().tolist() == [True, True]
    assert metrics["ssim"](*frames[..., :10, :]).isnan().all()


def of_errors(*errors):
    """What is said of videos with these errors, each of frames that are alike."""
    return [{"mse": x, "psnr_of_frames": to_db(x), "ssim": 1 - x} for x in errors]


def test_totals_pool_the_error_and_go_by_prompts():
    errors = [1e-2, 1e-4, 1e-3, 4e-3]
    found = total(of_errors(*errors), ["a", "a", "b", "c"])
    sample = Sample({"a": errors[:2], "b": errors[2:3], "c": errors[3:]}, 0, 1)
    expected = estimate(sample)
    assert found["psnr"]["mean"] == pytest.approx(-10 * np.log10(np.mean(errors)))
    assert found["psnr"]["interval"] == pytest.approx([-10 * np.log10(x) for x in (expected.high, expected.low)])
    assert found["psnr_of_frames"]["mean"] == pytest.approx((20 + 40 + 30 - 10 * np.log10(4e-3)) / 4)
    low, high = found["ssim"]["interval"]
    assert -1 < low < found["ssim"]["mean"] < high < 1
    assert all((x["prompts"], x["videos"]) == (3, 4) for x in found.values())
    alone = total(of_errors(*errors), ["a"] * 4)
    assert all((x["interval"], x["prompts"]) == (None, 1) for x in alone.values())


def test_equal_videos_are_no_hundred_db_in_the_pooled_error():
    found = total(of_errors(0.0, 1e-2), ["a", "b"])
    assert found["psnr"]["mean"] == pytest.approx(-10 * np.log10(5e-3)) and found["psnr_of_frames"]["mean"] == 60
    assert to_db(0.0) == to_db(1e-12) == 100 and to_db(1.0) == 0


def test_bars_and_line_ends_stay_in_their_cell():
    assert table(["a", "b"], [["x|y", "1\n2"]], "lr") == "| a | b |\n|---|---:|\n| x\\|y | 1 2 |"


# two folders


@pytest.fixture
def two(tmp_path):
    """Two folders with three pairs, in a folder with a space."""
    for i in range(3):
        clip(tmp_path / "with dense" / f"clip {i}.mp4", seed=i)
        clip(tmp_path / "with fps" / f"clip {i}.mp4", seed=i, crf=32 + 4 * i)
    return tmp_path / "with dense", tmp_path / "with fps", tmp_path / "report"


@pytest.fixture
def small(tmp_path):
    """As `two`, of frames that take no time."""
    for i in range(3):
        for folder, crf in (("x", 20), ("y", 40)):
            clip(tmp_path / folder / f"clip {i}.mp4", seed=i, crf=crf, height=32, width=48)
    return tmp_path / "x", tmp_path / "y", tmp_path / "report"


def measured(reference, candidate, out):
    """What is found of two folders, without a report."""
    rows = [Row("reference", reference), Row("candidate", candidate)]
    return measure(out, rows, [Video(name, name, name) for name in pair_folders(reference, candidate)])


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
    means = [np.mean([to_db(x) for x in found["mse"]]) for found in by_hand]
    errors = [np.mean(found["mse"]) for found in by_hand]
    assert [video["psnr_of_frames"] for video in second["videos"]] == pytest.approx(means)
    assert [video["psnr"] for video in second["videos"]] == pytest.approx([to_db(x) for x in errors])
    assert means[0] > means[1] > means[2]
    worst = [to_db(max(found["mse"])) for found in by_hand]
    assert [video["worst_psnr"] for video in second["videos"]] == pytest.approx(worst)
    assert second["total"]["psnr"]["mean"] == pytest.approx(to_db(np.mean(errors)))
    assert second["total"]["psnr_of_frames"]["mean"] == pytest.approx(np.mean(means))
    low, high = second["total"]["psnr"]["interval"]
    assert 0 < low < to_db(np.mean(errors)) < high < 100
    text = (out / "fidelity.md").read_text()
    assert f"{to_db(np.mean(errors)):.2f} [{low:.2f}, {high:.2f}]" in text and "| clip 1 | candidate | 0 of 5 |" in text
    assert (
        "Videos a row: 3, of 3 prompts; one whose prompt no record says counts as of a prompt of its own." in text
        and "4 are shown at once" in text
    )
    assert "make the videos with --lossless" in text and "How the videos were made" not in text and "*" not in text
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

    monkeypatch.setattr(fidelity_scores, "compare", stopping)
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
        (lambda path: write(path, scene(1, frames=5, **SHAPE), fps=24), "clip 1.mp4 has 24 frames a second"),
    ],
    ids=["size", "length", "rate"],
)
def test_videos_that_dont_fit_are_all_named_in_one_line(two, capsys, make, message):
    reference, candidate, out = two
    make(candidate / "clip 1.mp4")
    line = refused(capsys, on(*two))
    assert message in line and "expected the same size, rate and number of frames" in line
    assert "clip 0" not in line and "clip 2" not in line and not (out / "scores").exists()
    for i in range(3, 9):
        clip(reference / f"clip {i}.mp4", frames=1, height=32, width=32)
        clip(candidate / f"clip {i}.mp4", frames=2, height=32, width=48)
    line = refused(capsys, on(*two))
    assert message in line and "clip 4.mp4 has 2 frames" in line and " and 8 more: expected" in line


def test_a_thousandth_is_the_same_rate(tmp_path):
    for folder, fps in (("x", 24), ("y", Fraction(24000, 1001))):
        write(tmp_path / folder / "a.mp4", scene(0, frames=5, height=32, width=32), fps=fps)
    command(on(tmp_path / "x", tmp_path / "y", tmp_path / "out"))


def cut(path):
    """The file's end is missing, its index is not."""
    video = torch.from_numpy(np.stack(list(scene(1, frames=5, height=32, width=48)))).permute(3, 0, 1, 2) / 127.5 - 1
    write_video(path, video, 16)
    path.write_bytes(path.read_bytes()[:-40])


def damaged(path):
    """Every packet is there, but some of the bytes are others."""
    path.write_bytes(path.with_name("clip 2.mp4").read_bytes())
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + 1200
    data[middle : middle + 60] = bytes(60)
    path.write_bytes(data)


def changing(path):
    """Frames of two sizes in one file."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=16)
        stream.pix_fmt, stream.height, stream.width = "yuvj420p", 32, 48
        for i, side in enumerate((48, 48, 96, 96, 96)):
            jpeg = BytesIO()
            Image.new("RGB", (side, 32), (i, 99, 9)).save(jpeg, "JPEG")
            packet = av.Packet(jpeg.getvalue())
            packet.pts = packet.dts = i
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 16), True
            container.mux(packet)


@pytest.mark.parametrize("folder", [0, 1], ids=["reference", "candidate"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "is cut short: it holds 4 of 5 frames"),
        (damaged, "clip 1.mp4"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "can't be decoded"),
        (lambda path: path.write_text("no video"), "can't be decoded"),
        (lambda path: path.write_bytes(b""), "can't be decoded"),
        (lambda path: (path.unlink(), path.mkdir()), "can't be decoded"),
        (changing, "32x48 and 32x96 (rows x columns): expected one size"),
    ],
    ids=["cut short", "damaged", "cut", "text", "empty", "folder", "sizes"],
)
def test_a_video_that_cant_be_read_is_left_out(small, folder, spoil, message):
    spoil(small[folder] / "clip 1.mp4")
    found = measured(*small)
    assert list(found.left_out) == ["clip 1"] and message in found.left_out["clip 1"]
    assert str(small[folder] / "clip 1.mp4") in found.left_out["clip 1"]
    assert [video.name for video in found.videos] == list(found.of["candidate"]) == ["clip 0", "clip 2"]


def test_what_one_row_lacks_is_left_out_of_all(small):
    shutil.copytree(small[1], small[1].with_name("z"))
    (small[1].with_name("z") / "clip 0.mp4").write_text("no video")
    rows = [Row(name, small[0].with_name(name)) for name in "xyz"]
    found = measure(small[2], rows, [Video(f"clip {i}", "", "") for i in range(3)])
    assert {name: list(row) for name, row in found.of.items()} == dict.fromkeys("yz", ["clip 1", "clip 2"])
    assert list(found.left_out) == ["clip 0"]


def test_names_that_are_no_text_are_one_line(small, capsys):
    for folder in small[:2]:
        shutil.copy(folder / "clip 0.mp4", os.fsencode(folder) + b"/\xff.mp4")
    assert "names that aren't UTF-8: '\\udcff'; rename them" in refused(capsys, on(*small))


def test_what_is_left_out_is_named_and_counted(small):
    (small[1] / "clip 1.mp4").write_text("no video")
    command(on(*small))
    said = json.loads((small[2] / "fidelity.json").read_text())
    assert [video["name"] for video in said["rows"][1]["videos"]] == ["clip 0", "clip 2"]
    assert said["rows"][1]["total"]["ssim"]["videos"] == 2 and list(said["left_out"]) == ["clip 1"]
    text = (small[2] / "fidelity.md").read_text()
    assert "Left out of all rows, since they can't be read in one: 1, named below." in text
    assert "## Left out: 1" in text and f"| clip 1 | {said['left_out']['clip 1']} |" in text


def test_where_no_video_can_be_read_one_line_says_so(small, capsys):
    for i in range(3):
        (small[i % 2] / f"clip {i}.mp4").write_text("no video")
    line = refused(capsys, on(*small))
    assert line.startswith("error: no video can be compared: ") and line.count("can't be decoded") == 3
    assert not (small[2] / "fidelity.md").exists()


def test_numbers_that_arent_finite_leave_their_video_out(small, monkeypatch, capsys):
    seen = []

    def sometimes(candidate, reference):
        seen.append(1)
        return torch.full((len(candidate),), float("nan") if len(seen) == 2 else 0.1)

    monkeypatch.setattr(similarity, "mse", sometimes)
    found = measured(*small)
    assert list(found.left_out) == ["clip 1"] and found.left_out["clip 1"].endswith("clip 1.mp4: MSE is nan at frame 0")
    monkeypatch.setattr(similarity, "mse", lambda candidate, _: torch.full((len(candidate),), float("inf")))
    (small[2] / "scores/candidate/clip 0.json").unlink()
    (small[2] / "scores/candidate/clip 2.json").unlink()
    assert refused(capsys, on(*small)).count("MSE is inf at frame 0") == 3


def spoiled(**changes):
    return lambda said: {**said, "frames": {**said["frames"], **changes}}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda said: None,
        lambda said: [],
        lambda said: "scores",
        lambda said: {**said, "frames": None},
        lambda said: {**said, "frames": {}},
        lambda said: {**said, "metrics": ["psnr", "ssim"]},
        spoiled(mse=[0.1]),
        spoiled(mse=[]),
        spoiled(mse=["0.1"] * 5),
        spoiled(mse=[True] * 5),
        spoiled(mse=[-1.0] * 5),
        spoiled(ssim=[float("nan")] * 5),
        spoiled(ssim=0.5),
        spoiled(more=[0.5] * 5),
        lambda said: {**said, "frames": {name: numbers[:3] for name, numbers in said["frames"].items()}},
        lambda said: {**said, "frames": {name: [x[0] * 0.5] * 5 for name, x in said["frames"].items()}},
        lambda said: {name: value for name, value in said.items() if name != "sha256"},
    ],
)
def test_other_scores_than_ours_are_measured_again(small, spoil):
    first, file = measured(*small), small[2] / "scores/candidate/clip 1.json"
    kept = file.read_bytes()
    file.write_text(json.dumps(spoil(json.loads(kept))))
    assert measured(*small) == first and file.read_bytes() == kept


@pytest.mark.parametrize("text", ["", '{"candidate"', "[" * 100_000, "\xff"])
def test_scores_that_are_no_json_are_measured_again(small, text):
    first, file = measured(*small), small[2] / "scores/candidate/clip 1.json"
    kept = file.read_bytes()
    file.write_bytes(text.encode("latin-1"))
    assert measured(*small) == first and file.read_bytes() == kept


def test_equal_frames_are_counted_and_marked(small):
    reference, candidate, out = small
    (candidate / "clip 1.mp4").write_bytes((reference / "clip 1.mp4").read_bytes())
    command(on(*small))
    row = json.loads((out / "fidelity.json").read_text())["rows"][1]
    assert (row["equal_frames"], row["frames"]) == (5, 15)
    assert [video["equal_frames"] for video in row["videos"]] == [0, 5, 0]
    errors = [video["mse"] for video in row["videos"]]
    assert errors[1] == 0 and row["total"]["psnr"]["mean"] == pytest.approx(to_db(sum(errors) / 3))
    text = (out / "fidelity.md").read_text()
    assert f"| {row['total']['psnr_of_frames']['mean']:.2f}* [" in text and "| 5 of 15 |" in text
    assert "| clip 1 | candidate | 5 of 5 | 100.00 | 100.00* |" in text
    assert "*: among the frames are equal ones, which count as 100 dB." in text


def test_records_beside_the_videos_say_how_they_were_made(small):
    for folder, weights in ((small[0], "0123456789abcdef"), (small[1], "run 7, step 9, weights fedcba9876543210")):
        for i in range(3):
            record = {
                "prompt": "a cat" if i < 2 else "a dog",
                "fingerprints": {"transformer": weights},
                "machine": {"device": "NVIDIA H100", "commit": f"c0ffee{i // 2}"},
                "seconds": 10.0 + i,
                "peak_gb": 20.0 + i,
                "density": 0.25,
                "lossless": True,
            }
            (folder / f"clip {i}.json").write_text(json.dumps(record))
    (small[1] / "clip 0.json").write_text("[]")
    (small[0] / "clip 1.json").write_text(
        json.dumps({"prompt": "a cat", "machine": 3, "seconds": "long", "lossless": True})
    )
    command(on(*small))
    first, second = json.loads((small[2] / "fidelity.json").read_text())["rows"]
    assert first["made"]["seconds"] == 11.0 and second["made"]["commits"] == {"c0ffee0": 1, "c0ffee1": 1}
    assert second["total"]["mse"]["prompts"] == 2 and second["total"]["mse"]["videos"] == 3
    assert first["lossless"] is True and second["lossless"] is None
    text = (small[2] / "fidelity.md").read_text()
    head = "seconds per video (median) | peak memory | device | commit | fingerprint of the transformer"
    assert f"| row | {head} |" in text
    commits, weights = "c0ffee0 (1 video), c0ffee1 (1 video)", "run 7, step 9, weights fedcba987654"
    assert f"| candidate | 11.5 | 22.0 GB | NVIDIA H100 | {commits} | {weights} |" in text
    assert "Videos a row: 3, of 2 prompts; one" in text and "| candidate | 0.250 |" in text
    assert "Whether all files are lossless no record says: where they aren't, H.264 at crf 18 adds" in text
    (small[1] / "clip 0.json").write_text('{"lossless": true}')
    command(on(*small))
    assert "The files are lossless." in (small[2] / "fidelity.md").read_text()
    (small[1] / "clip 0.json").write_text('{"lossless": false}')
    command(on(*small))
    assert "where their windows fit. H.264 at crf 18 adds" in (small[2] / "fidelity.md").read_text()


def test_a_record_of_other_bytes_says_nothing_of_a_video(small):
    """Not even its prompt; it is named, and the right one counts."""
    reference, candidate, out = small
    digests = [sha256((candidate / f"clip {i}.mp4").read_bytes()).hexdigest() for i in range(3)]
    for i, said in enumerate((digests[0], "0" * 64, digests[1])):
        record = {"prompt": "p", "lossless": True, "sha256": said, "fingerprints": {"transformer": f"weights {i}"}}
        for folder in small[:2]:
            (folder / f"clip {i}.json").write_text(json.dumps(record))
    command(on(*small))
    row, text = json.loads((out / "fidelity.json").read_text())["rows"][1], (out / "fidelity.md").read_text()
    assert row["made"]["fingerprints"] == {"transformer": {"weights 0": 1}}
    assert row["of_other_files"] == ["clip 1", "clip 2"]
    assert "not counted: clip 0 of reference, clip 1 of reference, clip 2 of reference, clip 1 of candidate" in text
    assert row["lossless"] is None and "The files are lossless." not in text and "of 3 prompts" in text


@pytest.mark.parametrize("length", [240, 251, 255])
def test_names_as_long_as_a_file_system_takes_them(tmp_path, length):
    for folder in ("x", "y"):
        for letter in "ab":
            clip(tmp_path / folder / "v.mp4", height=32, width=48)
            (tmp_path / folder / "v.mp4").rename(tmp_path / folder / f"{'n' * (length - 5)}{letter}.mp4")
    command(on(tmp_path / "x", tmp_path / "y", tmp_path / "out"))
    assert len(list((tmp_path / "out/scores/candidate").iterdir())) == 2


REPORT = ("fidelity.md", "fidelity.json", "side-by-side.png", "scores/candidate/clip 1.json")


@pytest.mark.parametrize("name", REPORT)
@pytest.mark.parametrize("kind", ["a folder", "the user's"])
def test_what_is_in_the_way_of_a_report_is_refused_before_work_and_kept(small, capsys, monkeypatch, name, kind):
    path = small[2] / name
    path.parent.mkdir(parents=True)
    path.mkdir() if kind == "a folder" else path.write_text("mine")
    monkeypatch.setattr(fidelity_scores, "compare", None)
    assert f"{path} " in refused(capsys, on(*small))
    assert path.is_dir() if kind == "a folder" else path.read_text() == "mine"


def test_a_file_where_the_scores_go_is_refused(small, capsys):
    small[2].mkdir()
    (small[2] / "scores").write_text("mine")
    assert "scores/candidate can't be written (Not a directory)" in refused(capsys, on(*small))
    assert (small[2] / "scores").read_text() == "mine"


def test_a_report_takes_its_own_place(small):
    command(on(*small))
    first = {path: path.read_bytes() for path in small[2].rglob("*") if path.is_file()}
    command(on(*small))
    assert {path: path.read_bytes() for path in small[2].rglob("*") if path.is_file()} == first


def test_where_all_videos_are_equal_the_interval_is_explained(small):
    command(on(small[0], small[0], small[2]))
    text = (small[2] / "fidelity.md").read_text()
    assert "| 100.00 [1.502, 100.00]† | 100.00* [29.24, 100.00]† |" in text
    assert "†: all videos have this number" in text and "up to 71% of all prompts have another number" in text
    command(on(*small))
    assert "†" not in (small[2] / "fidelity.md").read_text()


def test_beneath_each_strip_is_its_difference(small, monkeypatch):
    drawn = []
    monkeypatch.setattr(fidelity_sheet, "draw_contact_sheet", lambda path, *rest, **_: drawn.extend(rest))
    command(on(*small))
    strips, captions = drawn
    assert len(strips) == 9 and captions[2] == "|candidate - reference| x 8"
    first, second, difference = (strips[:3].double() + 1) / 2
    assert torch.allclose(difference, (8 * (second - first).abs()).clamp(max=1), atol=1e-5) and difference.max() > 0.2


def test_videos_of_one_frame_and_of_several_sizes(tmp_path, capsys):
    for name, shape in (("a", {"height": 32, "width": 48}), ("b", SHAPE)):
        for folder, crf in (("x", 20), ("y", 40)):
            clip(tmp_path / folder / f"{name}.mp4", frames=1, crf=crf, **shape)
    command(on(tmp_path / "x", tmp_path / "y", tmp_path / "out"))
    said = json.loads((tmp_path / "out/fidelity.json").read_text())
    assert [video["frames"] for video in said["rows"][1]["videos"]] == [1, 1]
    assert said["not_measured"]["ms_ssim"].startswith("frames of 32x48 are too small")
    Image.open(tmp_path / "out/side-by-side.png").verify()


def test_an_unwritable_report_is_refused_before_anything_is_measured(two, capsys, monkeypatch):
    monkeypatch.setattr(fidelity_scores, "compare", None)
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
    assert "Videos a row: 2, of 1 prompt. No confidence interval: that needs two prompts or more." in text
    assert "joint-trained has other weights than dense" in text and "no row is training-free" not in text
    assert "MS-SSIM (frames of 32x32 are too small" in text


def test_the_dense_row_is_dense_attention(report, checkpoints, tmp_path):
    from eval.generate.command import command as generate

    generate([f"--checkpoint={checkpoints[0]}", "--prompt=a red circle", "--steps=4", "--guidance=1", "--shift=2",
              f"--out={tmp_path}"])  # fmt: skip
    (name,) = (path.name for path in tmp_path.glob("*.mp4"))
    with_all_windows, row = (np.stack(list(read_frames(folder / name))) for folder in (tmp_path, report / "dense"))
    assert np.abs(with_all_windows.astype(int) - row).mean() < 0.5


def test_started_again_it_makes_and_measures_nothing(report, checkpoints, monkeypatch, capsys):
    before = {path: path.read_bytes() for path in report.rglob("*") if path.is_file()}
    monkeypatch.setattr(fidelity_scores, "compare", None)
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
    monkeypatch.setattr("eval.fidelity.command.write_report", None)
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
    assert "there is nothing to compare with dense attention: that is what" in refused(capsys, shared)
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
    strip = fidelity_sheet._read_strip(pair[0], 5)
    assert strip.shape == (3, 5, 176, 192)
    first = torch.from_numpy(next(islice(read_frames(pair[0]), 1))).permute(2, 0, 1).float() / 255
    assert torch.equal(strip[:, 0], first)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--attention.schedule=dense"], "--attention.schedule made it so, leave out what did"),
        (["--attention.quantize=false", "--attention.sparse=false"],
         "--attention.quantize and --attention.sparse made it so"),
        (["--trained={fps}"], "are the same weights: leave --trained out"),
    ],
)  # fmt: skip
def test_what_leaves_nothing_to_compare_is_named(checkpoints, tmp_path, capsys, options, line):
    fps = checkpoints[1]
    words = [f"--checkpoint={fps}", f"--out={tmp_path / 'out'}", "--prompt=a", "--steps=1"]
    assert line in refused(capsys, ["models", *words, *(word.format(fps=fps) for word in options)])
    assert not (tmp_path / "out").exists()
