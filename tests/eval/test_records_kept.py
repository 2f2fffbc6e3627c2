"""What becomes of videos that are there: broken ones are made again, what isn't ours is never written over."""

import json
from pathlib import Path

import pytest
import torch

import eval.generate.videos as videos
from eval.fidelity.command import command as fidelity
from eval.generate.command import command, plan_jobs
from eval.vbench.__main__ import command as vbench
from tests.helpers.commands import refused
from tests.helpers.records import TINY, contents, cut, making, record, retrain, said_of
from train.common import work
from train.common.videos import write_video


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def put_folder(path):
    path.unlink()
    path.mkdir()


BROKEN_VIDEO = {"cut": cut, "empty": lambda path: path.write_bytes(b""), "folder": put_folder, "a bit": flip,
                "another": lambda path: write_video(path, torch.zeros(3, 1, 32, 48), 16)}  # fmt: skip
BROKEN_RECORD = {"cut": cut, "empty": lambda path: path.write_bytes(b""), "folder": put_folder,
                 **{text: lambda path, text=text: path.write_text(text) for text in ("null", "[]", "{}", "\0" * 100)},
                 "bytes": lambda path: path.write_bytes(b'{"name": "\xff\xfe')}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN_VIDEO)
def test_a_broken_video_is_made_again(made, wan, capsys, kind):
    (video,) = made.glob("*.mp4")
    before = video.read_bytes()
    BROKEN_VIDEO[kind](video)
    assert f"{video} has other bytes than its record says: it is made again" in said_of(capsys, making(wan, made))
    assert video.read_bytes() == before
    assert "1 of 1 videos are there already" in said_of(capsys, making(wan, made))


@pytest.mark.parametrize("kind", BROKEN_RECORD)
def test_a_broken_record_has_its_video_made_again(made, wan, capsys, kind):
    (file,) = made.glob("*.json")
    before = json.loads(file.read_text())
    BROKEN_RECORD[kind](file)
    assert f"{file} is broken: its video is made again" in said_of(capsys, making(wan, made))
    assert json.loads(file.read_text()).keys() == before.keys() and record(made)["sha256"] == before["sha256"]


def test_of_many_broken_videos_some_are_named_and_all_are_counted(wan, tmp_path, capsys):
    run = making(wan, tmp_path / "out", "--count=13")
    command(run)
    for video in (tmp_path / "out").glob("*.mp4"):
        video.write_bytes(b"")
    lines = said_of(capsys, run).splitlines()
    assert sum("has other bytes than its record says: it is made again" in line for line in lines) == 10
    assert "and 3 more videos are made again for such reasons" in lines
    assert "13 of 13 videos are there already" in said_of(capsys, run)


def test_stopped_between_a_record_and_its_video(wan, tmp_path, monkeypatch, capsys):
    """There is never a video without its record, which would be somebody else's."""
    out, replace = tmp_path / "out", Path.replace

    def stop(path, target):
        if Path(target).suffix == ".mp4":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(SystemExit):
        command(making(wan, out))
    assert [path.suffix for path in out.iterdir()] == [".json"]
    monkeypatch.undo()
    said = said_of(capsys, making(wan, out))
    assert "again" not in said and "1 of 1 videos are there already" in said_of(capsys, making(wan, out))


def test_a_video_that_was_removed_is_made_with_the_settings_of_today(made, wan, capsys):
    (video,) = made.glob("*.mp4")
    assert "was made with guidance 1.0 (now 2.0)" in refused(capsys, command, making(wan, made, "--guidance=2"))
    video.unlink()
    assert "again" not in said_of(capsys, making(wan, made, "--guidance=2")) and record(made)["guidance"] == 2.0


# what isn't ours


def own_video(out, name):
    write_video(out / f"{name}.mp4", torch.zeros(3, 1, 32, 48), 16)


def own_record(text):
    return lambda out, name: (out / f"{name}.json").write_text(text)


def own_folder(ending):
    def put(out, name):
        (out / f"{name}{ending}").mkdir()
        (out / f"{name}{ending}/notes").touch()

    return put


NOT_OURS = {
    "a video": (own_video, "has no record that says what made it"),
    "notes": (own_record("my notes\n"), "is no record of a video, it holds 'my notes'"),
    "a list": (own_record("[1, 2]"), "is no record of a video, it holds [1, 2]"),
    "a number": (own_record("7"), "is no record of a video, it holds 7"),
    "other JSON": (own_record('{"name": "x"}'), "is no record of a video that this version made, it lacks prompt"),
    "a folder of that name": (own_folder(".mp4"), ".mp4 is no file"),
    "a record's folder": (own_folder(".json"), ".json is no file"),
}


@pytest.mark.parametrize("kind", NOT_OURS)
def test_what_is_not_ours_is_never_written_over(wan, tmp_path, capsys, monkeypatch, kind):
    """Said before the first step, also where it is in the way of the last video, or of another process's."""
    put, message = NOT_OURS[kind]
    out = tmp_path / "out"
    out.mkdir()
    put(out, plan_jobs(["a"], 2, 0)[1].name)
    before = contents(out)
    monkeypatch.setattr(videos, "_make_all", None)
    monkeypatch.setattr(work, "FIRST_SAYS", 0)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        line = refused(capsys, command, making(wan, out, "--count=2"))
        assert message in line and "move it away, or choose another --out" in line
    assert contents(out) == before


def test_a_process_touches_its_own_videos_alone(wan, tmp_path, capsys, monkeypatch):
    run = making(wan, tmp_path / "out", "--count=2")
    command(run)
    for video in (tmp_path / "out").glob("*.mp4"):
        cut(video)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, other in (("0", "seed1"), ("1", "seed0")):
        monkeypatch.setenv("RANK", rank)
        (theirs,) = (tmp_path / "out").glob(f"*{other}.mp4")
        before = theirs.stat().st_mtime_ns
        said = said_of(capsys, run)
        assert said.count("has other bytes") == 1 and other not in said and theirs.stat().st_mtime_ns == before
    assert "1 of 1 videos are there already" in said_of(capsys, run)


# fidelity and VBench


def test_fidelity_makes_rows_of_other_weights_again(trained, tmp_path, capsys, monkeypatch):
    run = ["models", f"--checkpoint={trained}", f"--out={tmp_path / 'out'}", *TINY]
    fidelity(run)
    first = json.loads((tmp_path / "out/fidelity.json").read_text())["rows"][1]["total"]["psnr"]
    retrain(trained)
    capsys.readouterr()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, written in (("1", False), ("0", True)):  # of one video, which is the first process's
        monkeypatch.setenv("RANK", rank)
        fidelity(run)
        said = capsys.readouterr().out
        assert (said.count("other weights") == 4) == written and ("the last process to finish" in said) != written
    assert json.loads((tmp_path / "out/fidelity.json").read_text())["rows"][1]["total"]["psnr"] != first


def test_what_is_in_the_way_of_fidelitys_last_row_is_said_before_the_first(trained, tmp_path, capsys):
    last = tmp_path / "out/joint"
    last.mkdir(parents=True)
    own_video(last, plan_jobs(["a"], 1, 0)[0].name)
    before = contents(tmp_path / "out")
    run = ["models", f"--checkpoint={trained}", f"--out={tmp_path / 'out'}", *TINY]
    assert "has no record that says what made it" in refused(capsys, fidelity, run)
    assert contents(tmp_path / "out") == before


def test_vbench_counts_what_is_whole(suite, trained, tmp_path, capsys):
    out, small = tmp_path / "run", ["--steps=1", "--frames=2", "--height=16", "--width=16", "--guidance=1"]
    vbench(["plan", f"--suite={suite}", f"--out={out}", "--quick=1", "--dimensions=[scene]"])
    run = ["generate", f"--checkpoint={trained}", f"--out={out}", *small]
    vbench(run)
    (video,) = (out / "videos").glob("*.mp4")
    cut(video)
    capsys.readouterr()
    vbench([*run, "--shard=2/2"])
    assert "1 videos of the other shares are missing" in capsys.readouterr().out
    vbench(run)
    assert f"{video} has other bytes than its record says: it is made again" in capsys.readouterr().out
    retrain(trained)
    vbench([*run, "--shard=2/2"])
    assert "1 videos of the other shares are missing" in capsys.readouterr().out


def test_a_full_disk_is_one_line(wan, tmp_path, capsys, monkeypatch):
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(videos, "encode_video", lambda *_: (_ for _ in ()).throw(full))
    line = refused(capsys, command, making(wan, tmp_path / "out"))
    assert "can't be written (No space left on device)" in line and not (tmp_path / "out").exists()


def test_a_users_files_are_never_written_over(wan, tmp_path, capsys):
    """A picture in the sheet's place; notes in a record's."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "contact.png").write_text("mine")
    assert f"{out / 'contact.png'} was not written by this command" in refused(capsys, command, making(wan, out))
    (out / "contact.png").unlink()
    notes = out / f"{plan_jobs(['a'], 1, 0)[0].name}.json"
    notes.write_text('{"my": notes, not json')
    assert f"{notes} is no record of a video" in refused(capsys, command, making(wan, out))
    assert notes.read_text() == '{"my": notes, not json' and list(out.iterdir()) == [notes]
