"""A folder of clips is looked at once: no later start opens a clip that hasn't changed."""

import json
import logging
import multiprocessing
import os
import shutil
from itertools import islice

import pytest

from tests.helpers.grey_clips import make_clip, make_folder
from train import findings
from train.common.caches import cache_file
from train.data import VideoData
from train.folder import VideoFolder, scan_folder


@pytest.fixture
def opened(monkeypatch):
    """The clips that were opened, since it was last cleared."""
    names = []

    def probe(path, real=findings.probe):
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(findings, "probe", probe)
    return names


def test_two_thousand_clips_are_opened_once(tmp_path, opened, caplog):
    make_clip(tmp_path / "0.mp4", 10, 8)
    for i in range(1, 2000):
        os.link(tmp_path / "0.mp4", tmp_path / f"{i}.mp4")
    (tmp_path / "metadata.csv").write_text("video,prompt\n" + "".join(f"{i}.mp4,clip {i}\n" for i in range(2000)))
    first = scan_folder(tmp_path, 4, 8)
    assert len(opened) == len(first) == 2000
    opened.clear()
    (tmp_path / "metadata.csv").write_text("prompt,video\n" + "".join(f"{i},{i}.mp4\n" for i in range(2000)))
    again = scan_folder(tmp_path, 4, 8)
    assert not opened and [clip.prompt for clip in again[:2]] == ["0", "1"]
    assert [(clip.video, clip.spare) for clip in again] == [(clip.video, clip.spare) for clip in first]


def test_what_has_changed_is_looked_at_again_and_other_frames_are_judged_anew(tmp_path, opened, caplog):
    folder = make_folder(tmp_path, {"a.mp4": 10, "b.mp4": 10, "c.mp4": 4})
    (folder / "b.mp4").write_text("broken")
    assert [clip.video for clip in scan_folder(folder, 4, 8)] == ["a.mp4", "c.mp4"]
    opened.clear()
    assert [clip.video for clip in scan_folder(folder, 8, 8)] == ["a.mp4"] and not opened
    assert "c.mp4: lasts 0.50 s, expected at least 0.88 s (8 frames at 8 fps)" in caplog.text
    assert caplog.text.count("b.mp4: can't be decoded") == 2
    make_clip(folder / "b.mp4", 10, 8)
    assert [clip.video for clip in scan_folder(folder, 8, 8)] == ["a.mp4", "b.mp4"] and opened == ["b.mp4"]
    status = (folder / "a.mp4").stat()
    os.utime(folder / "a.mp4", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    opened.clear()
    scan_folder(folder, 8, 8)
    (folder / "b.mp4").unlink()
    assert [clip.video for clip in scan_folder(folder, 8, 8)] == ["a.mp4"] and opened == ["a.mp4"]


@pytest.mark.parametrize("damage", ["", "{", "[]", "7", '{"version": [0, "0"]}', "\udcff", ["a.mp4", 1], 7, "a.mp4"])
def test_a_broken_cache_is_made_again(tmp_path, opened, damage):
    folder = make_folder(tmp_path / "clips", {"a.mp4": 10})
    scan_folder(folder, 4, 8)
    header = cache_file(folder).read_text().splitlines()[0]
    content = damage if isinstance(damage, str) and damage != "a.mp4" else f"{header}\n{json.dumps(damage)}\n"
    cache_file(folder).write_bytes(content.encode(errors="surrogateescape"))
    for count in (2, 2):
        assert len(scan_folder(folder, 4, 8)) == 1 and len(opened) == count


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, caplog, opened):
    folder = make_folder(tmp_path / "clips", {"a.mp4": 10, "b.mp4": 10})
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        caplog.clear()
        assert len(scan_folder(folder, 4, 8)) == 2
        assert len(caplog.messages) == 1 and "can't be kept in" in caplog.text and "Not a directory" in caplog.text
    assert len(opened) == 4


def test_a_scan_that_is_stopped_keeps_what_it_found(tmp_path, monkeypatch, opened):
    monkeypatch.setattr(findings, "TOGETHER", 2)
    folder = make_folder(tmp_path, {f"{i}.mp4": 10 for i in range(6)})
    counting = findings.probe

    def stopping(path):
        if path.name == "4.mp4":
            raise KeyboardInterrupt
        return counting(path)

    monkeypatch.setattr(findings, "probe", stopping)
    with pytest.raises(KeyboardInterrupt):
        scan_folder(folder, 4, 8)
    monkeypatch.setattr(findings, "probe", counting)
    opened.clear()
    assert len(scan_folder(folder, 4, 8)) == 6 and sorted(opened) == ["4.mp4", "5.mp4"]


def test_a_want_of_rights_is_not_kept(tmp_path, monkeypatch):
    folder = make_folder(tmp_path, {"a.mp4": 10, "b.mp4": 10})
    real = findings.probe

    def denied(path):
        try:
            raise PermissionError(13, "Permission denied")
        except PermissionError:
            raise findings.ClipError(f"{path}: can't be decoded (Permission denied)") from None

    monkeypatch.setattr(findings, "probe", lambda path: denied(path) if path.name == "a.mp4" else real(path))
    assert [clip.video for clip in scan_folder(folder, 4, 8)] == ["b.mp4"]
    monkeypatch.setattr(findings, "probe", real)
    assert [clip.video for clip in scan_folder(folder, 4, 8)] == ["a.mp4", "b.mp4"]


def _scan(folder, counter):
    real = findings.probe

    def probe(path):
        with counter.get_lock():
            counter.value += 1
        return real(path)

    findings.probe = probe
    assert len(scan_folder(folder, 4, 8)) == 40


@pytest.mark.slow
def test_processes_take_turns_and_one_looks_for_all(tmp_path):
    make_clip(tmp_path / "0.mp4", 10, 8)
    for i in range(40):
        shutil.copy(tmp_path / "0.mp4", tmp_path / f"c{i}.mp4")
    (tmp_path / "metadata.csv").write_text("video,prompt\n" + "".join(f"c{i}.mp4,x\n" for i in range(40)))
    spawn = multiprocessing.get_context("spawn")
    counter = spawn.Value("i", 0)
    processes = [spawn.Process(target=_scan, args=(tmp_path, counter)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert counter.value == 40 and [process.exitcode for process in processes] == [0, 0]


def test_odd_files_are_left_out_and_slow_ones_counted(tmp_path, caplog):
    (tmp_path / "folder.mp4").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    make_clip(tmp_path / "slow.mp4", 10, 8)
    make_clip(tmp_path / "fast.mp4", 30, 24)
    names = ["folder.mp4", "pipe.mp4", "loop.mp4", "slow.mp4", "fast.mp4", "x" * 300, "fast.mp4/a.mp4"]
    (tmp_path / "metadata.csv").write_text("video,prompt\n" + "".join(f"{name},x\n" for name in names))
    with caplog.at_level(logging.WARNING):
        assert [clip.video for clip in scan_folder(tmp_path, 4, 16)] == ["slow.mp4", "fast.mp4"]
    for message in (
        "folder.mp4: is a folder", "pipe.mp4: is no file", "loop.mp4: can't be read (Too many levels of sym",
        "x: can't be read (File name too long)", "a.mp4: no such file", "left out 5 of the 7",
        f"1 of the clips in {tmp_path} have fewer than 16 frames a second",
    ):  # fmt: skip
        assert message in caplog.text


def test_an_image_is_a_clip_of_one_frame(tmp_path, caplog):
    from PIL import Image

    for name in ("a.png", "b.jpg", "c.webp", "d.bmp"):
        Image.new("RGB", (48, 32), (250, 20, 20)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(name)
    clips = scan_folder(tmp_path, 1, 60)
    assert [clip.video for clip in clips] == ["a.png", "b.jpg", "c.webp", "d.bmp"]
    for item in VideoFolder(tmp_path, clips, 1, 60, 16, 16):
        assert item["video"].shape == (3, 1, 16, 16) and item["video"][0].float().mean() > 0.9 * 255
    with pytest.raises(ValueError, match="a.png: is an image, which is a clip of one frame, expected 2"):
        scan_folder(tmp_path, 2, 60)


def test_a_clip_that_breaks_is_told_of_once_by_all_loader_processes(tmp_path, capfd):
    folder = make_folder(tmp_path, {f"{i}.mp4": 10 for i in range(6)})
    data = VideoData(str(folder), frames=4, fps=8, height=16, width=16, batch_size=1, workers=2)
    data.setup()
    for clip in data.train_set.clips[:2]:
        (folder / clip.video).write_text("broken")
    handler = logging.StreamHandler()
    logging.getLogger("train.folder").addHandler(handler)
    assert len(list(islice(data.train_dataloader(), 30))) == 30
    logging.getLogger("train.folder").removeHandler(handler)
    assert capfd.readouterr().err.count("left out a clip that broke") == 2
