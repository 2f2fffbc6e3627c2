"""Other people's captions files, and what is said of rows that aren't as they should be."""

import json
import logging
import os
from pathlib import Path

import pytest

from tests.helpers.grey_clips import make_clip
from tests.helpers.raw_clips import read_captions
from train.folder import scan_folder
from train.sources import read_rows

TWO = [("a.mp4", "a red, round ball"), ("b.mp4", "blue")]


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", 'video,prompt\na.mp4,"a red, round ball"\nb.mp4,blue\n'),
        ("metadata.csv", '\ufeffvideo,prompt\r\na.mp4,"a red, round ball"\r\nb.mp4,blue\r\n\r\n,\r\n'),
        ("metadata.csv", 'video,prompt\ra.mp4,"a red, round ball"\rb.mp4,blue\r'),
        ("metadata.csv", 'file_name,text\na.mp4, "a red, round ball" \n b.mp4 , blue \n'),
        ("metadata.csv", 'Video Path, Caption\na.mp4,"a red, round ball"\nb.mp4,blue'),
        ("metadata.csv", 'path,cap,aesthetic score,motion score\na.mp4,"a red, round ball",5.1,3\nb.mp4,blue,4,\n'),
        ("metadata.csv", 'caption;video\n"a red, round ball";a.mp4\nblue;b.mp4\n'),
        ("metadata.csv", "video\tprompt\na.mp4\ta red, round ball\nb.mp4\tblue\n"),
        ("metadata.tsv", "video\tprompt\na.mp4\ta red, round ball\nb.mp4\tblue\n"),
        ("OpenVid-1M.csv", 'video,caption,fps\na.mp4,"a red, round ball",30\nb.mp4,blue,25\n'),
        (
            "dataset.jsonl",
            '{"video_path": "a.mp4", "caption": "a red, round ball"}\n{"Video": "b.mp4", "Text": "blue"}\n',
        ),
        ("metadata.json", '[{"path": "a.mp4", "cap": ["a red, round ball"]}, {"file": "b.mp4", "text": "blue"}]'),
        ("videos.txt", "a.mp4\nb.mp4\n\n"),
    ],
)
def test_other_peoples_files_are_read(tmp_path, name, text):
    write(tmp_path / name, text)
    write(tmp_path / "prompts.txt", "a red, round ball\r\nblue\r\n")
    assert read_captions(tmp_path) == TWO


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", "video,prompt\nb.mp4,b\na.mp4,a red, round ball\n",
         "row 3: has 3 fields between commas, expected 2 (video,prompt): put a caption that has one in double quotes"),
        ("metadata.csv", 'video,prompt\nb.mp4,"two\nlines"\na.mp4\n', "row 3 (line 4): has 1 fields between commas"),
        ("metadata.csv", 'video,prompt\na.mp4,"red\nb.mp4,blue\nc.mp4,green\n',
         ", line 2: malformed CSV: a quote that opens here is never closed"),
        ("metadata.csv", 'video,prompt\nz.mp4,z\na.mp4,"red\nb.mp4,"blue"\nc.mp4,green\n',
         ", line 3: malformed CSV: a quote that opens here closes in the middle of a field (line 4)"),
        ("metadata.csv", 'video,prompt\na.mp4,"red\nb.mp4,blue"\nc.mp4,green\n',
         ", line 2: a quote that opens here takes in what looks like a row ('b.mp4,blue'): close it before that"),
        ("metadata.csv", "a.mp4,red\nb.mp4,blue\n",
         " has no header, its first line is 'a.mp4,red': put video,prompt above it"),
        ("metadata.csv", "video,prompt,Prompt\na.mp4,red,blue\n", " has the column prompt twice"),
        ("metadata.csv", "video,prompt\na.mp4,b\0c\n", ", line 2: holds a NUL character, expected UTF-8 text"),
        ("metadata.csv", "videoID,url,caption\nx,y,z\n", " lacks the column video: it has videoID,url,caption, exp"),
        ("a.jsonl", '{"video": "a.mp4", "prompt": "x"}\n{"video": "b.mp4", "prompt": "a\\ud800b"}\n',
         ", line 2: prompt: holds \\ud800, which is no character, at position 1"),
        ("a.jsonl", '{"video": "a\\u0000.mp4", "prompt": "x"}\n', ", line 1: video: holds a NUL character, ex"),
        ("a.jsonl", "[" * 100_000, ", line 1: malformed JSON ("),
        ("a.jsonl", '{"video": "a.mp4", "prompt": "x", "source": [1]}', ", line 1: source is [1], expected text"),
        ("videos2caption.json", '[{"path": "a", "cap": ["x", 3]}]', ", entry 1: cap is 3, expected text"),
        ("videos.txt", "a.mp4\nb.mp4\n", " has 2 lines and prompts.txt has 1: expected a prompt for each video"),
        ("videos.txt", "a.mp4\n\nb.mp4\n", ", line 2: is empty, expected a video"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line_with_its_place(tmp_path, name, text, message):
    write(tmp_path / name, text)
    write(tmp_path / "prompts.txt", "red")
    with pytest.raises(ValueError) as caught:
        read_captions(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}{'' if message[0] in ', ' else ', '}{message}")
    assert "\n" not in str(caught.value)


def test_captions_of_several_lines_and_with_quotes_are_read(tmp_path):
    write(tmp_path / "metadata.csv", 'video,prompt\na.mp4,"he said ""hi"",\n\nand: left"\nb.mp4,a 5" disk\n')
    assert read_captions(tmp_path) == [("a.mp4", 'he said "hi",\n\nand: left'), ("b.mp4", 'a 5" disk')]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_utf16_is_named(tmp_path, encoding):
    write(tmp_path / "metadata.csv", "video,prompt\na.mp4,x", encoding)
    with pytest.raises(ValueError, match="metadata.csv.* (is UTF-16 .*save it as that|expected UTF-8 text)$"):
        read_captions(tmp_path)


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    file = write(tmp_path / "metadata.csv", "video,prompt\na.mp4,x")
    with pytest.raises(ValueError, match="metadata.csv is a file, expected a folder of clips with .*: give the folder"):
        read_captions(file)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "video,prompt\na.mp4,one\na.mp4,two\na.mp4,one\n"),
        ("a.jsonl", '{"video": "a.mp4", "prompt": ["one", "two"]}\n{"video": "a.mp4", "prompt": "one"}\n'),
        ("videos2caption.json", '[{"path": "a.mp4", "cap": ["one", "two", "one"]}]'),
    ],
)
def test_each_caption_of_a_video_is_a_clip(tmp_path, name, text):
    make_clip(tmp_path / "a.mp4", 10, 8)
    write(tmp_path / name, text)
    clips = scan_folder(tmp_path, 4, 8)
    assert [(clip.video, clip.prompt) for clip in clips] == [("a.mp4", "one"), ("a.mp4", "two"), ("a.mp4", "one")]


def test_names_of_windows_and_of_other_unicode_forms_are_found(tmp_path):
    for name in ("clips/a.mp4", "videos/b.mp4", "videos/deep/c.mp4", "u\u0308.mp4", "real\\name.mp4", "clips/d.mp4"):
        write(tmp_path / name, "")
    names = ["clips\\a.mp4", "b.mp4", ".\\deep\\c.mp4", "\u00fc.mp4", "real\\name.mp4", "./clips/d.mp4", "no\\e.mp4"]
    write(tmp_path / "metadata.csv", "video,prompt\n" + "".join(f"{name},x\n" for name in names))
    expected = ["clips/a.mp4", "videos/b.mp4", "videos/deep/c.mp4", "u\u0308.mp4", *names[4:]]
    assert [video for video, _ in read_captions(tmp_path)] == expected


def test_what_is_not_read_is_told_of_once(tmp_path, caplog, monkeypatch):
    for name in ("a.mp4", "b.MP4", "deep/c.mov", "._a.mp4", "poster.png"):
        write(tmp_path / name, "")
    write(tmp_path / "metadata.csv", f"video,prompt\n./a.mp4,\n{tmp_path}/b.MP4,x\n")
    write(tmp_path / "metadata.jsonl", "{}")
    with caplog.at_level(logging.WARNING):
        read_captions(tmp_path)
    assert caplog.messages == [
        f"captions are read from {tmp_path}/metadata.csv; metadata.jsonl beside it isn't read",
        f"videos in {tmp_path} that metadata.csv doesn't name, and that aren't read: 1",
        f"1 of the 2 captions in {tmp_path} are empty",
    ]
    caplog.clear()
    monkeypatch.setenv("RANK", "1")
    read_captions(tmp_path)
    assert not caplog.messages


def test_a_text_beside_images_gifs_and_upper_case_names_is_read(tmp_path, caplog):
    names = ["a.gif", "b.PNG", "c.TS", "d.mp4", "thumb.mp4", "thumb.jpg", "._d.mp4", ".trash/e.mp4", "f.webp"]
    for name in names:
        write(tmp_path / name, "")
        write((tmp_path / name).with_suffix(".txt"), name)
    write(tmp_path / "g.mkv", "")
    write(tmp_path / "g.mkv.txt", "double")
    write(tmp_path / "h.mp4", "")
    write(tmp_path / "h.caption", "kohya's")
    expected = ["a.gif", "b.PNG", "c.TS", "d.mp4", "f.webp", "g.mkv", "h.mp4", "thumb.mp4"]
    assert [row.video for row in read_rows(tmp_path)] == expected and not caplog.messages


def test_linked_folders_are_followed_once(tmp_path):
    outside = tmp_path / "outside"
    for name in ("far/a.mp4", "far/deep/b.mp4"):
        write(outside / name, "")
        write((outside / name).with_suffix(".txt"), name)
    folder = tmp_path / "clips"
    write(folder / "own/c.mp4", "")
    write(folder / "own/c.txt", "c")
    (folder / "link").symlink_to(outside / "far")
    (folder / "a_link").symlink_to(folder / "own")
    (outside / "far/deep/loop").symlink_to(outside)
    (folder / "own/up").symlink_to(folder)
    assert [row.video for row in read_rows(folder)] == ["link/a.mp4", "link/deep/b.mp4", "own/c.mp4"]


def test_a_name_or_a_text_that_is_not_utf8_is_left_out(tmp_path, caplog):
    for name in (b"bad\xff.mp4", b"bad\xff.txt", b"good.mp4", b"good.txt", b"latin.mp4"):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).touch()
    write(tmp_path / "latin.txt", "\u00fc", "latin-1")
    assert read_captions(tmp_path) == [("good.mp4", "")]
    assert "can't be used (its name: holds \\udcff, which is no character, at position 3)" in caplog.text
    assert f"latin.mp4: can't be used ({tmp_path}/latin.txt: isn't UTF-8 at byte 0)" in caplog.text
    assert "left out 2 of the 3 clips" in caplog.text
    (tmp_path / "good.mp4").unlink()
    with pytest.raises(ValueError, match="none of the 2 clips in .* has a caption that can be read: .*latin.txt: is"):
        read_captions(tmp_path)


def test_many_clips_left_out_are_not_many_lines(tmp_path, caplog, cache_folder):
    make_clip(tmp_path / "a.mp4", 10, 8)
    write(tmp_path / "broken.mp4", "broken")
    rows = [("a.mp4", "x"), *((f"gone{i}.mp4", "x") for i in range(50)), ("broken.mp4", "x")]
    write(tmp_path / "a.jsonl", "\n".join(json.dumps({"video": video, "prompt": prompt}) for video, prompt in rows))
    with caplog.at_level(logging.WARNING):
        assert len(scan_folder(tmp_path, 4, 8)) == 1
    assert len(caplog.messages) == 22 and f"{tmp_path}/gone19.mp4: no such file" in caplog.messages[19]
    assert "left out 31 more clips, all are listed in " in caplog.messages[20]
    assert "30 of them: no such file; 1 of them: can't be decoded (" in caplog.messages[20]
    assert f"left out 51 of the 52 clips in {tmp_path}" == caplog.messages[21]
    (listed,) = cache_folder.glob("fps-flex/clips/*.left-out.txt")
    assert len(listed.read_text().splitlines()) == 51
