"""Our own temporal_flickering, against its formula and what the official package gave."""

import json

import av
import numpy as np
import pytest

from docs.make.parity import CASES, RESULTS, Case, write_case
from eval.vbench.flicker import read_frames, score_flicker, temporal_flickering
from eval.vbench.suite import FLICKER
from train.common.videos import ClipError


def test_flicker_is_the_mean_absolute_difference_of_following_frames():
    frames = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    changes = [np.abs(a - b).mean() for a, b in zip(frames.astype(np.float32), frames[1:].astype(np.float32))]  # noqa: B905
    assert temporal_flickering(frames) == pytest.approx((255 - np.mean(changes)) / 255, abs=1e-7)
    assert temporal_flickering(frames[[0, 0]]) == 1
    extremes = np.stack([np.zeros_like(frames[0]), np.full_like(frames[0], 255)])
    assert temporal_flickering(extremes) == 0


@pytest.mark.parametrize("number", [i for i, case in enumerate(CASES) if case.crf == 0])
def test_flicker_is_what_the_official_package_gave_for_the_same_frames(tmp_path, number):
    row = json.loads(RESULTS.read_text())[FLICKER]["videos"][number]
    assert row["case"] == vars(CASES[number])
    write_case(tmp_path / "video.mp4", CASES[number], number)
    assert score_flicker(tmp_path / "video.mp4") == pytest.approx(row["official"], abs=1e-6)


def test_the_record_sums_up_its_own_rows_of_the_cases_that_are_here():
    said = json.loads(RESULTS.read_text())[FLICKER]
    rows = said["videos"]
    assert [row["case"] for row in rows] == [vars(case) for case in CASES]
    assert said["official_overall"] == pytest.approx(np.mean([row["official"] for row in rows]), abs=1e-7)
    for way in ("native", "subprocess"):
        largest = max(abs(row[way] - row["official"]) for row in rows)
        assert said[f"largest_difference_{way}"] == largest < 1e-6


def test_frames_are_read_as_bt601_whatever_the_file_says(tmp_path):
    """OpenCV 4.11 does; heeding BT.709 would give other pixels."""
    case = Case("yuv420p", 32, 32, 2, colours=1, levels=1)
    for name, colours in (("tagged.mp4", 1), ("plain.mp4", None)):
        write_case(tmp_path / name, Case(**{**vars(case), "colours": colours}), 0)
    tagged, plain = (np.stack(list(read_frames(tmp_path / name))) for name in ("tagged.mp4", "plain.mp4"))
    assert (tagged == plain).all()
    with av.open(str(tmp_path / "tagged.mp4")) as container:
        heeding = next(container.decode(video=0)).to_ndarray(format="bgr24")
    assert (heeding != tagged[0]).any()


def test_one_frame_cannot_flicker(tmp_path):
    write_case(tmp_path / "one.mp4", Case("yuv420p", 32, 32, 1), 0)
    with pytest.raises(ClipError, match="fewer than two frames"):
        score_flicker(tmp_path / "one.mp4")
