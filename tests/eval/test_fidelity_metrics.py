"""How alike two videos are: each metric by its definition, and totals over videos."""

from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from eval.fidelity import sheet as fidelity_sheet
from eval.fidelity import similarity
from eval.fidelity.similarity import compare, find_metrics, read_frames
from eval.fidelity.summary import to_db, total
from eval.intervals import Sample, estimate
from eval.markdown import table
from tests.helpers.fidelity_folders import SHAPE, clip
from tests.helpers.raw_clips import scene
from train.common.faults import ClipError
from train.common.videos import write_video

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same scene, good and badly compressed."""
    folder = tmp_path_factory.mktemp("pair")
    return clip(folder / "good.mp4"), clip(folder / "bad.mp4", crf=45)


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


def test_frames_of_the_sheet_are_spread_over_the_video(pair):
    strip = fidelity_sheet._read_strip(pair[0], 5)
    assert strip.shape == (3, 5, 176, 192)
    first = torch.from_numpy(next(islice(read_frames(pair[0]), 1))).permute(2, 0, 1).float() / 255
    assert torch.equal(strip[:, 0], first)
