"""The RGB that comes out of a file is the RGB that went in, however the file stores its colours."""

import av
import numpy as np
import pytest

from tests.helpers.camera_clips import flat, frame_of, write
from train.common.colours import hlg_scene, pq_code, pq_light, tone_curve
from train.common.videos import ClipError, read_clip, sample_frames

COLOR = (200, 40, 90)
LIMITED, FULL = 1, 2
BT709, BT470BG, SMPTE170M, SMPTE240M, BT2020, PQ, HLG = 1, 5, 6, 7, 9, 16, 18


def color_of(path, height=64, width=96):
    """The middle of the first frame, which is all of one colour."""
    clip = read_clip(path, 1, 8, height, width)
    assert clip.shape == (3, 1, height, width)
    assert clip.flatten(1).float().std(dim=1).max() < 1
    return clip[:, 0, height // 2, width // 2].int().tolist()


def tags(matrix=2, bounds=0, transfer=2, primaries=2):
    return {"colorspace": matrix, "color_range": bounds, "color_trc": transfer, "color_primaries": primaries}


@pytest.mark.parametrize("bounds", [LIMITED, FULL])
@pytest.mark.parametrize(
    ("name", "tag"),
    [("ITU709", BT709), ("ITU601", BT470BG), ("ITU601", SMPTE170M), ("SMPTE240M", SMPTE240M), ("BT2020", BT2020)],
)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p10le"])
def test_a_tagged_matrix_and_range_count(tmp_path, name, tag, bounds, pix_fmt):
    frames = [frame_of(flat(COLOR), pix_fmt, name, {LIMITED: "MPEG", FULL: "JPEG"}[bounds])] * 2
    path = write(tmp_path / "clip.mp4", frames, crf="1", tags=tags(tag, bounds))
    assert color_of(path) == pytest.approx(COLOR, abs=4)


@pytest.mark.parametrize(("height", "name"), [(480, "ITU601"), (718, "ITU601"), (720, "ITU709"), (1080, "ITU709")])
def test_an_untagged_matrix_goes_by_the_rows(tmp_path, height, name):
    path = write(tmp_path / "clip.mp4", [frame_of(flat(COLOR, height), matrix=name)] * 2, crf="1")
    assert color_of(path) == pytest.approx(COLOR, abs=4)


@pytest.mark.parametrize(
    ("pix_fmt", "codec", "suffix"),
    [
        ("rgb24", "libx264rgb", "mp4"), ("gbrp12le", "ffv1", "mkv"),
        ("rgb48le", "ffv1", "mkv"), ("bgr0", "ffv1", "mkv"), ("yuvj420p", "mjpeg", "avi"), ("yuvj444p", "mjpeg", "mkv"),
        ("yuv444p", "libx264", "mp4"), ("yuv422p10le", "libx264", "mp4"), ("yuv420p12le", "libx265", "mp4"),
        ("yuv420p16le", "ffv1", "mkv"), ("yuv411p", "ffv1", "mkv"), ("yuv422p10le", "prores_ks", "mov"),
        ("uyvy422", "rawvideo", "nut"), ("nv12", "rawvideo", "nut"), ("rgb24", "qtrle", "mov"), ("rgb24", "png", "mov"),
        ("yuv420p", "libvpx-vp9", "webm"), ("yuv420p10le", "libsvtav1", "mp4"), ("yuv420p", "mpeg2video", "mkv"),
        ("rgb24", "rawvideo", "nut"), ("yuv420p", "mpeg4", "avi"),
        ("yuv420p", "flv", "flv"), ("gbrp", "libx265", "mkv"),
    ],
)  # fmt: skip
def test_formats(tmp_path, pix_fmt, codec, suffix):
    quality = {"libx264": {"crf": "1"}, "libx264rgb": {"crf": "1"}, "libx265": {"x265-params": "log-level=none:crf=1"}}
    options = quality.get(codec, {"qmin": "1", "qmax": "2"} if codec in ("mjpeg", "mpeg4", "mpeg2video", "flv") else {})
    rate = 25 if codec == "mpeg2video" else 8
    path = write(tmp_path / f"clip.{suffix}", [frame_of(flat(COLOR), pix_fmt)] * 4, codec=codec, rate=rate, **options)
    assert color_of(path) == pytest.approx(COLOR, abs=8 if codec in ("libvpx-vp9", "libsvtav1", "rawvideo") else 5)


@pytest.mark.parametrize("pix_fmt", ["gray", "gray10le", "gray16le"])
def test_grey_formats(tmp_path, pix_fmt):
    path = write(tmp_path / "clip.mkv", [frame_of(flat(140), pix_fmt)] * 2, codec="ffv1")
    assert color_of(path) == pytest.approx([140] * 3, abs=3)


def test_palettes(tmp_path):
    frame = frame_of(flat((255, 0, 85)), "rgb8")
    assert color_of(write(tmp_path / "clip.gif", [frame] * 3, codec="gif")) == pytest.approx([255, 0, 85], abs=4)


def see_through(pix_fmt, height=64, width=96):
    """White, opaque on the left, half there in the middle, not there on the right."""
    picture = np.full((height, width, 4), 255, np.uint8)
    picture[:, width // 3 : 2 * width // 3, 3], picture[:, 2 * width // 3 :, 3] = 128, 0
    return av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format=pix_fmt)


@pytest.mark.parametrize(
    ("pix_fmt", "codec", "suffix"),
    [
        ("yuva420p", "libvpx-vp9", "webm"), ("yuva420p", "libvpx", "webm"), ("yuva444p10le", "prores_ks", "mov"),
        ("rgba", "png", "mov"), ("argb", "qtrle", "mov"), ("bgra", "ffv1", "mkv"), ("yuva420p", "ffv1", "mkv"),
        ("gbrap16le", "ffv1", "mkv"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("scaled", [1, 2])
def test_alpha_is_laid_on_black(tmp_path, pix_fmt, codec, suffix, scaled):
    options = {"auto-alt-ref": "0"} if codec == "libvpx" else {}
    path = write(tmp_path / f"clip.{suffix}", [see_through(pix_fmt)] * 8, codec=codec, **options)
    for start in (0.0, 0.5):
        row = read_clip(path, 2, 8, 64 // scaled, 96 // scaled, start)[0, 1, 30 // scaled].tolist()
        third = len(row) // 3
        assert row[third // 2] > 250 and row[-third // 2] < 5
        assert row[third + third // 2] == pytest.approx(128, abs=6)
    _, picture = next(sample_frames(path, 8, 32))
    assert picture[16, 8].min() > 250 and picture[16, 40].max() < 5


def hdr_clip(path, code, transfer, primaries=BT2020, matrix="BT2020"):
    """A clip of one R'G'B' colour, given in 0 to 1."""
    picture = np.full((64, 96, 3), np.round(np.array(code) * 65535), np.uint16)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb48le")
    frame = frame.reformat(format="yuv444p10le", dst_colorspace=matrix, dst_color_range="MPEG")
    told = tags({"BT2020": BT2020, "ITU709": BT709}[matrix], LIMITED, transfer, primaries)
    return write(path, [frame] * 2, crf="1", tags=told)


def displayed(light):
    """The level of light in 0 to 1 on an SDR display."""
    return 255 * np.clip(light, 0, 1) ** (1 / 2.4)


@pytest.mark.parametrize("light", [0.1, 1.0, 10.0, 50.0, 80.0])
def test_pq_below_the_knee_shows_its_light(tmp_path, light):
    path = hdr_clip(tmp_path / "clip.mp4", [float(pq_code(np.float64(light)))] * 3, PQ)
    assert color_of(path) == pytest.approx([displayed(light / 203)] * 3, abs=3)


@pytest.mark.parametrize(("transfer", "white"), [(PQ, 0.5807), (HLG, 0.75)])
def test_hdr_highlights_are_bent_below_white(tmp_path, transfer, white):
    """Reference white of 203 cd/m2 is 58 % of PQ and 75 % of HLG (BT.2408)."""
    reference = color_of(hdr_clip(tmp_path / "white.mp4", [white] * 3, transfer))
    assert reference == pytest.approx([230] * 3, abs=4)
    peak = 0.7518 if transfer == PQ else 1.0
    assert color_of(hdr_clip(tmp_path / "peak.mp4", [peak] * 3, transfer)) == pytest.approx([255] * 3, abs=2)
    assert max(color_of(hdr_clip(tmp_path / "black.mp4", [0.0] * 3, transfer))) < 4
    red = color_of(hdr_clip(tmp_path / "red.mp4", [white, 0.3, 0.3], transfer))
    assert red[0] > 200 and red[1] < 150 and red[2] < 150


def test_hdr_curves_are_those_of_the_standards():
    assert pq_code(np.array([0.0, 100.0, 203.0, 1000.0, 10000.0])) == pytest.approx(
        [0, 0.5081, 0.5807, 0.7518, 1.0], abs=1e-4
    )
    assert pq_light(pq_code(np.array([0.01, 1.0, 300.0]))) == pytest.approx([0.01, 1.0, 300.0], rel=1e-6)
    assert 1000 * hlg_scene(np.array([0.0, 0.5, 0.75, 1.0])) ** 1.2 == pytest.approx([0, 50.7, 203.2, 1000], abs=0.1)
    light = np.array([0.0, 1.0, 50.0, 90.0, 203.0, 500.0, 1000.0, 4000.0])
    bent = tone_curve(light)
    assert bent[:4] == pytest.approx(light[:4], rel=0.01)
    assert (np.diff(bent[:-1]) > 0).all() and bent[-2:] == pytest.approx([203, 203])


@pytest.mark.parametrize(("transfer", "primaries"), [(14, 9), (1, 12), (13, 12)])
def test_a_wide_gamut_is_brought_to_that_of_bt709(tmp_path, transfer, primaries):
    """A colour within BT.709 comes out as it was before it was written in the wider gamut."""
    back = {9: [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]],
            12: [[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]]}[primaries]  # fmt: skip
    wide = (np.array(back) @ (np.array(COLOR) / 255) ** 2.4) ** (1 / 2.4)
    path = hdr_clip(tmp_path / "clip.mp4", wide, transfer, primaries, "BT2020" if primaries == 9 else "ITU709")
    assert color_of(path) == pytest.approx(COLOR, abs=4)


def test_colours_that_can_not_be_converted_are_named(tmp_path):
    path = write(tmp_path / "clip.mp4", [frame_of(flat(COLOR))] * 2, tags=tags(matrix=8))
    with pytest.raises(ClipError, match=r"clip.mp4: its colours are YCgCo, expected RGB, BT.601, BT.709 or BT.2020"):
        read_clip(path, 1, 8, 64, 96)
    with pytest.raises(ClipError, match="YCgCo"):
        next(sample_frames(path, 8, 64))


@pytest.mark.parametrize("tag", [b"dvh1", b"dvhe", b"dva1", b"dvav"])
def test_dolby_vision_without_another_layer_is_named(tmp_path, tag):
    path = write(tmp_path / "clip.mp4", [frame_of(flat(COLOR))] * 2)
    path.write_bytes(path.read_bytes().replace(b"avc1", tag))
    with pytest.raises(ClipError, match="clip.mp4: its colours are Dolby Vision's own, expected HDR10, HLG or SDR"):
        read_clip(path, 1, 8, 64, 96)


def test_nothing_is_logged(tmp_path, capfd):
    path = write(tmp_path / "clip.avi", [frame_of(flat(COLOR), "yuvj422p")] * 8, codec="mjpeg")
    read_clip(path, 8, 8, 32, 32)
    assert capfd.readouterr().err == ""
