"""Two folders of videos: which pair, which don't fit, and which are left out."""

import json
import os
import shutil
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest
import torch
from PIL import Image

from eval.fidelity import scores as fidelity_scores
from eval.fidelity import similarity
from eval.fidelity.command import command
from eval.fidelity.pairs import Row, Video
from eval.fidelity.scores import measure
from tests.helpers.commands import refused
from tests.helpers.fidelity_folders import SHAPE, clip, measured, on, write_small, write_two
from tests.helpers.raw_clips import scene, write
from train.common.videos import write_video


@pytest.fixture
def two(tmp_path):
    return write_two(tmp_path)


@pytest.fixture
def small(tmp_path):
    return write_small(tmp_path)


def test_folders_that_dont_pair_are_one_clear_line(two, tmp_path, capsys):
    reference, candidate, out = two
    (tmp_path / "none").mkdir()
    assert "holds no .mp4" in refused(capsys, command, on(reference, tmp_path / "none", out))
    assert "nowhere is no folder" in refused(capsys, command, on(tmp_path / "nowhere", candidate, out))
    for i in range(7):
        clip(reference / f"more {i}.mp4", frames=1)
    clip(candidate / "other.mp4", frames=1)
    line = refused(capsys, command, on(*two))
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
    line = refused(capsys, command, on(*two))
    assert message in line and "expected the same size, rate and number of frames" in line
    assert "clip 0" not in line and "clip 2" not in line and not (out / "scores").exists()
    for i in range(3, 9):
        clip(reference / f"clip {i}.mp4", frames=1, height=32, width=32)
        clip(candidate / f"clip {i}.mp4", frames=2, height=32, width=48)
    line = refused(capsys, command, on(*two))
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
    assert "names that aren't UTF-8: '\\udcff'; rename them" in refused(capsys, command, on(*small))


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
    line = refused(capsys, command, on(*small))
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
    assert refused(capsys, command, on(*small)).count("MSE is inf at frame 0") == 3


@pytest.mark.parametrize("length", [240, 251, 255])
def test_names_as_long_as_a_file_system_takes_them(tmp_path, length):
    for folder in ("x", "y"):
        for letter in "ab":
            clip(tmp_path / folder / "v.mp4", height=32, width=48)
            (tmp_path / folder / "v.mp4").rename(tmp_path / folder / f"{'n' * (length - 5)}{letter}.mp4")
    command(on(tmp_path / "x", tmp_path / "y", tmp_path / "out"))
    assert len(list((tmp_path / "out/scores/candidate").iterdir())) == 2


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
    assert "/proc/report can't be written" in refused(capsys, command, on(two[0], two[1], "/proc/report"))
