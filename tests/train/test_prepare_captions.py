"""Preparing videos with several captions, and folders with images among the videos."""

import json
import logging

from PIL import Image

from tests.helpers.preparing import SMALL, prepare, verdicts, write_config
from tests.helpers.raw_clips import scene, write
from train.entries import Row
from train.index import read_index
from train.origins import find_origin
from train.prepare.scan import make_key, name_captions


def test_the_first_caption_has_the_videos_key_and_others_one_of_their_own(caplog):
    pairs = [("a.mp4", "one"), ("b.mp4", "one"), ("a.mp4", "two"), ("a.mp4", "one"), ("a.mp4", "two")]
    captions = [Row(*pair) for pair in pairs]
    with caplog.at_level(logging.WARNING):
        named = name_captions(captions)
    assert list(named.values()) == captions[:3]
    first, second, third = named
    assert (first, second) == (make_key("a.mp4"), make_key("b.mp4"))
    assert third.startswith(f"{first}-") and len(third) == 25
    assert caplog.messages == ["2 captions say the same of the same video as others: each counts once"]
    assert find_origin(f"{third}-01234567-00001234").video == first


def test_each_caption_is_a_clip_of_the_set_and_an_image_is_left_out(tmp_path, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, seed in (("a.mp4", 30), ("b.mp4", 31)):
        write(raw / name, scene(seed, frames=24, height=120, width=160))
    Image.new("RGB", (160, 120)).save(raw / "c.png")
    rows = [("a.mp4", "one"), ("a.mp4", "two"), ("b.mp4", "three"), ("c.png", "four")]
    (raw / "a.jsonl").write_text("\n".join(json.dumps({"video": video, "prompt": text}) for video, text in rows))
    prepare(raw, tmp_path / "out", write_config(tmp_path / "small.yaml", SMALL))
    expected = {"a.mp4": [[], []], "b.mp4": [[]], "c.png": [["unreadable"]]}
    assert verdicts(tmp_path / "out") == expected
    clips = read_index(tmp_path / "out").clips
    assert sorted(clip.prompt for clip in clips) == ["one", "three", "two"]
    assert len({clip.held_out for clip in clips if clip.prompt in ("one", "two")}) == 1
    assert "c.png: is an image, expected a video" in capsys.readouterr().out
