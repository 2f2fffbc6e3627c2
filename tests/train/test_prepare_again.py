"""train.prepare on what an earlier run left: changed settings, moved videos, new stages and broken records."""

import json
import shutil
from pathlib import Path

import av
import pytest
import torch
from safetensors.torch import save_file

from fps_flex.wan.codecs import PixelCodec
from tests.helpers.commands import refused
from tests.helpers.preparing import (
    caption,
    contents,
    prepare,
    prepare_words,
    read_manifest,
    small_scene,
    times,
    with_scorer,
    write_config,
    write_scorer,
)
from tests.helpers.raw_clips import letterbox, scene, write
from train.cached import CachedClips
from train.index import read_index
from train.prepare.__main__ import command
from train.prepare.standardise import list_buckets


def test_changed_limits_share_and_batch_size_judge_anew_and_measure_nothing(raw, small, out, capsys, encoded):
    clips = {clip.name: clip for clip in read_index(out).clips}
    work, scores = times(out / "work"), {}
    for entry in read_manifest(out):
        scores[entry["name"]] = entry["scores"]["motion"]
    middle = sorted(scores.values())[len(scores) // 2]

    prepare(raw, out, small, f"--limits.max_motion={middle}", "--val_share=0.4", "--batch_size=3")
    output = capsys.readouterr().out
    for line in (f"changed limits.max_motion 2.0 -> {middle}", "val_share 0.02 -> 0.4", "batch_size 1 -> 3"):
        assert line in output
    left = {clip.name for clip in read_index(out).clips}
    assert left == {name for name, motion in scores.items() if motion <= middle} and left < clips.keys()
    assert times(out / "work") == work and encoded == []

    prepare(raw, out, small)
    assert {clip.name for clip in read_index(out).clips} == clips.keys()
    assert sorted(encoded) == sorted(clips.keys() - left)
    assert json.loads((out / "config.json").read_text())["limits"]["max_motion"] == 2.0


def test_a_moved_source_goes_on_and_another_one_is_refused(raw, small, prepared, out, tmp_path, capfd, encoded):
    moved = Path(shutil.copytree(raw, tmp_path / "moved", copy_function=shutil.copy))  # with times of their own
    before = {path: when for path, when in times(out / "work").items() if path.parent.name != "scan"}
    prepare(moved, out, small)
    assert f'changed source "{raw}" -> "{moved}"' in capfd.readouterr().out
    assert {path: times(out / "work")[path] for path in before} == before and encoded == []
    (out / "config.json").write_bytes((prepared / "config.json").read_bytes())
    assert contents(out) == contents(prepared)

    other = tmp_path / "other"
    write(other / "0.mp4", scene(200, frames=30, height=120, width=160))
    line = refused(capfd, command, prepare_words(caption(other), out, small))
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
    small_scene(raw / "a.mp4", 1)
    small_scene(raw / "b.mp4", 2)
    calls, original = [], av.open

    def fail_once(file, *arguments, **options):
        calls.append(file)
        if len(calls) == nth and file.endswith(".mp4"):
            raise OSError(5, "Input/output error", file)
        return original(file, *arguments, **options)

    caption(raw)
    with monkeypatch.context() as patch:
        patch.setattr(av, "open", fail_once)
        prepare(raw, out, small)
    assert len(read_index(out).clips) in (1, 2)
    for _ in range(2):
        prepare(raw, out, small)
        assert len(read_index(out).clips) == 2
    lines = read_manifest(out)
    assert not any(entry["reasons"] for entry in lines)


@pytest.mark.parametrize("stage", ["scan", "cut", "filter"])
@pytest.mark.parametrize("content", ["", "[{}]", '{"x": 1}', "7"])
def test_a_broken_record_is_named(raw, small, out, capfd, stage, content):
    record = next((out / "work" / stage).iterdir())
    record.write_text(content)
    line = refused(capfd, command, prepare_words(raw, out, small))
    assert "is broken" in line and ("work/" in line or str(record) in line)


def test_others_can_read_what_the_umask_lets_them(out):
    modes = {oct(path.stat().st_mode) for path in (*(out / "shards").iterdir(), out / "empty_prompt.safetensors")}
    assert modes == {oct((out / "index.json").stat().st_mode)}


def test_a_scorer_added_later_measures_again_and_another_minimum_does_not(raw, out, tmp_path, encoded):
    options = write_scorer(tmp_path)

    def config(minimum):
        return write_config(tmp_path / "scored.yaml", with_scorer({**options, "minimum": minimum}))

    def measured():
        return {path: when for path, when in times(out / "work").items() if path.parent.name == "filter"}

    before = measured()
    prepare(raw, out, config(-99))
    scored = measured()
    assert all(scored[path] != when for path, when in before.items()) and encoded == []
    prepare(raw, out, config(-98))
    assert measured() == scored


def test_a_scorer_that_cannot_be_loaded_is_found_before_any_video_is_opened(raw, tmp_path, capfd):
    options = write_scorer(tmp_path)
    clip, head = map(Path, options.values())
    config = write_config(tmp_path / "scored.yaml", with_scorer(options))
    good = {"weight": torch.randn(1, 16), "bias": torch.zeros(1)}
    for change, reason in (
        ({"weight": torch.randn(1, 8)}, "expected (1, 16) and (1,)"),
        ({"bias": torch.tensor([torch.nan])}, "with finite values"),
        ({"weight": None}, "can't be read"),
    ):
        save_file({name: x for name, x in (good | change).items() if x is not None}, head)
        line = refused(capfd, command, prepare_words(raw, tmp_path / "out", config))
        assert str(head) in line and reason in line and not (tmp_path / "out").exists()
    save_file(good, head)
    weights = clip / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    line = refused(capfd, command, prepare_words(raw, tmp_path / "out", config))
    assert f"{clip} can't be loaded as a CLIP" in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "reason"), [("{", "Expecting"), ("[]", "holds no settings"), ("\xff", "codec can't decode")]
)
def test_settings_that_cannot_be_read_are_one_line(raw, small, out, capfd, content, reason):
    (out / "config.json").write_bytes(content.encode("latin-1"))
    line = refused(capfd, command, prepare_words(raw, out, small))
    assert "config.json can't be read" in line and reason in line and "choose another --out" in line


def test_nothing_is_written_before_all_is_known_to_be_good(raw, small, tmp_path, capfd):
    for options in (["--height=33"], [f"--source={tmp_path}"], ["--text.init_args.length=0"]):
        line = refused(capfd, command, prepare_words(raw, tmp_path / "sets/new", small, *options))
        assert line and not (tmp_path / "sets").exists()
    prepare(raw, tmp_path / "sets/new", small, "--stages=[scan]")


def test_a_broken_encoder_is_found_before_any_video_is_opened(raw, small, tmp_path, capfd):
    words = prepare_words(raw, tmp_path / "out", small, "--text=tests.helpers.faulty_encoders.Broken")
    assert "can't be loaded" in refused(capfd, command, words)
    assert not (tmp_path / "out").exists()


def test_clips_that_encode_to_nan_are_left_out_with_their_reason(raw, small, tmp_path, capsys):
    out = tmp_path / "out"
    prepare(raw, out, small, "--codec=tests.helpers.faulty_encoders.Unsound", "--codec.init_args.stride=[2,2,2]")
    lines = read_manifest(out)
    left_out = [entry for entry in lines if entry["reasons"]]
    assert 0 < len(left_out) < len(lines)
    assert {tuple(entry["reasons"]) for entry in left_out} == {("not finite: the latents aren't",)}
    assert f"{len(left_out)} dropped: not finite" in capsys.readouterr().out
    assert len(read_index(out).clips) == len(lines) - len(left_out)
    assert all(item["latents"].isfinite().all() for item in CachedClips(read_index(out), None))


def test_a_shard_that_is_cut_short_is_encoded_again(raw, small, prepared, out, caplog):
    shard = next((out / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-100])
    prepare(raw, out, small)
    assert contents(out) == contents(prepared)
    assert "encoding the clips of a shard again" in caplog.text


@pytest.mark.parametrize("scorers", [7, [7], [{}], "x"])
def test_scorers_in_settings_may_be_anything(raw, small, out, scorers):
    settings = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(settings | {"scorers": scorers}))
    prepare(raw, out, small)
    assert json.loads((out / "config.json").read_text())["scorers"] == []


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


def test_the_folder_of_a_set_cannot_be_among_its_videos(raw, small, capfd):
    for out in (raw, raw / "out", raw / "a/b"):
        assert "lies in --source" in refused(capfd, command, prepare_words(raw, out, small))
        assert not (raw / "a").exists() and not (raw / "out").exists()
