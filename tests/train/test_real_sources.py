"""Data preparation of videos as they are found: slow ones, uneven ones, anamorphic ones and ones that start late."""

from fractions import Fraction
from itertools import chain

import pytest

from fps_flex.wan.codecs import PixelCodec
from tests.helpers import raw_clips
from tests.helpers.camera_clips import frame_of, shift, write
from tests.helpers.raw_clips import scene
from train.prepare.cut import cut_one, find_scenes
from train.prepare.judge import Limits, judge, measure_video
from train.prepare.scan import look_at
from train.prepare.standardise import choose_sizes, list_buckets

LIMITS = Limits(min_side=32)


def prepare(path, seconds=2.0, fps=16.0, limits=LIMITS):
    """The first clip of a video that is taken for one scene, judged."""
    source = look_at(path.parent, "key", path.name, "")
    clips = cut_one(source, [], seconds)
    return judge(list(measure_video(path, clips, [])), [source], limits, [], fps)[0]


def view(speed, step, frames=49):
    return list(scene(3, frames=frames, height=120, width=212, speed=speed))[::step]


@pytest.mark.parametrize("fps", [16, 8, 4, 2])
def test_motion_is_measured_by_the_clock(tmp_path, fps):
    """1.04 in all; a fixed rate of 8 would take 4 frames a second for twice the speed."""
    path = raw_clips.write(tmp_path / "clip.mp4", view(2, 16 // fps), fps=fps, crf=10)
    assert prepare(path, limits=Limits(min_side=32, min_fps=0)).scores["motion"] == pytest.approx(1.04, rel=0.1)


def test_motion_of_an_uneven_rate_is_measured_by_the_clock(tmp_path):
    shown = [0, 1, 2, 8, 9, 16, 17, 24, 32, 33, 40, 48]
    pictures = view(2, 1)
    times = [round(1000 * i / 16) for i in shown]
    path = raw_clips.write(tmp_path / "clip.mp4", [pictures[i] for i in shown], times=times, crf=10)
    assert prepare(path).scores["motion"] == pytest.approx(1.04, rel=0.15)


def test_slow_videos_are_dropped_or_noted(tmp_path):
    slow, film = (raw_clips.write(tmp_path / f"{fps}.mp4", view(1, 1), fps=fps, crf=10) for fps in (4, 12))
    assert [reason for reason in prepare(slow).reasons if reason.startswith("slow")] == [
        "slow: 4 frames a second, expected at least 8"
    ]
    kept = prepare(slow, limits=Limits(min_side=32, min_fps=0))
    assert not kept.reasons and kept.notes[-1] == "frames repeated: 4 a second, 16 wanted"
    assert not prepare(slow, fps=4.0).reasons and not prepare(slow, fps=4.0).notes
    assert not prepare(film).reasons and prepare(film).notes == ("frames repeated: 12 a second, 16 wanted",)
    assert prepare(film, limits=Limits(min_side=32, min_fps=15)).reasons == (
        "slow: 12 frames a second, expected at least 15",
    )


def test_the_rate_counts_that_the_frames_have(tmp_path):
    """The container is told 30 frames a second."""
    times = [i * 250 for i in range(13)]
    path = raw_clips.write(tmp_path / "clip.mkv", view(1, 4), fps=30, times=times)
    assert look_at(tmp_path, "key", path.name, "").fps == pytest.approx(4, rel=0.01)
    assert "slow: 4 frames a second, expected at least 8" in prepare(path).reasons


@pytest.mark.parametrize(
    ("aspect", "shape", "size"),
    [
        ("64/45", (45, 80), (32, 64)),
        ("1/1", (45, 80), (32, 64)),
        ("9/16", (48, 48), (64, 32)),
        ("16/9", (48, 48), (32, 64)),
    ],
)
def test_the_bucket_and_the_shorter_side_are_of_square_pixels(tmp_path, aspect, shape, size):
    frames = [frame_of(picture[: shape[0], : shape[1]], "yuv444p") for picture in view(2, 1)]
    path = write(tmp_path / "clip.mp4", frames, rate=16, aspect=aspect, crf="5")
    source = look_at(tmp_path, "key", path.name, "")
    clip = prepare(path, limits=Limits(min_side=64))
    (small,) = [reason for reason in clip.reasons if reason.startswith("small")]
    assert small.startswith(f"small: {source.width}x{source.height}, expected")
    assert (source.height, source.width) == (shape[0], round(shape[1] * float(Fraction(aspect))))
    assert choose_sizes([clip], [source], 4, list_buckets((4, 32, 64), PixelCodec((1, 2, 2))))[0].size == (4, *size)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.flv"])
def test_scenes_are_found_at_our_times_when_the_stream_starts_late(tmp_path, name):
    pictures = chain(*(scene(seed, frames=24, height=120, width=212) for seed in (1, 2, 3)))
    source = raw_clips.write(tmp_path / "source.mp4", pictures)
    for seconds in (0, 7):
        path = shift(source, tmp_path / f"{seconds}-{name}", seconds)
        starts, ends = zip(*find_scenes(path), strict=True)
        assert starts == pytest.approx((0, 1.5, 3.0), abs=2e-3) and ends == pytest.approx((1.5, 3.0, 4.5), abs=2e-3)


def test_odd_formats_say_nothing(tmp_path, capfd):
    """FFmpeg has a warning for each frame of this one."""
    frames = [frame_of(picture, "yuvj420p", bounds="JPEG") for picture in view(2, 4)]
    path = write(tmp_path / "clip.avi", frames, codec="mjpeg")
    find_scenes(path)
    prepare(path, seconds=1.0)
    assert capfd.readouterr() == ("", "")
