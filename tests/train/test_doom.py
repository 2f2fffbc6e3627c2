"""train.doom: what its captions say happens, its bytes repeat, and its held-out levels are the validation."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.commands import ROOT, refused
from tests.helpers.tiny_run import train_tiny
from train.codec import command as fit_codec
from train.common.videos import read_clip
from train.data import VideoData
from train.doom import command as doom
from train.doom import reels
from train.doom.actions import ACTIONS, read_caption, write_caption
from train.doom.levels import Level, list_levels, share_out
from train.doom.player import Press, choose_screen, playing
from train.doom.reels import GAMES, Reel, _write, film_reel, plan_reels
from train.doom.settings import Settings
from train.doom.takes import Retake, _check_motion, take
from train.doom.walls import find_walls, measure_room
from train.doom.workers import _film

try:
    import vizdoom

    LEVELS = list_levels(Path(vizdoom.__file__).parent)
except ImportError:
    LEVELS = []

needs_the_game = pytest.mark.skipif(not LEVELS, reason="needs vizdoom")
SMALL = {"clips": 5, "val_clips": 2, "frames": 12, "height": 32, "width": 64, "levels_held_out": 3}
FILES = ["doom.json", "metadata.jsonl", "sheet.png"]


def words(out, **options):
    return [f"--out={out}", "--workers=2", *(f"--{name}={value}" for name, value in {**SMALL, **options}.items())]


def films_here(monkeypatch, tmp_path, stop_after=None, order=lambda reels: reels):
    """Reels are drawn by this process, of which so many before it is interrupted."""

    def film(reels, settings, out, workers):
        for i, reel in enumerate(order(reels)):
            if i == stop_after:
                raise KeyboardInterrupt
            film_reel(reel, settings, out.absolute())

    monkeypatch.chdir(tmp_path)  # where the game writes its settings
    monkeypatch.setattr(doom, "film_all", film)


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_rows(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """What two processes draw; not to be changed."""
    folder = tmp_path_factory.mktemp("doom") / "clips"
    doom.command(words(folder))
    return folder


# captions, levels and walls


def test_captions_are_read_back():
    for level in ("freedoom1 e3m9", "freedoom2 map18"):
        for action in ACTIONS:
            caption = write_caption(level, action)
            assert read_caption(caption) == (level, action) and len(caption.encode()) < 64
    for other in ("", "a red circle", "freedoom2 map18: the player sings", "freedoom3 map01: the player shoots"):
        with pytest.raises(ValueError, match="is no caption of train.doom"):
            read_caption(other)


@needs_the_game
def test_all_levels_are_found_with_places_doors_and_walls():
    names = [level.name for level in LEVELS]
    assert len(set(names)) == 68 and names[0] == "freedoom1 e1m1" and names[-1] == "freedoom2 map32"
    assert min(len(level.spots) for level in LEVELS) > 5 and sum(bool(level.doors) for level in LEVELS) == 66
    assert min(len(level.walls) for level in LEVELS) > 20
    parts = [share_out(LEVELS, 8, seed) for seed in range(3)]
    for part in parts:
        assert {level.name for split in part.values() for level in split} == set(names)
        assert len(part["val"]) == 8 and len(part["train"]) == 60
    assert len({part["val"][0].name for part in parts}) > 1


def side(sector):
    return bytes(28) + sector.to_bytes(2, "little")


def sector(floor, ceiling):
    return np.array([floor, ceiling], "<i2").tobytes() + bytes(22)


def test_room_ends_at_walls_steps_and_low_ceilings_and_not_at_openings():
    corners = np.array([(100, -50), (100, 50), (200, -50), (200, 50), (300, -50), (300, 50), (-80, 30), (-80, 50)])
    sectors = b"".join([sector(0, 128), sector(24, 128), sector(49, 128), sector(49, 104)])
    sides = b"".join(map(side, range(4)))
    none = 0xFFFF
    into_step, into_ledge, into_slit = (0, 1, 4, 0, 0, 0, 1), (2, 3, 4, 0, 0, 1, 2), (4, 5, 4, 0, 0, 2, 3)

    def room(*lines, y=0.0, heading=0.0):
        return measure_room(find_walls(list(lines), corners, sides, sectors), 0.0, y, heading)

    assert room(into_step) == np.inf  # 24 up is a stair
    assert room(into_step, into_ledge) == pytest.approx(200)
    assert room(into_slit) == pytest.approx(300)  # 55 high
    assert room((0, 1, 4, 0, 0, 0, none)) == pytest.approx(100)  # one side alone: a wall
    assert room((0, 1, 5, 0, 0, 0, 1)) == pytest.approx(100)  # flagged impassable
    assert room(into_ledge, heading=180.0) == np.inf and room(into_ledge, y=90.0) == np.inf
    assert room(into_ledge, y=60.0) == pytest.approx(200)  # which the shoulder meets
    assert room((6, 7, 5, 0, 0, 0, 1), heading=180.0, y=15.0) == pytest.approx(80)


@needs_the_game
def test_each_level_and_action_comes_as_often_as_any_other():
    settings = Settings(960, 64, 0, 32, 16.0, 128, 256, 8)
    levels = share_out(LEVELS, 8, 0)
    reels = plan_reels(settings, levels)
    train = [reel for reel in reels if reel.split == "train"]
    assert Counter(action for reel in train for action in reel.actions) == dict.fromkeys(ACTIONS, 80)
    assert Counter(reel.level.name for reel in train) == dict.fromkeys((x.name for x in levels["train"]), 2)
    numbers = [reel.first + i for reel in train for i in range(len(reel.actions))]
    assert numbers == list(range(960)) and len({reel.name for reel in reels}) == len(reels)
    assert {reel.level.name for reel in reels if reel.split == "val"} == {x.name for x in levels["val"]}


def test_what_is_drawn_covers_twice_the_size_where_it_can():
    assert choose_screen(128, 256) == (512, 288) and choose_screen(96, 128) == (320, 240)
    assert choose_screen(480, 640) == (1024, 768) and choose_screen(16, 16) == (160, 120)


# what happens in the clips


@needs_the_game
def test_the_picture_moves_as_the_caption_says(monkeypatch, tmp_path):
    """By optical flow: a turn to the left moves the picture to the right, a walk forward spreads it."""
    monkeypatch.chdir(tmp_path)
    level = next(level for level in LEVELS if level.name == "freedoom2 map01")
    drift, spread = {}, {}
    with playing(level, 1, 0, (64, 128)) as player:
        for name, action in ACTIONS.items():
            if not action.opens:
                flows = [flow for take_ in range(3) for flow in flows_of(film(player, level, action, take_))]
                across = np.linspace(-1, 1, 128)
                drift[name] = np.mean([flow[:48, :, 0].mean() for flow in flows])
                spread[name] = np.mean([(flow[:48, :, 0] * across).mean() for flow in flows])
    for name, action in ACTIONS.items():
        moves = (action.turn or action.side, action.forward)
        if not action.opens and moves[0]:
            assert drift[name] * -moves[0] > 0.5, (name, drift)
        elif not action.opens and moves[1]:
            assert spread[name] * moves[1] > 0.05, (name, spread)
        elif not action.opens:
            assert abs(drift[name]) < 0.5 and abs(spread[name]) < 0.05, (name, drift, spread)


def film(player, level, action, number):
    generator = random.Random(number)
    for _ in range(40):
        try:
            return take(player, level, action, 12, 2, generator)
        except Retake:
            if player.over:
                player.start()
    raise AssertionError("no take")


def flows_of(pictures):
    grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures]
    for a, b in zip(grey, grey[1:], strict=False):
        yield cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0)


@needs_the_game
def test_a_door_opens_and_shots_are_fired(monkeypatch, tmp_path):
    from train.doom.takes import Hand, _check_done

    monkeypatch.chdir(tmp_path)
    level = next(level for level in LEVELS if level.name == "freedoom1 e1m1")
    with playing(level, 1, 0, (64, 128)) as player:
        for name in ("opens a door", "shoots", "switches weapons"):
            door = level.doors[0] if name == "opens a door" else None
            hand, state = Hand(ACTIONS[name], 2, random.Random(0), door), player.state()
            if door:
                away = 17 * np.exp(1j * np.radians(door.heading))
                state = state._replace(x=door.x - away.real, y=door.y - away.imag)
            with pytest.raises(Retake):  # where nothing was done it is seen
                _check_done(hand, [state] * 3)
            pictures = film(player, level, ACTIONS[name], 0)
            assert pictures.shape == (12, 64, 128, 3) and pictures.dtype == np.uint8


@needs_the_game
@pytest.mark.parametrize("item", ["Berserk", "RadSuit", "InvulnerabilitySphere", "Infrared"])
def test_what_was_picked_up_does_not_colour_later_clips(item, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    level = next(level for level in LEVELS if level.name == "freedoom2 map18")
    with playing(level, 1, 0, (64, 128)) as player:
        before = player.look().mean((0, 1))
        player.game.send_game_command(f"give {item}")
        player.press(Press(), 40)
        assert np.abs(player.look().mean((0, 1)) - before).max() > 5
        player.equip()
        player.press(Press(weapons=(True, False, False)), 40)
        assert np.abs(player.look().mean((0, 1)) - before).max() < 3


def test_a_clip_in_which_nothing_moves_is_taken_again():
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    with pytest.raises(Retake, match="nothing moves"):
        _check_motion([picture] * 5)
    _check_motion([np.roll(picture, i, 1) for i in range(5)])


@needs_the_game
def test_encoding_keeps_40_db(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    level = next(level for level in LEVELS if level.name == "freedoom2 map18")
    with playing(level, 3, 0, (128, 256)) as player:
        pictures = film(player, level, ACTIONS["turns left"], 0)
    _write(tmp_path / "clip.mp4", pictures, 16.0)
    read = read_clip(tmp_path / "clip.mp4", 12, 16.0, 128, 256).permute(1, 2, 3, 0).numpy()
    assert 10 * np.log10(255**2 / np.square(read.astype(float) - pictures).mean()) > 40


# games in which nothing can be filmed


class Games:
    """In place of the game: the chance that each was begun with, and clips of its number's grey.

    able: the clips that each can give, of which the last one can give the most; all the others end at one that fails.
    """

    def __init__(self, monkeypatch, able):
        self.able, self.begun, self.left = able, [], 0
        monkeypatch.setattr(reels, "playing", self.play)
        monkeypatch.setattr(reels, "_film", self.film)

    @contextmanager
    def play(self, level, skill, seed, size):
        self.left = self.able[len(self.begun)]
        self.begun.append((skill, seed))
        yield None

    def film(self, player, level, planned, settings, generator, failed):
        if not self.left:
            failed["no room"] += 3
            return None
        self.left -= 1
        return planned, np.full((settings.frames, settings.height, settings.width, 3), 40 * len(self.begun), np.uint8)


def one_reel(tmp_path):
    level = Level("freedoom1", "E1M1", (), (), np.zeros((0, 2, 2)))
    for folder in ("train", ".reels"):
        (tmp_path / folder).mkdir()
    return Reel("train-000004", "train", level, 4, ("turns left", "shoots", "turns right"))


def test_a_reel_is_begun_again_in_another_game_and_is_of_that_alone(monkeypatch, tmp_path):
    games, reel, settings = Games(monkeypatch, [2, 0, 3]), one_reel(tmp_path), Settings(**SMALL, seed=7, fps=16.0)
    film_reel(reel, settings, tmp_path)
    first = random.Random("reel train-000004 7")  # the chance of a reel whose first game is fine
    assert games.begun[0] == (first.randint(1, 4), first.getrandbits(31)) and len({*games.begun}) == 3
    record = json.loads(reel.record(tmp_path).read_text())
    assert record["failed"] == {"no room": 6} and record["replaced"] == 0
    assert [row["video"] for row in record["clips"]] == reel.videos
    assert {row["skill"] for row in record["clips"]} == {games.begun[2][0]}
    for video in reel.videos:
        assert abs(read_clip(tmp_path / video, 12, 16.0, 32, 64).float().mean() - 120) < 2
    assert sorted(content(tmp_path)) == [".reels/train-000004.json", *reel.videos] and reel.is_done(tmp_path)


def test_where_no_game_can_be_filmed_no_clip_is_left(monkeypatch, tmp_path):
    games, reel, settings = Games(monkeypatch, [2, 1, 0, 2, 1]), one_reel(tmp_path), Settings(**SMALL, seed=7, fps=16.0)
    with pytest.raises(ValueError, match="nothing can be filmed in freedoom1 e1m1: no room; choose another --seed"):
        film_reel(reel, settings, tmp_path)
    assert len(games.begun) == GAMES and content(tmp_path) == {} and not [*(tmp_path / ".reels").iterdir()]


# the folder


@needs_the_game
def test_a_folder_holds_clips_captions_and_a_sheet(clips):
    rows = read_rows(clips)
    videos = [f"train/{i:06}.mp4" for i in range(5)] + [f"val/{i:06}.mp4" for i in range(2)]
    assert [row["video"] for row in rows] == videos and set(content(clips)) - {".lock"} == {*videos, *FILES}
    for row in rows:
        assert read_caption(row["caption"]) == (row["source"], row["action"]) and row["split"] in row["video"]
        assert 1 <= row["skill"] <= 4
    assert (clips / "sheet.png").read_bytes()[:4] == b"\x89PNG"
    record = json.loads((clips / "doom.json").read_text())
    assert {name: record[name] for name in SMALL} == SMALL and "BSD" in record["licence"]


@needs_the_game
def test_the_levels_held_out_are_the_validation_and_no_others(clips):
    for seed in range(4):
        data = VideoData(str(clips), 12, 16.0, 32, 64, val_clips=8, seed=seed)
        data.setup()
        assert sorted(data.val_set.names()) == ["val/000000.mp4", "val/000001.mp4"] and len(data.train_set) == 5
    levels = [{clip.source for clip in part.clips} for part in (data.train_set, data.val_set)]
    assert not levels[0] & levels[1] and len(levels[1]) == 2
    assert data.train_set[0]["video"].shape == (3, 12, 32, 64) and data.train_set[0]["video"].float().std() > 6


@needs_the_game
def test_bytes_are_the_same_in_any_order_and_however_it_was_interrupted(clips, tmp_path, monkeypatch, capsys):
    out = tmp_path / "clips"
    films_here(monkeypatch, tmp_path, stop_after=3, order=lambda reels: reels[::-1])
    line = refused(capsys, doom.command, words(out), code=130)
    assert line == "error: stopped; the same command goes on where it was"
    assert not (out / "metadata.jsonl").exists() and len(list(out.rglob("*.mp4"))) == 3
    (out / "val/000000.mp4").write_bytes(b"half")  # of a reel that was stopped within
    next((out / ".reels").glob("val-000000*")).unlink()
    (out / "val/000001.mp4").unlink()
    films_here(monkeypatch, tmp_path, order=lambda reels: reels[1::2] + reels[::2])
    doom.command(words(out))
    assert content(out) == content(clips)
    films_here(monkeypatch, tmp_path, stop_after=0)
    doom.command(words(out))
    assert "is finished" in capsys.readouterr().out
    films_here(monkeypatch, tmp_path)
    doom.command(words(tmp_path / "other", seed=1))
    assert content(tmp_path / "other")["train/000000.mp4"] != content(clips)["train/000000.mp4"]


@needs_the_game
def test_clips_that_were_deleted_of_a_finished_folder_are_drawn_again(clips, tmp_path, monkeypatch, capsys):
    out = tmp_path / "my clips"
    shutil.copytree(clips, out)
    (out / "val/000001.mp4").unlink()
    films_here(monkeypatch, tmp_path)
    doom.command(words(out))
    assert content(out) == content(clips)
    command = capsys.readouterr().out.split("finished: ")[1]
    assert shlex.split(command)[3:] == ["--data.folder", str(out), "--data.val_clips", "2"]


@needs_the_game
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_one_line_and_it_goes_on(number, clips, tmp_path, monkeypatch):
    out = tmp_path / "clips"
    line = [sys.executable, "-m", "train.doom", *words(out)]
    with subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while process.poll() is None and not list(out.glob(".reels/*.json")):
            time.sleep(0.05)
        for sent in (number, signal.SIGINT if number == signal.SIGINT else signal.SIGTERM):
            os.killpg(process.pid, sent)  # as a terminal and `timeout` send it; and impatiently again
            time.sleep(0.1)
        said = process.communicate()[1]
    assert process.returncode == 128 + number and "error: stopped; the same command goes on where it was" in said
    assert "Traceback" not in said and not (out / "metadata.jsonl").exists()
    films_here(monkeypatch, tmp_path)
    doom.command(words(out))
    assert content(out) == content(clips)


@needs_the_game
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clips": 0}, "--clips is 0, expected at least 1"),
        ({"clips": 2_000_000}, "expected at least 1 and at most 1000000"),
        ({"val_clips": 0}, "--val_clips is 0, expected at least 1"),
        ({"seed": -1}, "--seed is -1"),
        ({"frames": 1}, "--frames is 1, expected at least 2"),
        ({"fps": 36}, "--fps is 36.0, expected at least 1 and at most 35"),
        ({"height": 33}, "--height is 33, expected an even number of pixels"),
        ({"width": 14}, "--width is 14, expected at least 16"),
        ({"height": 722}, "--height is 722, expected at least 16 and at most 720"),
        ({"levels_held_out": 0}, "--levels_held_out is 0, expected at least 1"),
        ({"levels_held_out": 68}, "--levels_held_out is 68, expected at most 67"),
        ({"workers": 0}, "--workers is 0, expected at least 1"),
        ({"clips": "many"}, "clips"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_leaves_nothing(options, message, tmp_path, capsys):
    assert message in refused(capsys, doom.command, words(tmp_path / "new", **options))
    assert not (tmp_path / "new").exists()


@needs_the_game
def test_a_place_that_takes_no_file_is_said_in_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings(**SMALL, seed=0, fps=16.0)
    reel = plan_reels(settings, share_out(LEVELS, 3, 0))[0]
    (tmp_path / ".reels").mkdir()
    (tmp_path / reel.videos[0]).mkdir(parents=True)
    with pytest.raises(ValueError, match="can't be written .*: the same command goes on where it was"):
        _film(reel, settings, tmp_path)


@needs_the_game
@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_in_a_line(tmp_path):
    line = [sys.executable, "-m", "train.doom", *words(tmp_path / "clips")]
    with subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (games := [y for x in children(process.pid) for y in children(x)]):
            time.sleep(0.02)
        worker = next(worker for worker in children(process.pid) if children(worker))
        os.kill(worker, signal.SIGKILL)
        said = process.communicate(timeout=60)[1]
    begun = time.monotonic()
    while any(Path(f"/proc/{game}").exists() for game in games) and time.monotonic() < begun + 20:
        time.sleep(0.1)  # the system clears them away in its own time
    assert games and not [game for game in games if Path(f"/proc/{game}").exists()]
    assert process.returncode == 2 and "a process that draws was killed: the same command goes on" in said
    assert "Traceback" not in said


def children(process):
    """Started by any of its threads."""
    found = []
    with suppress(FileNotFoundError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found


@needs_the_game
def test_other_folders_are_refused(clips, tmp_path, capsys):
    before = content(clips)
    for options, name in (
        ({"clips": 6}, "clips 5, now 6"),
        ({"seed": 3}, "seed 0, now 3"),
        ({"fps": 8}, "fps 16.0, now 8"),
    ):
        line = refused(capsys, doom.command, words(clips, **options))
        assert f"{clips} was drawn with {name}" in line and "choose another --out" in line
    assert content(clips) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.txt").write_text("mine")
    assert "holds a.txt, which train.doom didn't draw" in refused(capsys, doom.command, words(tmp_path / "mine"))
    assert "a file, expected a folder" in refused(capsys, doom.command, words(tmp_path / "mine/a.txt"))
    (tmp_path / "broken").mkdir()
    for broken in ("[]", "{half"):
        (tmp_path / "broken/doom.json").write_text(broken)
        line = refused(capsys, doom.command, words(tmp_path / "broken"))
        assert "doom.json is broken" in line and line.endswith("choose another --out")
    assert "can't be written" in refused(capsys, doom.command, words("/proc/nowhere/clips"))


def test_without_the_game_a_line_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    line = refused(capsys, doom.command, words(tmp_path / "clips"))
    assert line == 'error: the game is not installed: pip install ".[study]"' and not (tmp_path / "clips").exists()


@needs_the_game
def test_a_small_wan_trains_on_the_clips_with_a_codec_fitted_to_them_and_samples(clips, tmp_path):
    from eval.generate.jobs import Options
    from eval.generate.models import open_model

    size = ("--frames=8", "--height=32", "--width=64")
    codec = tmp_path / "codec.safetensors"
    fit_codec([f"--folder={clips}", f"--out={codec}", *size, "--channels=16"])
    data = (f"--data.folder={clips}", "--data.frames=8", "--data.fps=16", "--data.height=32", "--data.width=64")
    model = ("--model.codec=LinearCodec", f"--model.codec.path={codec}", "--model.wan.channels=16")
    run = train_tiny(tmp_path / "run", *data, *model, "--model.text.length=64")
    assert (run / "sample.mp4").is_file()
    opened = open_model(Options(str(run / "checkpoints/last.ckpt")))
    assert opened.codec.spec() == {"kind": "linear", "options": {"path": str(codec)}} and opened.clip.frames == 8
    codec.rename(tmp_path / "moved.safetensors")
    with pytest.raises(ValueError, match="no .*codec.safetensors, expected the file of a linear codec"):
        open_model(Options(str(run / "checkpoints/last.ckpt")))
    moved = open_model(Options(str(run / "checkpoints/last.ckpt"), encoders=str(tmp_path / "moved.safetensors")))
    assert moved.codec.channels == 16
