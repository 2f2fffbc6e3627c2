"""Reading clips of any rate and size, writing mp4s, and what is said of files that can't be used."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from train.videos import ClipError, clip_seconds, read_clip, write_video


def make_clip(path, frames, fps, height=64, width=96):
    """A clip whose frame i is a flat grey of level 20 + 4 i."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "1", "g": "5"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for i in range(frames):
            picture = np.full((height, width, 3), 20 + 4 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def levels(clip):
    """The frame number that each frame of a read clip shows."""
    return ((clip.float().mean(dim=(0, 2, 3)) - 20) / 4).round().int().tolist()


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


def test_a_video_that_can_not_be_used_is_named(tmp_path):
    truncated = make_clip(tmp_path / "whole.mp4", 30, 8)
    (tmp_path / "truncated.mp4").write_bytes(truncated.read_bytes()[:300])
    (tmp_path / "text.mp4").write_text("no video")
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
        ("sound.mp4", "sound.mp4: has no video stream"),
    ):
        for use in (clip_seconds, lambda path: read_clip(path, 1, 8, 32, 32)):
            with pytest.raises(ClipError, match=message):
                use(tmp_path / name)
