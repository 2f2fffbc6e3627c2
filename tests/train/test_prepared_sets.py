"""Prepared sets: they train, and those that others made or broke are refused before a run begins."""

import json
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fps_flex.checks import is_finite
from fps_flex.wan.codecs import ByteText, PixelCodec
from tests.helpers.commands import refused
from tests.helpers.preparing import caption, prepare, read_manifest
from tests.helpers.raw_clips import scene, write
from tests.helpers.tiny_run import read_checkpoint, same_tensors, tiny_words, train_tiny
from train.cached import CachedClips
from train.data import VideoData
from train.fit import main as fit
from train.index import check_encoders, read_index
from train.prepare.pack import choose_held_out
from train.prepare.records import Clip


def words_on(out, folder, *options):
    """The command line of a tiny run on a prepared set, in folder/run."""
    return tiny_words(folder / "run", f"--data.folder={out}", *options)


def edit(out, change):
    index = json.loads((out / "index.json").read_text())
    change(index)
    (out / "index.json").write_text(json.dumps(index))


def edit_shard(out, change, which=0):
    file = sorted((out / "shards").iterdir())[which]
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return file


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda index: index["clips"][0].update(shard="../elsewhere.safetensors"), "expected a file in the data set's"),
        (lambda index: index["clips"][0].update(shard="/etc/passwd"), "expected a file in the data set's"),
        (lambda index: index["clips"][0].update(shard=""), "expected a file in the data set's"),
        (lambda index: index["clips"][0].update(shard="shards/none.safetensors"), "lacks shards/none.safetensors"),
        (lambda index: index["clips"][0].update(name="nobody"), "lacks nobody/latents"),
        (lambda index: index["clips"][0].update(size=[10, 32]), "three sizes"),
        (lambda index: index["clips"][0].update(held_out="no"), "expected True or False"),
        (lambda index: index["clips"][0].pop("prompt"), "lacks prompt"),
        (lambda index: index.update(clips=[]), "lacks clips"),
        (lambda index: index.update(clips={}), "expected a list"),
        (lambda index: index.update(fps="fast"), "expected a number"),
        (lambda index: index.update(text_length=2), "at most 2 states"),
        (lambda index: index.pop("fingerprints"), "lacks fingerprints"),
        (lambda index: index.update(fingerprints={"codec": "0", "text": "0"}), "what these are made of differs"),
        (lambda index: index.update(codec={}), "was prepared with"),
    ],
)
def test_an_index_that_does_not_hold_is_refused_at_the_start(out, tmp_path, capfd, change, reason):
    edit(out, change)
    line = refused(capfd, fit, words_on(out, tmp_path))
    assert reason in line and str(out) in line and "prepare it again" in line


def test_what_names_encoders_in_an_index_may_be_anything(out, tmp_path, capfd):
    for spec in ({"kind": "x", "options": 7}, {"kind": [], "options": None}, {"options": ["a"]}):
        edit(out, lambda index, spec=spec: index.update(text=spec))
        assert "was prepared with" in refused(capfd, fit, words_on(out, tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "7", "[" * 5000])
def test_an_index_that_is_none_is_one_line(out, tmp_path, capfd, content):
    (out / "index.json").write_text(content)
    assert "is no index of a prepared data set" in refused(capfd, fit, words_on(out, tmp_path))


def test_every_shard_is_looked_at_before_training(raw, small, tmp_path, few, capfd):
    out = tmp_path / "out"
    prepare(raw, out, small)
    shards = sorted((out / "shards").iterdir())
    assert len(shards) == 4
    for shard in shards:
        content = shard.read_bytes()
        for cut in (
            content[:-1],
            content[: len(content) // 2],
            content[:4],
            b"",
            b"version https://git-lfs.github.com/spec/v1",
        ):
            shard.write_bytes(cut)
            line = refused(capfd, fit, words_on(out, tmp_path))
            assert str(shard) in line and "can't be read" in line
        shard.unlink()
        assert f"lacks shards/{shard.name}" in refused(capfd, fit, words_on(out, tmp_path))
        shard.write_bytes(content)
    empty = out / "empty_prompt.safetensors"
    empty.write_bytes(empty.read_bytes()[:-4])
    assert str(empty) in refused(capfd, fit, words_on(out, tmp_path))


def test_latents_of_another_codec_are_refused_whatever_the_index_says(out, tmp_path, capfd):
    def widen(tensors):
        for name in [name for name in tensors if name.endswith("/latents")]:
            tensors[name] = torch.cat([tensors[name], tensors[name]])

    edit_shard(out, widen)
    line = refused(capfd, fit, words_on(out, tmp_path))
    assert "holds latents (48, 5, 16, 16)" in line and "the encoders give (24, 5, 16, 16)" in line
    edit_shard(out, lambda tensors: tensors.update({next(iter(tensors)): torch.zeros(3, dtype=torch.int8)}))
    assert "of I8" in refused(capfd, fit, words_on(out, tmp_path))


def test_a_clip_that_is_not_finite_in_a_finished_set_is_left_out_and_named(out, tmp_path, caplog):
    index = read_index(out)
    bad = next(clip for clip in index.clips if not clip.held_out)
    edit_shard(out, lambda tensors: tensors[f"{bad.name}/latents"].view(-1)[7:8].fill_(torch.nan))
    clips = CachedClips(read_index(out), False)
    items = [clips[i] for i in range(len(clips))]
    assert all(item["latents"].isfinite().all() for item in items)
    assert Counter(item["name"] for item in items)[bad.name] == 0 and len(items) == len(clips)
    (message,) = [record.message for record in caplog.records]
    assert bad.name in message and "isn't finite" in message
    train_tiny(tmp_path / "run", f"--data.folder={out}")

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
        for position in (0, 52, 104):
            bad = good.clone()
            bad.view(-1)[position] = value
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
    for entry in read_manifest(out):
        videos[entry["name"]] = entry["video"]
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
    sources = {f"key of {i:04}": f"film {i // 3}" for i in range(12)}
    held_out = choose_held_out([clip(f"{i:04}", i) for i in range(12)], sources, 0.3)
    assert 0 < len(held_out) < 12 and len({int(name) // 3 for name in held_out}) * 3 == len(held_out)


def test_what_the_captions_hold_out_is_held_out_whatever_the_share(raw, small, tmp_path, caplog):
    folder, out = Path(shutil.copytree(raw, tmp_path / "raw")), tmp_path / "out"
    rows = [f"{i}.mp4,x,{'val' if i in (2, 5) else 'train'}" for i in range(8)]
    (folder / "metadata.csv").write_text("\n".join(["video,prompt,split", *rows]))
    prepare(folder, out, small, "--val_share=0.5")
    videos = {entry["name"]: entry["video"] for entry in read_manifest(out)}
    held_out = {videos[clip.name] for clip in read_index(out).clips if clip.held_out}
    trained = {videos[clip.name] for clip in read_index(out).clips if not clip.held_out}
    assert held_out == {"2.mp4", "5.mp4"} and trained == {f"{i}.mp4" for i in (0, 1, 3, 4, 6, 7)}
    one = Clip("a", "key", "0" * 64, "a.mp4", "", 0.0, 1.0, size=(1, 8, 8))
    assert choose_held_out([one], {}, 0.5, frozenset({"another"})) == {"a"}
    assert "no clip of the split val is left" in caplog.text


def test_a_size_whose_only_clip_is_held_out_does_not_stop_a_run(small, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for i in range(4):
        height, width = ((120, 240), (240, 120))[i == 3]
        write(raw / f"{i}.mp4", scene(80 + i, frames=12, height=height, width=width))
    prepare(caption(raw), out, small, "--height=32", "--width=64", "--frames=4")

    def hold_out_the_upright_one(index):
        for clip in index["clips"]:
            clip["held_out"] = clip["size"] == [4, 64, 32]

    edit(out, hold_out_the_upright_one)
    data = VideoData(str(out), workers=0)
    data.setup()
    assert len(data.val_set) == 1 and len(data.train_set) == 3
    train_tiny(tmp_path / "run", f"--data.folder={out}", "--model.attention.tile=[1,4,4]")


def test_a_run_on_a_prepared_set_goes_on_exactly_in_the_middle_of_a_pass(prepared, tmp_path):
    words = f"--data.folder={prepared}", "--trainer.val_check_interval=4", "--data.workers=1"
    uninterrupted = train_tiny(tmp_path / "whole", *words, "--trainer.max_steps=8")
    parts = train_tiny(tmp_path / "parts", *words, "--trainer.max_steps=4")
    train_tiny(parts, *words, "--trainer.max_steps=8", "--ckpt_path=last")
    for key in ("state_dict", "current_model_state"):
        assert same_tensors(*(read_checkpoint(run)[key] for run in (uninterrupted, parts)))


def test_encoders_other_than_those_of_the_set_are_refused(prepared, tmp_path, capsys):
    line = refused(capsys, fit, words_on(prepared, tmp_path, "--model.text.init_args.length=20"))
    assert "was prepared with bytes (dim 32, length 40), the model has bytes (dim 32, length 20)" in line


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
    words = ("--trainer.max_steps=4", "--model.attention.tile=[1,4,4]", "--data.batch_size=1")
    train_tiny(tmp_path / "run", f"--data.folder={out}", *words)
