"""Reading clips of any rate and size, writing mp4s, and what is said of files that can't be used."""

import av
import numpy as np
import pytest
import torch

from tests.helpers.grey_clips import bright_quarters, levels, make_clip, make_corner, show_turned
from train.common.boxes import Box
from train.common.videos import ClipError, Probe, clip_seconds, probe, read_clip, sample_frames, write_video


@pytest.mark.parametrize(
    ("fps", "wanted", "start", "expected"),
    [
        (8, 8, 0.0, [0, 1, 2, 3, 4, 5]),
        (24, 8, 0.0, [0, 3, 6, 9, 12, 15]),
        (8, 16, 0.0, [0, 0, 1, 1, 2, 2]),
        (30, 12, 0.0, [0, 2, 5, 7, 10, 12]),
        (8, 8, 1.5, [12, 13, 14, 15, 16, 17]),
        (24, 8, 0.5, [12, 15, 18, 21, 24, 27]),
    ],
)
def test_each_frame_is_the_one_on_show_at_its_time(tmp_path, fps, wanted, start, expected):
    path = make_clip(tmp_path / "clip.mp4", 30, fps)
    assert levels(read_clip(path, 6, wanted, 64, 96, start)) == expected


def test_the_last_frame_stays_on_show_to_its_end(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", 8, 8)
    assert clip_seconds(path) == pytest.approx(1.0)
    assert levels(read_clip(path, 16, 16, 64, 96))[-2:] == [7, 7]
    with pytest.raises(ClipError, match="ends after 16 frames at 16 fps from second 0.00, expected 17"):
        read_clip(path, 17, 16, 64, 96)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (80, 50), (33, 201)])
def test_pictures_are_scaled_to_cover_and_cropped_to_the_centre(tmp_path, height, width):
    path = tmp_path / "halves.mp4"
    video = torch.full((3, 2, 64, 96), -1.0)
    video[..., 48:] = 1.0  # dark left, bright right
    write_video(path, video, 8)
    clip = read_clip(path, 2, 8, height, width).float()
    assert clip.shape == (3, 2, height, width)
    assert clip[..., : width // 2 - 8].mean() < 8 and clip[..., width // 2 + 8 :].mean() > 247


def test_a_written_video_reads_back(tmp_path):
    video = torch.linspace(-1, 1, 6).view(1, 6, 1, 1).expand(3, 6, 32, 48)
    write_video(tmp_path / "out.mp4", video, 8)
    back = read_clip(tmp_path / "out.mp4", 6, 8, 32, 48).float() / 127.5 - 1
    assert (back - video).abs().max() < 0.05
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize(
    ("matrix", "size", "quarters"),
    [
        ((1, 0, 0, 1), (64, 96), "#..."),
        ((0, 1, -1, 0), (96, 64), ".#.."),  # a quarter turn clockwise, as phones say of upright videos
        ((-1, 0, 0, -1), (64, 96), "...#"),
        ((0, -1, 1, 0), (96, 64), "..#."),
        ((-1, 0, 0, 1), (64, 96), ".#.."),  # a mirror
        ((1, 0, 0, -1), (64, 96), "..#."),
        ((0, 1, 1, 0), (96, 64), "#..."),
    ],
)
def test_frames_come_out_upright(tmp_path, matrix, size, quarters):
    path = make_corner(tmp_path / "turned.mp4")
    show_turned(path, matrix)
    probed = probe(path)
    assert (probed.height, probed.width) == size
    clip = read_clip(path, 2, 8, *size)
    assert clip.shape == (3, 2, *size) and bright_quarters(clip[:, 1].permute(1, 2, 0).float()) == quarters
    _, picture = next(sample_frames(path, 8, size[0] // 2))
    assert picture.shape == (size[0] // 2, size[1] // 2, 3) and bright_quarters(picture) == quarters


def test_only_what_is_in_the_box_of_the_upright_frame_is_read(tmp_path):
    path = make_corner(tmp_path / "turned.mp4")
    show_turned(path, (0, 1, -1, 0))  # 96 rows, 64 columns, bright at the top right
    for box, expected in (
        (Box(0, 0.5, 0.5, 1), "####"),
        (Box(0.5, 1, 0, 1), "...."),
        (Box(0.25, 0.75, 0.25, 0.75), ".#.."),
        (Box(0, 0.001, 0.999, 1), "####"),
    ):
        clip = read_clip(path, 1, 8, 40, 24, box=box)
        assert clip.shape == (3, 1, 40, 24) and bright_quarters(clip[:, 0].permute(1, 2, 0).float()) == expected
    edge = read_clip(path, 1, 8, 40, 24, box=Box(0, 0.5, 0.5, 1))
    assert edge.min() > 190  # nothing of the dark beside the box
    with pytest.raises(ValueError, match="expected 0 <= top < bottom <= 1"):
        Box(0.5, 0.5, 0, 1)


@pytest.mark.parametrize("name", ["clip.h264", "clip.avi", "clip.ts", "fragments.mp4", "live.mkv", "clip.mpg"])
def test_files_without_an_index_or_times_are_read_alike(tmp_path, name):
    muxer = {"fragments.mp4": {"movflags": "frag_keyframe+empty_moov"}, "live.mkv": {"live": "1"}}.get(name, {})
    codec, fps = ("mpeg2video", 25) if name == "clip.mpg" else ("libx264", 8)
    path = make_clip(tmp_path / name, 30, fps, codec=codec, **muxer)
    known = 0.25 if name == "clip.mpg" else 0.01  # to the last time stamp, which few of its frames have
    assert probe(path).fps == fps and clip_seconds(path) == pytest.approx(30 / fps, abs=known)
    for start in (0, 1, 9, 10, 11, 12, 13, 14):
        assert levels(read_clip(path, 3, fps, 64, 96, start / fps)) == [start, start + 1, start + 2]


def test_a_variable_rate_shows_each_frame_as_long_as_it_lasts(tmp_path):
    path = make_clip(tmp_path / "uneven.mp4", 5, 8, times=[0, 1, 5, 6, 9])
    assert levels(read_clip(path, 10, 8, 64, 96)) == [0, 1, 1, 1, 1, 2, 3, 3, 3, 4]
    assert [time for time, _ in sample_frames(path, 4, 16)] == [0, 5 / 8, 6 / 8, 9 / 8]


@pytest.mark.parametrize(("pix_fmt", "height", "width"), [("yuv444p", 77, 101), ("yuv420p10le", 64, 96)])
def test_odd_sizes_and_ten_bits(tmp_path, pix_fmt, height, width):
    path = make_clip(tmp_path / "clip.mp4", 8, 8, height, width, pix_fmt=pix_fmt)
    assert probe(path) == Probe(width, height, 8.0, 1.0, "h264")
    assert levels(read_clip(path, 8, 8, height, width)) == list(range(8))
    assert levels(read_clip(path, 8, 8, 33, 51, box=Box(0.1, 0.9, 0.2, 0.9))) == list(range(8))


@pytest.mark.parametrize(
    ("fps", "expected"),
    [(2, [0, 4, 8, 12, 16, 20]), (3, [0, 3, 6, 8, 11, 14, 16, 19, 22]), (8, list(range(24))), (50, list(range(24)))],
)
def test_a_sample_is_evenly_spaced_and_shows_no_frame_twice(tmp_path, fps, expected):
    path = make_clip(tmp_path / "clip.mp4", 24, 8, 64, 90)
    times, pictures = zip(*sample_frames(path, fps, 32), strict=True)
    assert list(times) == [number / 8 for number in expected]
    assert {picture.shape for picture in pictures} == {(32, 44, 3)}  # 45 columns would be odd
    assert [round((picture.mean() - 19) / 4) for picture in pictures] == expected


def test_a_video_that_breaks_off_is_used_up_to_there_and_said_to_be_cut_short(tmp_path):
    content = make_clip(tmp_path / "whole.mp4", 40, 8, movflags="faststart").read_bytes()
    path = tmp_path / "part.mp4"
    path.write_bytes(content[: len(content) * 4 // 5])
    assert clip_seconds(path) == 5.0
    seen = [round((picture.mean() - 19) / 4) for _, picture in sample_frames(path, 8, 64)]
    assert 0 < len(seen) < 40 and seen == list(range(len(seen)))
    assert levels(read_clip(path, 3, 8, 64, 96)) == [0, 1, 2]
    with pytest.raises(
        ClipError, match=r"part.mp4: ends after \d+ frames .* 40; it is cut short: its header says 5.00"
    ):
        read_clip(path, 40, 8, 64, 96)
    with pytest.raises(ClipError, match=r"part.mp4: ends after 0 frames .* second 4.80, expected 1; it is cut short"):
        read_clip(path, 1, 8, 64, 96, start=4.8)


def test_a_video_that_can_not_be_used_is_named(tmp_path):
    truncated = make_clip(tmp_path / "whole.mp4", 30, 8)
    (tmp_path / "truncated.mp4").write_bytes(truncated.read_bytes()[:300])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "unknown.mp4").write_bytes(truncated.read_bytes().replace(b"avc1", b"zzz1"))
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 4096), np.float32), format="fltp", layout="stereo")
        silence.sample_rate = 44100
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    for name, message in (
        ("missing.mp4", "missing.mp4: no such file"),
        ("text.mp4", "text.mp4: can't be decoded"),
        ("truncated.mp4", "truncated.mp4: can't be decoded"),
        ("empty.mp4", "empty.mp4: can't be decoded"),
        ("unknown.mp4", r"unknown.mp4: can't be decoded \(no decoder for its codec\)"),
        ("sound.mp4", "sound.mp4: has no video stream"),
    ):
        for use in (
            clip_seconds,
            lambda path: read_clip(path, 1, 8, 32, 32),
            lambda path: next(sample_frames(path, 4, 32)),
        ):
            with pytest.raises(ClipError, match=message):
                use(tmp_path / name)
