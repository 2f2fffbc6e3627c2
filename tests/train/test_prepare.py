"""train.prepare from videos to a set that trains: stages, what changed, what can't be used, and mistakes."""

from collections import Counter

import numpy as np
import pytest
import yaml
from PIL import Image

from fps_flex.wan.codecs import PixelCodec
from tests.helpers.commands import refused, run_apart
from tests.helpers.preparing import (
    caption,
    contents,
    prepare,
    prepare_words,
    read_manifest,
    small_scene,
    verdicts,
    with_scorer,
    write_config,
    write_scorer,
)
from tests.helpers.raw_clips import scene, write
from tests.helpers.tiny_run import read_checkpoint, train_tiny
from train.cached import CachedClips
from train.common.videos import ClipError, read_clip
from train.index import read_index
from train.prepare import encode, encoded
from train.prepare.__main__ import command
from train.prepare.scorers import ClipAesthetic


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A dozen small videos, a second and a half each."""
    folder = tmp_path_factory.mktemp("raw")
    for i in range(12):
        write(folder / f"{i}.mp4", scene(20 + i, frames=24, height=120 if i % 3 else 160, width=160 if i % 3 else 120))
    return caption(folder)


@pytest.fixture(scope="module")
def prepared(raw, small, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare(raw, out, small, "--batch_size=2")
    return out


@pytest.mark.slow
def test_stages_alone_and_again_and_through_mp4(raw, small, prepared, tmp_path, capsys):
    out = tmp_path / "out"
    shared = ("--batch_size=2",)
    prepare(raw, out, small, *shared, "--stages=[scan]")
    assert "12 videos, 0 clips" in capsys.readouterr().out
    prepare(raw, out, small, *shared, "--stages=[cut]")
    assert not (out / "manifest.jsonl").exists() and len(list((out / "work/cut").iterdir())) == 12
    prepare(raw, out, small, *shared, "--stages=[filter]")
    assert (out / "manifest.jsonl").exists() and not (out / "index.json").exists()
    prepare(raw, out, small, *shared, "--stages=[encode]")
    assert contents(out) == contents(prepared)
    made = {path: path.stat().st_mtime_ns for path in (out / "work").rglob("*.json")}
    prepare(raw, out, small, *shared)
    assert contents(out) == contents(prepared)
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
    prepare(raw, out, small, *shared, "--stages=[filter]", "--redo=true")
    again = {path: path.stat().st_mtime_ns for path in (out / "work").rglob("*.json")}
    changed = {path.parent.name for path, when in again.items() if made[path] != when}
    assert changed == {"filter"} and not (out / "index.json").exists()

    prepare(raw, out, small, *shared, "--stages=[standardise,encode]")
    assert len(list((out / "clips").glob("*.mp4"))) == 12 and (out / "clips/metadata.csv").is_file()
    through = CachedClips(read_index(out), False)[0]["latents"].float()
    straight = CachedClips(read_index(prepared), False)[0]["latents"].float()
    assert 0 < (through - straight).abs().mean() < 0.1


def test_cutting_and_filtering_can_be_skipped(small, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write(raw / "cut.mp4", [*scene(50, frames=24, height=120, width=160), *scene(51, frames=30, height=120, width=160)])
    write(raw / "static.mp4", (p for _ in range(24) for p in scene(52, frames=1, height=120, width=160)))
    prepare(caption(raw), out, small, "--stages=[scan,encode]")
    assert verdicts(out) == {"cut.mp4": [[], []], "static.mp4": [[]]}
    lines = read_manifest(out)
    assert [entry["start"] for entry in lines] == [0.0, 1.25, 0.0] and not any(entry["scores"] for entry in lines)
    prepare(raw, out, small, "--stages=[scan,filter]")
    assert verdicts(out)["static.mp4"] == [["static"]]
    prepare(raw, out, small)
    lines = read_manifest(out)
    assert [entry["start"] for entry in lines] == [0.0, 1.5, 0.0] and all(entry["scores"] for entry in lines)
    assert len(read_index(out).clips) == 2


def test_a_changed_video_or_caption_is_prepared_again_and_the_rest_is_not(small, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for i in range(3):
        small_scene(raw / f"{i}.mp4", 60 + i)
    prepare(caption(raw), out, small)
    before = {path: path.stat().st_mtime_ns for path in (out / "work").rglob("*.json")}
    first = {clip.prompt: clip.name for clip in read_index(out).clips}

    small_scene(raw / "0.mp4", 70)
    table = raw / "metadata.csv"
    table.write_text(table.read_text().replace("a clip named 1", "another caption"))
    prepare(raw, out, small)
    second = {clip.prompt: clip.name for clip in read_index(out).clips}
    assert second.keys() == {"a clip named 0", "another caption", "a clip named 2"}
    assert second["a clip named 2"] == first["a clip named 2"] and second["a clip named 0"] != first["a clip named 0"]
    clips = {item["prompt"]: item for item in CachedClips(read_index(out), None)}
    pixels = read_clip(raw / "0.mp4", 10, 8, 32, 32).float() / 127.5 - 1
    decoded = PixelCodec().decode(clips["a clip named 0"]["latents"][None].float())[0]
    assert (decoded - pixels).abs().max() < 2**-8
    kept = [path for path, when in before.items() if path.stat().st_mtime_ns == when]
    assert len(kept) == 3


def test_the_config_for_wan_parses(capsys):
    with pytest.raises(SystemExit) as stopped:
        command(["--config=configs/prepare.yaml", "--source=raw", "--out=out", "--print_config"])
    assert stopped.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["frames"], config["fps"], config["height"], config["width"]) == (81, 16.0, 480, 832)
    assert config["limits"]["min_motion"] == 0.05 and config["limits"]["max_motion"] == 2.0


def test_another_configurations_data_and_other_mistakes_are_one_line(raw, small, prepared, tmp_path, capsys):
    before = contents(prepared)
    (tmp_path / "none").mkdir()
    for source, out, options, message in (
        (raw, prepared, ["--fps=4", "--batch_size=2"], "was prepared with fps 8.0 (now 4.0): choose another --out"),
        (tmp_path / "nowhere", tmp_path / "out", [], "no folder"),
        (tmp_path / "none", tmp_path / "out", [], "no captions in"),
        (raw, tmp_path / "out", ["--frames=9"], "don't divide into boxes"),
        (raw, "/proc/out", [], "can't be written"),
        (raw, tmp_path / "out2", ["--limits.min_motion=50", "--limits.max_motion=60"], "no clip is left"),
        (raw, tmp_path / "out", ["--stages=[scann]"], "scann"),
    ):
        assert message in refused(capsys, command, prepare_words(source, out, small, *options))
    assert contents(prepared) == before


def test_a_full_disk_stops_cleanly_and_keeps_what_is_done(raw, small, prepared, tmp_path, capsys, monkeypatch):
    saved = []

    def fill_up(tensors, path, **options):
        if len(saved) == 3:
            raise OSError(28, "No space left on device")
        saved.append(path)
        return save(tensors, path, **options)

    save = encoded.save_file
    monkeypatch.setattr(encoded, "save_file", fill_up)
    line = refused(capsys, command, prepare_words(raw, tmp_path / "out", small, "--batch_size=2"), code=1)
    assert "the disk is full; what is done is kept" in line
    assert len(list((tmp_path / "out/work/encoded").glob("*.safetensors"))) == 3
    monkeypatch.setattr(encoded, "save_file", save)
    prepare(raw, tmp_path / "out", small, "--batch_size=2")
    assert contents(tmp_path / "out") == contents(prepared)


def test_a_clip_that_breaks_when_it_is_read_is_left_out_and_the_rest_goes_on(raw, small, tmp_path, capsys, monkeypatch):
    read = encode.read_pixels

    def break_one(folder, clip, fps):
        if clip.video == "4.mp4":
            raise ClipError(f"{folder / clip.video}: ends after 3 frames")
        return read(folder, clip, fps)

    monkeypatch.setattr(encode, "read_pixels", break_one)
    prepare(raw, tmp_path / "out", small, "--batch_size=2")
    output = capsys.readouterr().out
    assert "12 videos, 12 clips, 11 kept" in output and "1 dropped: unreadable" in output
    kinds_of = verdicts(tmp_path / "out")
    assert kinds_of.pop("4.mp4") == [["unreadable"]] and set(map(str, kinds_of.values())) == {"[[]]"}
    assert len(read_index(tmp_path / "out").clips) == 11


PEAK = """
import sys
from train.prepare import pack
from train.prepare.__main__ import command
pack.SHARD_CLIPS = 4  # which are held together
command(sys.argv[1:])
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_clips(small, tmp_path):
    """Level from ten clips on. Pixels of a clip are 0.8 MB here: to hold on to those of 80 is a tenth more."""
    video = write(tmp_path / "one.mp4", scene(40, frames=24, height=160, width=160))
    peaks = []
    for number in (10, 80):
        folder = tmp_path / str(number)
        folder.mkdir()
        for i in range(number):
            (folder / f"{i}.mp4").symlink_to(video)
        caption(folder)
        limits = ["--height=160", "--width=160", "--limits.max_motion=99", "--limits.min_distance=0"]
        done = run_apart("-c", PEAK, *prepare_words(folder, f"{folder}-out", small, *limits))
        assert done.returncode == 0, done.stderr
        assert f"{number} clips, {number} kept" in done.stdout
        peaks.append(int(done.stdout.splitlines()[-1]))
    print(f"peak memory for 10 and for 80 clips: {peaks[0] // 1024} and {peaks[1] // 1024} MB")
    assert peaks[1] < 1.05 * peaks[0]


def test_a_prepared_set_trains_and_its_latents_are_the_clips(raw, prepared, tmp_path):
    index = read_index(prepared)
    assert len(index.clips) == 12 and index.sizes() == [(10, 32, 32)]
    held_out, trained = (CachedClips(index, which) for which in (True, False))
    assert len(held_out) == 1 and len(trained) == 11
    for item in trained:
        video = item["prompt"].removeprefix("a clip named ") + ".mp4"
        pixels = read_clip(raw / video, 10, 8, 32, 32).float() / 127.5 - 1
        assert (PixelCodec().decode(item["latents"][None].float())[0] - pixels).abs().max() < 2**-8
    Image.open(prepared / "decoded.png").verify()

    run = train_tiny(tmp_path / "run", f"--data.folder={prepared}")
    assert read_checkpoint(run)["fps_flex"]["clip"]["frames"] == 10


def test_an_aesthetic_score_needs_weights_by_path_and_drops_what_is_below(raw, tmp_path, capsys):
    options = write_scorer(tmp_path)
    scorer = ClipAesthetic(**options)
    frames = np.random.default_rng(0).integers(0, 256, (5, 40, 60, 3), dtype=np.uint8)
    assert scorer(frames) == ClipAesthetic(**options)(frames) != scorer(frames[:, ::-1].copy())

    config = write_config(tmp_path / "scored.yaml", with_scorer({**options, "minimum": 99}))
    assert "no clip is left" in refused(capsys, command, prepare_words(raw, tmp_path / "out", config))
    assert Counter(kinds[0] for kinds in sum(verdicts(tmp_path / "out").values(), [])) == {"aesthetic": 12}
    with pytest.raises(ValueError, match="expected a CLIP folder and a safetensors file"):
        ClipAesthetic(str(tmp_path), options["head"])
