"""train.prepare on what an earlier run left: changed settings, moved videos, kills, and sets that others made."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import av
import pytest
import torch
from safetensors.torch import load_file, save_file

from fps_flex.checks import is_finite
from fps_flex.wan.codecs import ByteText, PixelCodec
from tests.helpers.raw_clips import letterbox, scene, write
from tests.train.test_prepare import ROOT, RUN, SMALL, caption, contents, prepare, write_config
from train.cached import CachedClips
from train.common.lock import locked
from train.common.work import PATIENCE, wait_for_all
from train.data import VideoData
from train.fit import main as fit
from train.index import check_encoders, read_index
from train.prepare import encode, pack
from train.prepare.__main__ import command
from train.prepare.pack import choose_held_out
from train.prepare.records import Clip
from train.prepare.standardise import list_buckets

WITH_TESTS = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    for i in range(8):
        write(folder / f"{i}.mp4", scene(120 + i, frames=48 if i < 3 else 24, height=120, width=160))
    return caption(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config") / "small.yaml", SMALL)


@pytest.fixture(scope="module")
def prepared(raw, small, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare(raw, out, small)
    return out


@pytest.fixture
def out(prepared, tmp_path):
    """A copy to change."""
    return Path(shutil.copytree(prepared, tmp_path / "out", copy_function=shutil.copy2))


@pytest.fixture
def few(monkeypatch):
    """Shards of few clips, so that there are several."""
    monkeypatch.setattr(pack, "SHARD_CLIPS", 3)


@pytest.fixture
def refused(capfd):
    """The one line in which something ends with exit code 2."""

    def run(work, *arguments):
        with pytest.raises(SystemExit) as stopped:
            work(*arguments)
        lines = capfd.readouterr().err.splitlines()
        assert stopped.value.code == 2 and lines[-1].startswith("error: ") and "Traceback" not in "".join(lines), lines
        return lines[-1]

    return run


@pytest.fixture
def encoded(monkeypatch):
    """The names of the clips that are encoded from now on."""
    names, read = [], encode.read_pixels
    monkeypatch.setattr(
        encode, "read_pixels", lambda folder, clip, fps: names.append(clip.name) or read(folder, clip, fps)
    )
    return names


def times(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.stat().st_mtime_ns for path in files}


def train(folder, run, *options):
    quick = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--sample.steps=1", "--sample.count=1",
             "--model.val_levels=1", "--data.workers=0"]  # fmt: skip
    fit(["--config=configs/tiny.yaml", f"--data.folder={folder}", f"--run={run}", *quick, *options])


def edit(out, change):
    said = json.loads((out / "index.json").read_text())
    change(said)
    (out / "index.json").write_text(json.dumps(said))


def edit_shard(out, change, which=0):
    file = sorted((out / "shards").iterdir())[which]
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return file


def test_changed_limits_share_and_batch_size_judge_anew_and_measure_nothing(raw, small, out, capsys, encoded):
    clips = {clip.name: clip for clip in read_index(out).clips}
    work, scores = times(out / "work"), {}
    for line in (out / "manifest.jsonl").read_text().splitlines():
        said = json.loads(line)
        scores[said["name"]] = said["scores"]["motion"]
    middle = sorted(scores.values())[len(scores) // 2]

    prepare(raw, out, small, f"--limits.max_motion={middle}", "--val_share=0.4", "--batch_size=3")
    said = capsys.readouterr().out
    for line in (f"changed limits.max_motion 2.0 -> {middle}", "val_share 0.02 -> 0.4", "batch_size 1 -> 3"):
        assert line in said
    left = {clip.name for clip in read_index(out).clips}
    assert left == {name for name, motion in scores.items() if motion <= middle} and left < clips.keys()
    assert times(out / "work") == work and encoded == []

    prepare(raw, out, small)
    assert {clip.name for clip in read_index(out).clips} == clips.keys()
    assert sorted(encoded) == sorted(clips.keys() - left)
    assert json.loads((out / "config.json").read_text())["limits"]["max_motion"] == 2.0


def test_a_moved_source_goes_on_and_another_one_is_refused(
    raw, small, prepared, out, tmp_path, capfd, encoded, refused
):
    moved = Path(shutil.copytree(raw, tmp_path / "moved", copy_function=shutil.copy))  # with times of their own
    before = {path: when for path, when in times(out / "work").items() if path.parent.name != "scan"}
    prepare(moved, out, small)
    assert f'changed source "{raw}" -> "{moved}"' in capfd.readouterr().out
    assert {path: times(out / "work")[path] for path in before} == before and encoded == []
    (out / "config.json").write_bytes((prepared / "config.json").read_bytes())
    assert contents(out) == contents(prepared)

    other = tmp_path / "other"
    write(other / "0.mp4", scene(200, frames=30, height=120, width=160))
    line = refused(prepare, caption(other), out, small)
    assert "was prepared from other videos, of which" in line and "choose another --out" in line
    assert contents(out) == contents(prepared)


def test_a_stage_added_later_encodes_what_it_changed(small, tmp_path, encoded):
    """Cropped otherwise, or from an mp4: the bytes are those of a set that was made so at once."""
    raw = tmp_path / "raw"
    for i in range(2):
        write(raw / f"{i}.mp4", letterbox(scene(i, frames=24, height=240, width=240), bar=60))
    caption(raw)
    prepare(raw, tmp_path / "at once", small)
    prepare(raw, tmp_path / "later", small, "--stages=[scan,cut,encode]")
    uncropped = read_index(tmp_path / "later")
    encoded.clear()
    prepare(raw, tmp_path / "later", small)
    assert len(encoded) == 2 and contents(tmp_path / "later") == contents(tmp_path / "at once")
    assert read_index(tmp_path / "later").clips[0].content != uncropped.clips[0].content

    through = "--stages=[scan,cut,filter,standardise,encode]"
    prepare(raw, tmp_path / "mp4", small, through)
    prepare(raw, tmp_path / "later", small, through)
    assert contents(tmp_path / "later") == contents(tmp_path / "mp4") != contents(tmp_path / "at once")


@pytest.mark.parametrize("nth", range(1, 9))
def test_what_cannot_be_read_for_a_while_is_tried_again_by_the_next_start(small, tmp_path, monkeypatch, nth):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write(raw / "a.mp4", scene(1, frames=24, height=120, width=160))
    write(raw / "b.mp4", scene(2, frames=24, height=120, width=160))
    calls, whole = [], av.open

    def fail_once(file, *arguments, **options):
        calls.append(file)
        if len(calls) == nth and file.endswith(".mp4"):
            raise OSError(5, "Input/output error", file)
        return whole(file, *arguments, **options)

    caption(raw)
    with monkeypatch.context() as patch:
        patch.setattr(av, "open", fail_once)
        prepare(raw, out, small)
    assert len(read_index(out).clips) in (1, 2)
    for _ in range(2):
        prepare(raw, out, small)
        assert len(read_index(out).clips) == 2
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert not any(said["reasons"] for said in lines)


def test_two_in_one_folder_are_one_and_a_refusal(raw, small, tmp_path, refused):
    out = tmp_path / "out"
    prepare(raw, out, small, "--stages=[scan]")
    with locked(out / "work"):  # POSIX gives a process its own locks again, so the other must be one
        code = f"from tests.train.test_prepare import prepare; prepare({str(raw)!r}, {str(out)!r}, {str(small)!r})"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                              env=WITH_TESTS)  # fmt: skip
    assert done.returncode == 2 and "is in use by process" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].endswith("choose another --out")


@pytest.mark.parametrize("stage", ["scan", "cut", "filter"])
@pytest.mark.parametrize("content", ["", "[{}]", '{"x": 1}', "7"])
def test_a_broken_record_is_named(raw, small, out, refused, stage, content):
    record = next((out / "work" / stage).iterdir())
    record.write_text(content)
    line = refused(prepare, raw, out, small)
    assert "is broken" in line and ("work/" in line or str(record) in line)


def test_others_can_read_what_the_umask_lets_them(out):
    modes = {oct(path.stat().st_mode) for path in (*(out / "shards").iterdir(), out / "empty_prompt.safetensors")}
    assert modes == {oct((out / "index.json").stat().st_mode)}


def test_a_scorer_added_later_measures_again_and_another_minimum_does_not(raw, out, tmp_path, encoded):
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=tower, vision_config=vision, projection_dim=16)).save_pretrained(tmp_path / "clip")
    save_file({"weight": torch.randn(1, 16), "bias": torch.zeros(1)}, tmp_path / "head.safetensors")

    def config(minimum):
        options = {"clip": f"{tmp_path}/clip", "head": f"{tmp_path}/head.safetensors", "minimum": minimum}
        spec = {"class_path": "train.prepare.scorers.ClipAesthetic", "init_args": options}
        return write_config(tmp_path / "scored.yaml", {**SMALL, "scorers": [spec]})

    def measured():
        return {path: when for path, when in times(out / "work").items() if path.parent.name == "filter"}

    before = measured()
    prepare(raw, out, config(-99))
    scored = measured()
    assert all(scored[path] != when for path, when in before.items()) and encoded == []
    prepare(raw, out, config(-98))
    assert measured() == scored


def test_a_scorer_that_cannot_be_loaded_is_found_before_any_video_is_opened(raw, tmp_path, refused):
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    clip, head = tmp_path / "clip", tmp_path / "head.safetensors"
    CLIPModel(CLIPConfig(text_config=tower, vision_config=vision, projection_dim=16)).save_pretrained(clip)
    options = {"clip": str(clip), "head": str(head)}
    spec = {"class_path": "train.prepare.scorers.ClipAesthetic", "init_args": options}
    config = write_config(tmp_path / "scored.yaml", {**SMALL, "scorers": [spec]})
    good = {"weight": torch.randn(1, 16), "bias": torch.zeros(1)}
    for change, reason in (
        ({"weight": torch.randn(1, 8)}, "expected (1, 16) and (1,)"),
        ({"bias": torch.tensor([torch.nan])}, "with finite values"),
        ({"weight": None}, "can't be read"),
    ):
        save_file({name: x for name, x in (good | change).items() if x is not None}, head)
        line = refused(prepare, raw, tmp_path / "out", config)
        assert str(head) in line and reason in line and not (tmp_path / "out").exists()
    save_file(good, head)
    weights = clip / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    line = refused(prepare, raw, tmp_path / "out", config)
    assert f"{clip} can't be loaded as a CLIP" in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "reason"), [("{", "Expecting"), ("[]", "holds no settings"), ("\xff", "codec can't decode")]
)
def test_settings_that_cannot_be_read_are_one_line(raw, small, out, refused, content, reason):
    (out / "config.json").write_bytes(content.encode("latin-1"))
    line = refused(prepare, raw, out, small)
    assert "config.json can't be read" in line and reason in line and "choose another --out" in line


def test_nothing_is_written_before_all_is_known_to_be_good(raw, small, tmp_path, refused):
    for options in (["--height=33"], [f"--source={tmp_path}"], ["--text.init_args.length=0"]):
        line = refused(command, [f"--config={small}", f"--source={raw}", f"--out={tmp_path / 'sets/new'}", *options])
        assert line and not (tmp_path / "sets").exists()
    prepare(raw, tmp_path / "sets/new", small, "--stages=[scan]")


class Slow(ByteText):
    def __call__(self, prompts, device):
        time.sleep(60)


class Broken(ByteText):
    def load(self):
        raise ValueError("text_encoder can't be loaded: fetch it again")


def test_a_broken_encoder_is_found_before_any_video_is_opened(raw, small, tmp_path, refused):
    arguments = [f"--config={small}", f"--source={raw}", f"--out={tmp_path / 'out'}",
                 "--text=tests.train.test_prepare_again.Broken"]  # fmt: skip
    assert "can't be loaded" in refused(command, arguments)
    assert not (tmp_path / "out").exists()


class Unsound(PixelCodec):
    def encode(self, video):
        return super().encode(video).masked_fill((video.mean() * 1e6).long() % 2 == 0, float("nan"))


def test_clips_that_encode_to_nan_are_left_out_with_their_reason(raw, small, tmp_path, capsys):
    out = tmp_path / "out"
    prepare(raw, out, small, "--codec=tests.train.test_prepare_again.Unsound", "--codec.init_args.stride=[2,2,2]")
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    left_out = [said for said in lines if said["reasons"]]
    assert 0 < len(left_out) < len(lines)
    assert {tuple(said["reasons"]) for said in left_out} == {("not finite: the latents aren't",)}
    assert f"{len(left_out)} dropped: not finite" in capsys.readouterr().out
    assert len(read_index(out).clips) == len(lines) - len(left_out)
    assert all(item["latents"].isfinite().all() for item in CachedClips(read_index(out), None))


@pytest.mark.parametrize("step", ["write_index", "_remove_others", "save_whole"])
def test_stopped_while_shards_are_exchanged_nothing_encoded_is_lost(raw, small, out, few, encoded, monkeypatch, step):
    """The set has shards of another cut than the next packing makes."""
    wanted = {clip.name for clip in read_index(out).clips}
    whole, calls = getattr(pack, step), []

    def fail(*arguments):
        calls.append(arguments)
        if step != "save_whole" or len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(pack, step, fail)
    with pytest.raises(SystemExit) as stopped:
        prepare(raw, out, small)
    assert stopped.value.code == 130
    assert {clip.name for clip in read_index(out).clips} == wanted  # a set that can be trained on, old or new
    written = {path: when for path, when in times(out / "shards").items() if not path.name.startswith(".")}
    monkeypatch.setattr(pack, step, whole)
    prepare(raw, out, small)
    index = read_index(out)
    assert {clip.name for clip in index.clips} == wanted and encoded == []
    now = times(out / "shards")
    assert {f"shards/{path.name}" for path in now} == {clip.shard for clip in index.clips} and len(now) == 4
    assert all(written[path] == when for path, when in now.items() if path in written)


def test_killed_at_random_moments_of_encoding_and_packing_gives_the_same_bytes(raw, small, prepared, tmp_path):
    out, chance, kills = tmp_path / "out", random.Random(1), 0
    arguments = [sys.executable, "-c", RUN, f"--config={small}", f"--source={raw}", f"--out={out}"]
    prepare(raw, out, small, "--stages=[scan,cut,filter]")
    while kills < 5:
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before, target = len(times(out)), chance.randint(1, 4)
        while process.poll() is None and len(times_if_still(out)) < before + target and not _packing(out):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        kills += process.poll() is None
        process.kill()
        if process.wait() == 0:
            shutil.rmtree(out / "shards", ignore_errors=True)  # nothing was left to kill: the last steps again
            (out / "index.json").unlink(missing_ok=True)
    prepare(raw, out, small)
    assert contents(out) == contents(prepared)


def times_if_still(folder):
    try:
        return times(folder)
    except FileNotFoundError:  # a file went while its folder was read
        return {}


def _packing(out):
    return (out / "shards").exists() and random.random() < 0.2


def test_a_shard_that_is_cut_short_is_encoded_again(raw, small, prepared, out, caplog):
    shard = next((out / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-100])
    prepare(raw, out, small)
    assert contents(out) == contents(prepared)
    assert "encoding the clips of a shard again" in caplog.text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda said: said["clips"][0].update(shard="../elsewhere.safetensors"), "expected a file in the data set's"),
        (lambda said: said["clips"][0].update(shard="/etc/passwd"), "expected a file in the data set's"),
        (lambda said: said["clips"][0].update(shard=""), "expected a file in the data set's"),
        (lambda said: said["clips"][0].update(shard="shards/none.safetensors"), "lacks shards/none.safetensors"),
        (lambda said: said["clips"][0].update(name="nobody"), "lacks nobody/latents"),
        (lambda said: said["clips"][0].update(size=[10, 32]), "three sizes"),
        (lambda said: said["clips"][0].update(held_out="no"), "expected True or False"),
        (lambda said: said["clips"][0].pop("prompt"), "lacks prompt"),
        (lambda said: said.update(clips=[]), "lacks clips"),
        (lambda said: said.update(clips={}), "expected a list"),
        (lambda said: said.update(fps="fast"), "expected a number"),
        (lambda said: said.update(text_length=2), "at most 2 states"),
        (lambda said: said.pop("fingerprints"), "lacks fingerprints"),
        (lambda said: said.update(fingerprints={"codec": "0", "text": "0"}), "what these are made of differs"),
        (lambda said: said.update(codec={}), "was prepared with"),
    ],
)
def test_an_index_that_does_not_hold_is_refused_at_the_start(out, tmp_path, refused, change, reason):
    edit(out, change)
    line = refused(train, out, tmp_path / "run")
    assert reason in line and str(out) in line and "prepare it again" in line


def test_what_names_encoders_in_an_index_may_be_anything(out, tmp_path, refused):
    for spec in ({"kind": "x", "options": 7}, {"kind": [], "options": None}, {"options": ["a"]}):
        edit(out, lambda said, spec=spec: said.update(text=spec))
        assert "was prepared with" in refused(train, out, tmp_path / "run")


@pytest.mark.parametrize("scorers", [7, [7], [{}], "x"])
def test_scorers_in_settings_may_be_anything(raw, small, out, scorers):
    said = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(said | {"scorers": scorers}))
    prepare(raw, out, small)
    assert json.loads((out / "config.json").read_text())["scorers"] == []


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "7", "[" * 5000])
def test_an_index_that_is_none_is_one_line(out, tmp_path, refused, content):
    (out / "index.json").write_text(content)
    assert "is no index of a prepared data set" in refused(train, out, tmp_path / "run")


def test_every_shard_is_looked_at_before_training(raw, small, tmp_path, few, refused):
    out = tmp_path / "out"
    prepare(raw, out, small)
    shards = sorted((out / "shards").iterdir())
    assert len(shards) == 4
    for shard in shards:
        whole = shard.read_bytes()
        for cut in (
            whole[:-1],
            whole[: len(whole) // 2],
            whole[:4],
            b"",
            b"version https://git-lfs.github.com/spec/v1",
        ):
            shard.write_bytes(cut)
            line = refused(train, out, tmp_path / "run")
            assert str(shard) in line and "can't be read" in line
        shard.unlink()
        assert f"lacks shards/{shard.name}" in refused(train, out, tmp_path / "run")
        shard.write_bytes(whole)
    empty = out / "empty_prompt.safetensors"
    empty.write_bytes(empty.read_bytes()[:-4])
    assert str(empty) in refused(train, out, tmp_path / "run")


def test_latents_of_another_codec_are_refused_whatever_the_index_says(out, tmp_path, refused):
    def widen(tensors):
        for name in [name for name in tensors if name.endswith("/latents")]:
            tensors[name] = torch.cat([tensors[name], tensors[name]])

    edit_shard(out, widen)
    line = refused(train, out, tmp_path / "run")
    assert "holds latents (48, 5, 16, 16)" in line and "the encoders give (24, 5, 16, 16)" in line
    edit_shard(out, lambda tensors: tensors.update({next(iter(tensors)): torch.zeros(3, dtype=torch.int8)}))
    assert "of I8" in refused(train, out, tmp_path / "run")


def test_a_clip_that_is_not_finite_in_a_finished_set_is_left_out_and_named(out, tmp_path, caplog):
    index = read_index(out)
    bad = next(clip for clip in index.clips if not clip.held_out)
    edit_shard(out, lambda tensors: tensors[f"{bad.name}/latents"].view(-1)[7:8].fill_(torch.nan))
    clips = CachedClips(read_index(out), False)
    items = [clips[i] for i in range(len(clips))]
    assert all(item["latents"].isfinite().all() for item in items)
    assert Counter(item["name"] for item in items)[bad.name] == 0 and len(items) == len(clips)
    said = [record.message for record in caplog.records]
    assert len(said) == 1 and bad.name in said[0] and "isn't finite" in said[0]
    train(out, tmp_path / "run")

    def spoil(tensors):
        for name in tensors:
            tensors[name].fill_(torch.inf)

    edit_shard(out, spoil)
    with pytest.raises(ValueError, match=r"no clip of \(10, 32, 32\) in .* is finite"):
        clips[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_one_value_that_is_not_finite_is_seen_wherever_it_is(dtype):
    good = torch.randn(3, 5, 7).to(dtype)
    assert is_finite(good, torch.zeros(0, 7, dtype=dtype), torch.tensor(1.0)) and is_finite()
    for value in (torch.nan, torch.inf, -torch.inf):
        for place in (0, 52, 104):
            bad = good.clone()
            bad.view(-1)[place] = value
            assert not is_finite(bad) and not is_finite(good, bad)


def test_a_set_of_other_encoders_is_refused(out):
    index = read_index(out)
    check_encoders(index, PixelCodec(), ByteText(32, 40))
    for codec, text in ((PixelCodec((1, 4, 2)), ByteText(32, 40)), (PixelCodec(), ByteText(32, 41))):
        with pytest.raises(ValueError, match="was prepared with"):
            check_encoders(index, codec, text)


def test_no_video_is_trained_on_and_held_out(raw, small, tmp_path):
    out = tmp_path / "out"
    prepare(raw, out, small, "--val_share=0.4")
    videos = {}
    for line in (out / "manifest.jsonl").read_text().splitlines():
        said = json.loads(line)
        videos[said["name"]] = said["video"]
    sides = {}
    for clip in read_index(out).clips:
        sides.setdefault(videos[clip.name], set()).add(clip.held_out)
    assert all(len(side) == 1 for side in sides.values()) and set.union(*sides.values()) == {True, False}
    assert len(videos) == 11 and len(sides) == 8


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_whatever_the_share_some_clips_are_held_out_and_some_are_not(share, caplog):
    def clip(video, start):
        digest = f"{video * 2**60:016x}"
        return Clip(f"{video}-{start}", f"key{video}", digest, f"{video}.mp4", "", start, start + 1, size=(1, 8, 8))

    for videos in (2, 3, 15):
        clips = [clip(video, start) for video in range(videos) for start in range(3)]
        held_out = choose_held_out(clips, {}, share)
        assert 0 < len(held_out) < len(clips) and len(held_out) % 3 == 0
    assert not caplog.records
    held_out = choose_held_out([clip(1, start) for start in range(20)], {}, share)
    assert 0 < len(held_out) < 20 and "all clips are of one source video" in caplog.text
    assert choose_held_out([clip(1, 0)], {}, share) == {"1-0"}


def test_pieces_of_one_film_and_of_one_named_source_are_on_one_side():
    def clip(name, digest):
        return Clip(name, f"key of {name}", f"{digest * 2**58:016x}", f"{name}.mp4", "", 0.0, 1.0, size=(1, 8, 8))

    clips = [clip(f"film{film}-Scene-{scene:03}", 8 * film + scene) for film in range(5) for scene in range(6)]
    for share in (0.0, 0.3, 0.6):
        held_out = choose_held_out(clips, {}, share)
        assert 0 < len(held_out) < 30 and len({name[:5] for name in held_out}) * 6 == len(held_out)
    said = {f"key of {i:04}": f"film {i // 3}" for i in range(12)}
    held_out = choose_held_out([clip(f"{i:04}", i) for i in range(12)], said, 0.3)
    assert 0 < len(held_out) < 12 and len({int(name) // 3 for name in held_out}) * 3 == len(held_out)


def test_a_size_whose_only_clip_is_held_out_does_not_stop_a_run(small, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for i in range(4):
        height, width = ((120, 240), (240, 120))[i == 3]
        write(raw / f"{i}.mp4", scene(80 + i, frames=12, height=height, width=width))
    prepare(caption(raw), out, small, "--height=32", "--width=64", "--frames=4")

    def hold_out_the_upright_one(said):
        for clip in said["clips"]:
            clip["held_out"] = clip["size"] == [4, 64, 32]

    edit(out, hold_out_the_upright_one)
    data = VideoData(str(out), workers=0)
    data.setup()
    assert len(data.val_set) == 1 and len(data.train_set) == 3
    train(out, tmp_path / "run", "--model.attention.tile=[1,4,4]")


def test_processes_wait_for_the_slowest_without_a_limit(monkeypatch):
    import torch.distributed as dist

    asked = {}
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: asked.update(timeout=timeout))
    monkeypatch.setattr(dist, "barrier", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    wait_for_all()
    assert asked["timeout"] == PATIENCE and PATIENCE.days >= 365
    monkeypatch.undo()
    dist.init_process_group("gloo", timeout=PATIENCE, store=dist.HashStore(), rank=0, world_size=1)
    dist.barrier()  # gloo takes it
    dist.destroy_process_group()


@pytest.mark.parametrize(("stride", "multiple"), [(2, 16), (8, 16), (16, 32)])
def test_sizes_of_other_aspect_ratios_are_what_the_codec_and_the_patches_divide(stride, multiple):
    codec = PixelCodec((1, stride, stride))
    buckets = list_buckets((5, 704, 1280), codec)
    assert len(buckets) == 5 and {(704, 1280), (1280, 704)} < set(buckets)
    for rows, columns in buckets:
        assert rows % multiple == 0 and columns % multiple == 0
        assert 0.9 < rows * columns / (704 * 1280) <= 1 and codec.latent_size((5, rows, columns))
    with pytest.raises(ValueError, match="expected multiples of 2"):
        list_buckets((5, 704 + stride, 1280), codec)


def test_the_folder_of_a_set_cannot_be_among_its_videos(raw, small, refused):
    for out in (raw, raw / "out", raw / "a/b"):
        assert "lies in --source" in refused(prepare, raw, out, small)
        assert not (raw / "a").exists() and not (raw / "out").exists()


def test_signals_leave_one_line(raw, small, tmp_path):
    arguments = [sys.executable, "-c", RUN, f"--config={small}", f"--source={raw}", f"--out={tmp_path / 'out'}",
                 "--text=tests.train.test_prepare_again.Slow"]  # fmt: skip
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=WITH_TESTS, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # it may be ignored where we run
    )  # fmt: skip
    while not (tmp_path / "out/contact.png").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].splitlines()
    assert process.returncode == 130 and said[-1] == "error: stopped; the same command goes on where it was"
    assert "Traceback" not in "".join(said)
