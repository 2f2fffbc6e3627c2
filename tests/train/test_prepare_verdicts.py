"""Raw videos with planted defects, and real ones, and the verdicts on their clips."""

import random

import numpy as np
import pytest
from PIL import Image

from tests.helpers.preparing import SMALL, caption, prepare, read_manifest, verdicts, write_config
from tests.helpers.raw_clips import FPS, letterbox, scene, subtitle, write
from tests.helpers.wheel_clips import link_clips

CUT_AT = 85  # frames
FULL = {  # the default size and limits
    "codec": {"class_path": "fps_flex.wan.codecs.PixelCodec", "init_args": {"stride": [1, 8, 8]}},
    "text": SMALL["text"],
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A video with each defect, and good ones that look unusual; 480p, 5.5 s, 16 fps unless that is the point."""
    raw = tmp_path_factory.mktemp("planted")
    write(raw / "good.mp4", scene(1))
    write(raw / "übung mit leer zeichen/日本 good.mp4", scene(2))
    write(raw / "again at another bitrate.mp4", scene(1), crf=33)
    write(raw / "letterboxed.mp4", letterbox(scene(3, height=608), bar=64))
    write(raw / "subtitled.mp4", subtitle(scene(4, height=720, width=1280)))
    write(raw / "monochrome.mp4", (np.full((480, 848, 3), (40 + i, 60, 90), np.uint8) for i in range(88)))
    write(raw / "static.mp4", (picture for _ in range(88) for picture in scene(5, frames=1)))
    shift = random.Random(0)
    write(raw / "shaking.mp4", (np.roll(picture, shift.randint(0, 120), 1) for picture in scene(6)))
    write(raw / "short.mp4", scene(7, frames=60))
    write(raw / "small.mp4", scene(8, height=240, width=424))
    write(raw / "cut.mp4", [*scene(9, frames=CUT_AT), *scene(10, frames=90)])
    ticks = np.cumsum([0, *random.Random(0).choices([30, 60, 90], k=95)]).tolist()
    write(raw / "variable rate.mp4", scene(11, frames=96), times=ticks)
    write(raw / "ten bit.mp4", scene(12), pix_fmt="yuv420p10le")
    write(raw / "odd.mkv", scene(13, height=481, width=853), pix_fmt="yuv444p")
    (raw / "empty.mp4").touch()
    content = (raw / "good.mp4").read_bytes()
    (raw / "truncated.mp4").write_bytes(content[: len(content) // 3])
    content = write(raw / "breaks off.mkv", scene(14)).read_bytes()
    (raw / "breaks off.mkv").write_bytes(content[: len(content) // 2])
    (raw / "text.mp4").write_text("not a video")
    return caption(raw)


EXPECTED = {
    "good.mp4": [["near-duplicate"]],  # of the next but one, which comes first by name
    "übung mit leer zeichen/日本 good.mp4": [[]],
    "letterboxed.mp4": [[]],  # cropped
    "subtitled.mp4": [[]],  # cropped
    "variable rate.mp4": [[]],
    "ten bit.mp4": [[]],
    "odd.mkv": [[]],
    "cut.mp4": [[], []],
    "again at another bitrate.mp4": [[]],
    "monochrome.mp4": [["monochrome"]],
    "static.mp4": [["static"]],
    "shaking.mp4": [["fast"]],
    "short.mp4": [["short"]],
    "small.mp4": [["small"]],
    "breaks off.mkv": [["short"]],  # what can be decoded of it is
    "empty.mp4": [["unreadable"]],
    "truncated.mp4": [["unreadable"]],
    "text.mp4": [["unreadable"]],
}


def notes(out, video):
    return [note for entry in read_manifest(out) if entry["video"] == video for note in entry.get("notes", [])]


@pytest.mark.slow
def test_exactly_the_planted_defects_fire_at_the_default_limits(planted, tmp_path, capsys):
    out = tmp_path / "out"
    prepare(planted, out, write_config(tmp_path / "full.yaml", FULL), "--stages=[scan,cut,filter]")
    assert verdicts(out) == EXPECTED
    assert notes(out, "letterboxed.mp4") == ["borders cropped to 100% x 79%"]
    (note,) = notes(out, "subtitled.mp4")
    assert note.startswith("subtitles cropped, 8") and note.endswith("% of the height left")
    assert not notes(out, "ten bit.mp4") + notes(out, "static.mp4")
    starts = [entry["start"] for entry in read_manifest(out) if entry["video"] == "cut.mp4"]
    assert starts == [0.0, pytest.approx(CUT_AT / FPS, abs=1e-3)]

    output = capsys.readouterr().out
    assert "18 videos, 16 clips, 9 kept" in output and "3 videos can't be used" in output
    assert "text.mp4: can't be decoded" in output and "not scored: aesthetic, Q-Align" in output
    assert not (out / "index.json").exists()
    for picture in ("summary.png", "contact.png"):
        Image.open(out / picture).verify()


def test_the_verdicts_on_real_clips(tmp_path):
    """bikes: 640x272, and every scene is shorter than 5 s. carphone: 176x144, 4 s, and twice the same."""
    raw = caption(link_clips(tmp_path / "raw"))
    prepare(raw, tmp_path / "out", write_config(tmp_path / "full.yaml", FULL), "--stages=[scan,cut,filter]")
    assert verdicts(tmp_path / "out") == {
        "bigbuckbunny.mp4": [[]],
        "bikes.mp4": [["short", "small"]] * 6,
        "carphone_distorted.mp4": [["short", "small"]],
        "carphone_pristine.mp4": [["short", "small", "near-duplicate"]],
    }
