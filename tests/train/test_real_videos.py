"""Videos as cameras, browsers and editors leave them: their times, shapes and fields, and what is said of bad ones."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tests.helpers.camera_clips import flagged, flat, frame_of, greys, shift, silence, write
from tests.helpers.grey_clips import bright_quarters, levels, make_clip, show_turned
from train.common.boxes import Box
from train.common.videos import ClipError, clip_seconds, probe, read_clip, sample_frames

CONTAINERS = {
    "clip.mp4": {}, "clip.mov": {}, "clip.mkv": {}, "clip.ts": {}, "clip.flv": {}, "clip.nut": {},
    "live.mkv": {"live": "1"}, "fragments.mp4": {"movflags": "frag_keyframe+empty_moov"},
    "more.mp4": {"movflags": "frag_keyframe"}, "dash.mp4": {"movflags": "dash+frag_keyframe"},
}  # fmt: skip


def check_times(path, frames=30, fps=8):
    """Frame i of a clip of make_clip is on show from i / fps on, also after a seek, and the last one ends the clip."""
    probed = probe(path)
    assert (probed.seconds, probed.fps) == pytest.approx((frames / fps, fps), abs=2e-3)
    times, pictures = zip(*sample_frames(path, None, 64), strict=True)
    assert list(times) == pytest.approx([i / fps for i in range(frames)], abs=2e-3)
    assert [round((picture.mean() - 19) / 4) for picture in pictures] == list(range(frames))
    for start in (0, 1, 7, 13, frames - 3):
        assert levels(read_clip(path, 3, fps, 64, 96, start / fps)) == [start, start + 1, start + 2]
    read_clip(path, frames, fps, 64, 96)
    with pytest.raises(ClipError, match=f"ends after {frames} frames at 8 fps from second 0.00, expected 31$"):
        read_clip(path, frames + 1, fps, 64, 96)


@pytest.mark.parametrize("seconds", [0, 3, 1000])
@pytest.mark.parametrize("name", CONTAINERS)
def test_a_late_start_is_no_length(tmp_path, name, seconds):
    source = make_clip(tmp_path / "source.mp4", 30, 8)
    check_times(shift(source, tmp_path / name, seconds, **CONTAINERS[name]))


@pytest.mark.parametrize("name", ["clip.ts", "clip.mkv", "clip.nut"])
def test_a_recording_begins_at_its_first_key_frame(tmp_path, name):
    """Nothing before it can be decoded, though it has times."""
    source = make_clip(tmp_path / "source.mp4", 40, 8)
    path = shift(source, tmp_path / name, 5.0, skipped=17)
    times, pictures = zip(*sample_frames(path, None, 64), strict=True)
    shown = [round((picture.mean() - 19) / 4) for picture in pictures]
    assert shown == list(range(20, 40)) and list(times) == pytest.approx([i / 8 for i in range(20)], abs=2e-3)
    assert probe(path).seconds == pytest.approx(2.5, abs=2e-3) and probe(path).fps == 8
    assert levels(read_clip(path, 20, 8, 64, 96)) == shown
    assert levels(read_clip(path, 3, 8, 64, 96, 1.0)) == [28, 29, 30]


@pytest.mark.parametrize("seconds", [0, 3, 20])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.flv", "clip.nut"])
def test_sound_that_lasts_longer_or_begins_earlier_counts_for_nothing(tmp_path, name, seconds):
    source = make_clip(tmp_path / "source.mp4", 30, 8)
    check_times(shift(source, tmp_path / name, seconds, audio=6.0))


def test_an_avi_with_longer_sound_lasts_as_long_as_its_frames(tmp_path):
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        stream, sound = container.add_stream("mjpeg", rate=8), container.add_stream("mp3", rate=48000)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        for frame in (frame_of(flat(20 + 4 * i), "yuvj420p", bounds="JPEG") for i in range(30)):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        silence(container, sound, 6.0)
    check_times(path)


def test_what_an_edit_list_leaves_out_is_not_read(tmp_path):
    source = make_clip(tmp_path / "source.mp4", 30, 8)
    path = shift(source, tmp_path / "cut.mp4", -1.0, avoid_negative_ts="disabled")
    assert probe(path).seconds == pytest.approx(2.75) and probe(path).fps == pytest.approx(8)
    assert levels(read_clip(path, 22, 8, 64, 96)) == list(range(8, 30))
    assert levels(read_clip(path, 3, 8, 64, 96, 1.0)) == [16, 17, 18]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.mov", "clip.ts"])
def test_the_rate_is_that_of_the_frames(tmp_path, name):
    """The containers are told 30 frames a second."""
    slow = make_clip(tmp_path / name, 20, 30, times=[8 * i for i in range(20)])
    assert probe(slow).fps == pytest.approx(3.75, rel=0.06)
    times = [0, 1, 2, 20, 25, 40, 41, 60, 70, 71, 80, 90]
    uneven = make_clip(tmp_path / f"uneven-{name}", 12, 30, times=times)
    assert probe(uneven).fps == pytest.approx(11 / 3, rel=0.1)
    assert probe(uneven).seconds == pytest.approx(3.0, abs=0.35)
    assert [time for time, _ in sample_frames(uneven, None, 32)] == pytest.approx([t / 30 for t in times], abs=2e-3)


@pytest.mark.parametrize("fps", ["24000/1001", "30000/1001", "15", "60"])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.flv"])
def test_common_rates_are_exact(tmp_path, name, fps):
    probed = probe(make_clip(tmp_path / name, 30, Fraction(fps)))
    assert probed.fps == pytest.approx(float(Fraction(fps)), rel=2e-3)
    assert probed.seconds == pytest.approx(30 / probed.fps, abs=5e-3)


def test_a_gif_lasts_as_long_as_its_frames(tmp_path):
    path = write(tmp_path / "clip.gif", [frame_of(flat(36 * i), "rgb8") for i in range(7)], codec="gif", rate=10)
    assert (probe(path).fps, probe(path).seconds) == pytest.approx((10, 0.7))
    brightness = read_clip(path, 3, 10, 64, 96, 0.4).float().mean(dim=(0, 2, 3))
    assert brightness.tolist() == pytest.approx([145, 180, 216], abs=12)


@pytest.mark.parametrize("name", ["one.mp4", "one.mkv", "one.ts"])
def test_one_frame(tmp_path, name):
    path = make_clip(tmp_path / name, 1, 8, 256, 256)
    assert probe(path).seconds == pytest.approx(1 / 8, abs=0.1)
    assert levels(read_clip(path, 1, 8, 64, 96)) == [0]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 64), (64, 1), (64, 2)])
@pytest.mark.parametrize("pix_fmt", ["rgb24", "yuv444p"])
def test_a_row_or_a_column_of_pixels(tmp_path, height, width, pix_fmt):
    path = write(tmp_path / "clip.nut", [frame_of(flat(100, height, width), pix_fmt)] * 3, codec="rawvideo")
    assert (probe(path).height, probe(path).width) == (height, width)
    assert read_clip(path, 2, 8, 16, 16).float().mean() == pytest.approx(100, abs=3)
    assert next(sample_frames(path, 8, 16))[1].mean() == pytest.approx(100, abs=3)


# how wide pixels are


def disc(rows=96, columns=96):
    """What a circle is stored as when its pixels aren't square."""
    y, x = np.mgrid[:rows, :columns]
    inside = ((y + 0.5) / rows - 0.5) ** 2 + ((x + 0.5) / columns - 0.5) ** 2 < 0.3**2
    return np.repeat(np.where(inside, 220, 20).astype(np.uint8)[..., None], 3, axis=2)


def extent(picture):
    """Rows and columns of what is bright."""
    bright = np.asarray(picture, np.float32).mean(axis=-1) > 120
    return bright.any(axis=1).sum(), bright.any(axis=0).sum()


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.h264", "clip.flv"])
@pytest.mark.parametrize(("aspect", "columns"), [("2/1", 192), ("1/2", 48), ("8/9", 85), ("1/1", 96)])
def test_pixels_that_are_not_square(tmp_path, name, aspect, columns):
    """The aspect is in the container's header (MP4, Matroska), or only in the codec's (the others)."""
    path = write(tmp_path / name, [frame_of(disc(), "yuv444p")] * 8, aspect=aspect, crf="1")
    assert (probe(path).height, probe(path).width) == (96, columns)
    clip = read_clip(path, 2, 8, 96, columns)[:, 1].permute(1, 2, 0)
    assert extent(clip) == pytest.approx((58, 0.6 * columns), abs=3)
    _, picture = next(sample_frames(path, 8, 48))
    assert picture.shape == (48, round(columns / 4) * 2, 3)
    square = read_clip(path, 1, 8, 48, 48)[:, 0].permute(1, 2, 0)
    rows, across = extent(square)
    assert rows / across == pytest.approx(96 / columns, rel=0.1) or max(rows, across) == 48
    middle = read_clip(path, 1, 8, 48, columns // 2, box=Box(0.25, 0.75, 0.25, 0.75))[:, 0]
    assert middle.shape == (3, 48, columns // 2) and middle[:, 24, columns // 4].min() > 200


def test_turned_and_not_square(tmp_path):
    path = write(tmp_path / "clip.mp4", [frame_of(disc(), "yuv444p")] * 8, aspect="2/1", crf="1")
    content = path.read_bytes()
    at = content.index(b"tkhd") + 4 + 40
    plain = content[:at] + np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(plain + content[at + 36 :])  # the writer put the aspect into the matrix too
    show_turned(path, (0, 1, -1, 0))
    assert (probe(path).height, probe(path).width) == (192, 96)
    assert extent(read_clip(path, 1, 8, 192, 96)[:, 0].permute(1, 2, 0)) == pytest.approx((115, 58), abs=3)


@pytest.mark.parametrize(("across", "down"), [(0, 1), (1, 0), (0, 0), (200, 1), (1, 200)])
def test_an_absurd_aspect_is_none(tmp_path, across, down):
    path = write(tmp_path / "clip.mov", [frame_of(disc(), "rgb24")] * 4, codec="qtrle", aspect="2/1")
    content = path.read_bytes()
    assert (probe(path).height, probe(path).width) == (96, 192)
    at = content.index(b"pasp") + 4
    path.write_bytes(content[:at] + np.array([across, down], ">u4").tobytes() + content[at + 8 :])
    assert (probe(path).height, probe(path).width) == (96, 96)


# fields


def woven(first, i, rows=64, columns=96):
    """Frame i of a bright bar that moves by two columns a field; the later field's lines show it further on."""
    picture = np.empty((rows, columns, 3), np.uint8)
    for line in range(rows):
        at = 16 + 4 * i + (2 if (line % 2 == 0) != (first == "tff") else 0)
        picture[line] = (20 + 200 * np.clip(1.5 - np.abs(np.arange(columns) - at - 12) / 12, 0, 1))[:, None]
    return picture


def combing(picture):
    """Mean difference of neighbouring rows: of an upright bar there is none."""
    grey = np.asarray(picture, np.float32).mean(axis=-1)[8:-8]
    return np.abs(np.diff(grey, axis=0)).mean()


def check_is_whole(path, first, rate, count=10):
    times, pictures = zip(*sample_frames(path, None, 64), strict=True)
    assert list(times) == pytest.approx([i / rate for i in range(count)], abs=2e-3)
    assert min(combing(woven(first, i)) for i in range(count)) > 6 and max(map(combing, pictures)) < 1.5
    for i in range(1, count - 1):  # each shows its first field
        field = np.repeat(woven(first, i)[0 if first == "tff" else 1][None], 64, axis=0)
        assert np.abs(pictures[i].astype(float) - field).mean() < 4


@pytest.mark.parametrize("first", ["tff", "bff"])
@pytest.mark.parametrize(
    ("name", "codec"),
    [("clip.mp4", "libx264"), ("clip.mkv", "libx264"), ("clip.ts", "libx264"), ("clip.mkv", "mpeg2video"),
     ("clip.mov", "prores_ks")],
)  # fmt: skip
def test_interlaced_frames_are_deinterlaced_at_their_times(tmp_path, name, codec, first):
    pix_fmt = "yuv422p10le" if codec == "prores_ks" else "yuv420p"
    frames = flagged([frame_of(woven(first, i), pix_fmt) for i in range(10)], first)
    options = {"crf": "1", "x264-params": f"{first}=1"} if codec == "libx264" else {"qmin": "1", "qmax": "2"}
    path = write(tmp_path / name, frames, codec=codec, rate=25, g="5", flags="+ildct+ilme", **options)
    assert probe(path).seconds == pytest.approx(0.4, abs=2e-3) and probe(path).fps == 25
    check_is_whole(path, first, 25)
    all_frames = read_clip(path, 10, 25, 64, 96).float()
    for start in (2, 5, 7):
        again = read_clip(path, 3, 25, 64, 96, start / 25).float()
        assert (again - all_frames[:, start : start + 3]).abs().mean() < 1.5


@pytest.mark.parametrize(("first", "order"), [("tff", 2), ("bff", 3)])
def test_fields_that_only_the_container_tells_of(tmp_path, first, order):
    frames = [frame_of(woven(first, i), "yuvj422p", bounds="JPEG") for i in range(10)]
    path = write(tmp_path / "clip.mkv", frames, codec="mjpeg", rate=25, qmin="1", qmax="2", tags={"field_order": order})
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.field_order == order
        assert not next(container.decode(video=0)).interlaced_frame
    check_is_whole(path, first, 25)


def test_interlaced_hevc_is_named(tmp_path):
    params = {"x265-params": "interlace=tff:log-level=none"}
    path = write(tmp_path / "clip.mkv", greys(8), codec="libx265", **params)
    with pytest.raises(ClipError, match="clip.mkv: it is interlaced HEVC, which holds fields"):
        probe(path)


# what can't be used


def join(path, *parts):
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def test_times_that_jump_back_are_named(tmp_path):
    parts = [make_clip(tmp_path / f"{i}.ts", 30, 8, 128, 128) for i in range(2)]
    path = join(tmp_path / "joined.ts", *parts)
    assert levels(read_clip(path, 3, 8, 64, 96)) == [0, 1, 2]
    with pytest.raises(ClipError, match=r"joined.ts: its times jump back from second 3.62 to 0.00"):
        list(sample_frames(path, 8, 64))


def test_frames_that_change_their_size(tmp_path):
    """Browsers' recordings do so when the line is bad."""
    source = make_clip(tmp_path / "a.ts", 30, 8, 128, 192)
    small = shift(make_clip(tmp_path / "b.mp4", 30, 8, 64, 96), tmp_path / "b.ts", 3.75 + 0.25)
    path = join(tmp_path / "sizes.ts", source, small)
    pictures = [picture for _, picture in sample_frames(path, 8, 64)]
    assert len(pictures) == 60 and {picture.shape for picture in pictures} == {(64, 96, 3)}
    assert levels(read_clip(path, 4, 8, 64, 96, 28 / 8)) == [28, 29, 0, 1]
    other = shift(make_clip(tmp_path / "c.mp4", 30, 8, 96, 64), tmp_path / "c.ts", 3.75 + 0.25)
    path = join(tmp_path / "shapes.ts", source, other)
    with pytest.raises(ClipError, match=r"shapes.ts: its frames change their shape at second 3.75, to 64x96"):
        list(sample_frames(path, 8, 64))


def test_damage_is_named_where_it_is(tmp_path):
    rng = np.random.default_rng(0)
    frames = [frame_of(rng.integers(0, 256, (64, 96, 3)).astype(np.uint8)) for _ in range(40)]
    content = bytearray(write(tmp_path / "whole.mp4", frames, crf="30", g="10", bf="0").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(rng.integers(0, 256, 400, dtype=np.uint8))
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)
    assert read_clip(path, 8, 8, 64, 96).shape == (3, 8, 64, 96)
    with pytest.raises(ClipError, match=r"damaged.mp4: (is damaged at second 2|ends after 2\d frames)"):
        read_clip(path, 40, 8, 64, 96)


def test_a_matroska_file_that_breaks_off_lasts_as_long_as_what_is_there(tmp_path):
    content = make_clip(tmp_path / "whole.mkv", 40, 8, 128, 128).read_bytes()
    path = tmp_path / "part.mkv"
    path.write_bytes(content[: len(content) * 2 // 3])
    count = len([0 for _ in sample_frames(path, None, 64)])
    assert 10 < count < 40 and clip_seconds(path) == pytest.approx(count / 8, abs=0.26)


def test_a_cover_picture_is_no_video(tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound, cover = container.add_stream("aac", rate=48000), container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 96, 64, "rgb24", 1 << 10
        container.mux(cover.encode(frame_of(flat(90), "rgb24")))
        container.mux(cover.encode())
        silence(container, sound, 1.0)
    with pytest.raises(ClipError, match="song.m4a: has no video stream, only a cover picture"):
        probe(path)


def test_an_encrypted_video_is_named(tmp_path):
    keys = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "7" * 32, "encryption_kid": "a" * 32}
    path = write(tmp_path / "clip.mp4", greys(8), muxer=keys)
    for use in (probe, lambda path: read_clip(path, 1, 8, 64, 96)):
        with pytest.raises(ClipError, match=r"clip.mp4: can't be decoded \(it is encrypted\)"):
            use(path)


@pytest.mark.parametrize(
    ("orientation", "size", "quarters"),
    [(1, (64, 96), "#..."), (2, (64, 96), ".#.."), (3, (64, 96), "...#"), (4, (64, 96), "..#."),
     (5, (96, 64), "#..."), (6, (96, 64), ".#.."), (7, (96, 64), "...#"), (8, (96, 64), "..#.")],
)  # fmt: skip
def test_a_cameras_exif_turns_its_picture(tmp_path, orientation, size, quarters):
    exif, picture = Image.Exif(), np.full((64, 96, 3), 20, np.uint8)
    exif[0x112] = orientation
    picture[:32, :48] = 220
    Image.fromarray(picture).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    probed = probe(tmp_path / "photo.jpg")
    assert (probed.height, probed.width) == size
    assert bright_quarters(read_clip(tmp_path / "photo.jpg", 1, 8, *size)[:, 0].permute(1, 2, 0).float()) == quarters
