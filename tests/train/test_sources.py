"""Captions of a folder in each of the formats, and what is said of those that can't be used."""

import json
import logging

import pytest

from tests.helpers.grey_clips import make_clip
from tests.helpers.raw_clips import read_captions
from train.folder import scan_folder

FORMATS = "metadata.csv with the columns video,prompt, metadata.jsonl, videos2caption.json or a .txt beside each video"


def write_files(folder, **files):
    """Text by file name, "__" for the dot."""
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")


def to_lines(*entries):
    return "\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)


def test_a_csv_is_read_in_its_own_order(tmp_path):
    text = '\ufeffprompt,video\n"a cat, asleep",b ü.mp4\n"two\nlines",a.mp4\n,/far/c.mp4\n'
    write_files(tmp_path, metadata__csv=text)
    expected = [("b ü.mp4", "a cat, asleep"), ("a.mp4", "two\nlines"), ("/far/c.mp4", "")]
    assert read_captions(tmp_path) == expected


@pytest.mark.parametrize("video", ["video", "path", "file_name", "video_path", "file"])
@pytest.mark.parametrize("caption", ["prompt", "caption", "cap", "text"])
@pytest.mark.parametrize("name", ["metadata.jsonl", "my clips.jsonl"])
def test_lines_of_json_are_read_under_any_of_the_keys(tmp_path, name, video, caption):
    entries = [{video: "z ü.mp4", caption: "a\u2028b", "fps": 8}, {video: "../a.mp4", caption: "c"}]
    (tmp_path / name).write_text(to_lines(*entries) + "\n\n", encoding="utf-8")
    assert read_captions(tmp_path) == [("z ü.mp4", "a\u2028b"), ("../a.mp4", "c")]


def test_fastvideos_json_is_read_and_its_videos_found(tmp_path):
    for name in ("videos/in ü.mp4", "out.mp4", "videos/both.mp4", "both.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = ["out.mp4", "in ü.mp4", "both.mp4", "gone.mp4"]
    entries = [{"path": name, "cap": ["first", "second"] if name == "out.mp4" else name} for name in names]
    write_files(tmp_path, videos2caption__json=json.dumps(entries))
    expected = [
        ("out.mp4", "first"),
        ("out.mp4", "second"),
        ("videos/in ü.mp4", "in ü.mp4"),
        ("both.mp4", "both.mp4"),
        ("gone.mp4",) * 2,
    ]
    assert read_captions(tmp_path) == expected  # each caption of a list


def test_a_txt_beside_each_video_is_read_in_the_order_of_the_paths(tmp_path, caplog):
    for name in ("b.mp4", "A 1.5 ü.MOV", "deep/er/c.webm", "no.mkv", "d.xyz", "deep/no.avi", ".hid/e.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        if not name.split("/")[-1].startswith("no"):
            (tmp_path / name).with_suffix(".txt").write_text(f" it is {name}\n", encoding="utf-8")
    write_files(tmp_path, notes__txt="no video has this name")
    with caplog.at_level(logging.WARNING):
        rows = read_captions(tmp_path)
    assert rows == [(name, f"it is {name}") for name in ("A 1.5 ü.MOV", "b.mp4", "deep/er/c.webm")]
    assert f"left out a clip: {tmp_path}/no.mkv: has no .txt beside it" in caplog.text
    assert f"{tmp_path}/deep/no.avi: has no .txt" in caplog.text
    assert f"left out 2 of the 5 clips in {tmp_path}" in caplog.text


def test_the_first_format_that_is_there_is_the_only_one_read(tmp_path):
    (tmp_path / "a.mp4").touch()
    write_files(
        tmp_path,
        metadata__csv="video,prompt\na.mp4,csv",
        metadata__jsonl=to_lines({"video": "a.mp4", "prompt": "metadata.jsonl"}),
        other__jsonl=to_lines({"video": "a.mp4", "prompt": "other.jsonl"}),
        videos2caption__json=json.dumps([{"path": "a.mp4", "cap": "json"}]),
        a__txt="txt",
    )
    for name in ("metadata.csv", "metadata.jsonl", "other.jsonl", "videos2caption.json", "a.txt"):
        assert read_captions(tmp_path) == [("a.mp4", name if name.endswith("jsonl") else name.split(".")[-1])]
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"no captions in .*: expected {FORMATS}"):
        read_captions(tmp_path)
    with pytest.raises(ValueError, match=f"^no folder {tmp_path}/gone: expected a folder of clips with {FORMATS}$"):
        read_captions(tmp_path / "gone")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.jsonl",
            '{"video": "a"}',
            "a.jsonl, line 1: has no caption: its keys are video, expected prompt or caption",
        ),
        (
            "a.jsonl",
            '\n{"prompt": "a"}',
            "line 2: has no video: its keys are prompt, expected video or path or file_na",
        ),
        ("a.jsonl", '{"file": "a", "cap": "b"}\n{', r"a.jsonl, line 2: malformed JSON \(Expecting property name .* at"),
        ("a.jsonl", '["a.mp4", "x"]', "line 1: is a list, expected a JSON object"),
        ("a.jsonl", '{"file": 3, "cap": "b"}', "line 1: file is 3, expected text"),
        ("a.jsonl", '{"file": "", "cap": "b"}', "line 1: the video is empty"),
        ("a.jsonl", "\n", "a.jsonl names no clip: expected a line with a JSON object for each"),
        ("videos2caption.json", "[]", r"videos2caption.json names no clip: expected a list with {path, cap} for each"),
        ("videos2caption.json", '{"path": "a", "cap": "b"}', "names no clip: expected a list"),
        ("videos2caption.json", '[\n{"path": "a",}]', r"videos2caption.json, line 2: malformed JSON \("),
        (
            "videos2caption.json",
            '[{"path": "a", "cap": "b"}, {"path": "c"}]',
            "entry 2: has no caption: its keys are p",
        ),
        ("videos2caption.json", '[{"path": "a", "cap": []}]', r"entry 1: cap is \[\], expected text"),
        (
            "metadata.csv",
            'video,prompt\na,"' + "x" * 140_000,
            r"metadata.csv, after line 1: malformed CSV \(field larger",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_captions(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}") and "\n" not in str(caught.value)


def test_two_files_of_json_lines_and_text_that_is_not_utf8_are_named(tmp_path):
    write_files(tmp_path, b__jsonl="{}", a__jsonl="{}")
    with pytest.raises(ValueError, match=r"has 2 JSONL files \(a.jsonl, b.jsonl\): expected one, or metadata.jsonl"):
        read_captions(tmp_path)
    (tmp_path / "metadata.csv").write_bytes("video,prompt\na.mp4,ü".encode("latin-1"))
    with pytest.raises(ValueError, match="metadata.csv: isn't UTF-8 at byte 19"):
        read_captions(tmp_path)


def test_a_folder_of_texts_and_one_of_json_can_be_scanned(tmp_path):
    (tmp_path / "videos").mkdir()
    make_clip(tmp_path / "videos/a b.mp4", 10, 8)
    write_files(tmp_path / "videos", **{"a b__txt": "from the text"})
    assert [(clip.video, clip.prompt) for clip in scan_folder(tmp_path, 4, 8)] == [("videos/a b.mp4", "from the text")]
    write_files(tmp_path, videos2caption__json=json.dumps([{"path": "a b.mp4", "cap": "from the JSON"}]))
    assert [(clip.video, clip.prompt) for clip in scan_folder(tmp_path, 4, 8)] == [("videos/a b.mp4", "from the JSON")]
