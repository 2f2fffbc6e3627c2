"""Fitting a linear codec: against numpy's SVD of all boxes, and what is written and refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open

from fps_flex.wan.linear_codec import LinearCodec
from tests.helpers.commands import refused
from tests.helpers.grey_clips import encode
from tests.helpers.raw_clips import scene
from tests.helpers.tiny_run import tiny_words, train_tiny
from train.codec import command
from train.common.videos import in_range
from train.data import VideoData
from train.fit import main as fit
from train.moments import Moments, find_axes, find_components, psnr_by_channels

SIZE = ("--frames=4", "--fps=8", "--height=16", "--width=24")
BOX = (2, 4, 4)


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Six clips, of which two are for validation; not to be changed."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(6):
        encode(folder / f"{i}.mp4", list(scene(i, 4, 16, 24, speed=1.0)), 8)
    rows = [json.dumps({"video": f"{i}.mp4", "text": f"clip {i}", "split": "val" if i > 3 else ""}) for i in range(6)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def words(folder, out, *options):
    return [f"--folder={folder}", f"--out={out}", *SIZE, *options]


def read_parts(folder):
    """Videos to train on, and those held out."""
    data = VideoData(str(folder), 4, 8.0, 16, 24)
    data.setup()
    return ([in_range(part[i]["video"]) for i in range(len(part))] for part in (data.train_set, data.val_set))


def boxes_of(videos):
    """A row a box, in float64, by loops."""
    p, q, r = BOX
    return np.array([
        video[:, t : t + p, y : y + q, x : x + r].double().flatten().numpy()
        for video in videos
        for t in range(0, video.shape[1], p)
        for y in range(0, video.shape[2], q)
        for x in range(0, video.shape[3], r)
    ])  # fmt: skip


def moments_of(videos):
    moments = Moments.of_none(BOX)
    for video in videos:
        moments.add(video)
    return moments


def test_the_components_are_those_of_a_singular_value_decomposition(clips):
    train, _ = map(list, read_parts(clips))
    variances, axes = find_axes(moments_of(train))
    rows = boxes_of(train)
    _, singular, expected = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    assert len(rows) == 4 * 2 * 4 * 6 and axes.shape == (96, 96)
    np.testing.assert_allclose(variances[: len(singular)], singular**2 / len(rows), atol=1e-9)
    for k in range(8):
        assert abs(abs(np.dot(axes[k].numpy(), expected[k])) - 1) < 1e-6
    assert (axes.gather(1, axes.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("scaling", ["unit", "one"])
def test_latents_have_the_variance_that_was_asked_for(scaling, clips):
    train, _ = map(list, read_parts(clips))
    moments = moments_of(train)
    components = find_components(moments, 6, BOX, scaling)
    latents = (torch.from_numpy(boxes_of(train)) - components.mean) @ components.basis.double().T / components.scale
    variances = latents.var(0, unbiased=False)
    torch.testing.assert_close(latents.mean(0), torch.zeros(6).double(), atol=1e-5, rtol=0)
    if scaling == "unit":
        torch.testing.assert_close(variances, torch.ones(6).double(), atol=1e-4, rtol=0)
    else:
        assert abs(variances.mean() - 1) < 1e-4 and len(components.scale.unique()) == 1
        torch.testing.assert_close(variances / variances[0], find_axes(moments)[0][:6] / find_axes(moments)[0][0])


def test_the_psnr_told_is_that_of_clips_coded_and_decoded(clips, tmp_path, capsys):
    train, held_out = map(list, read_parts(clips))
    told = psnr_by_channels(moments_of(train), moments_of(held_out))
    assert len(told) == 96 and told == sorted(told)
    for channels in (3, 12):
        command(words(clips, tmp_path / "c.safetensors", f"--channels={channels}"))
        codec, video = LinearCodec(str(tmp_path / "c.safetensors")), torch.stack(held_out)
        error = (codec.decode(codec.encode(video)).double() - video).square().mean().item()
        assert abs(10 * np.log10(4 / error) - told[channels - 1]) < 1e-3
        assert f"{channels:8}  {told[channels - 1]:5.1f} dB  <- written" in capsys.readouterr().out


def test_the_same_clips_give_the_same_bytes_and_those_held_out_do_not_count(clips, tmp_path):
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for file in files[:2]:
        command(words(clips, file, "--clips=3", "--channels=5"))
    assert files[0].read_bytes() == files[1].read_bytes()
    with safe_open(files[0], framework="pt") as file:
        record = json.loads(file.metadata()["fps-flex"])
    assert record["box"] == [2, 4, 4] and record["channels"] == 5 and record["scaling"] == "unit"
    assert record["clips"] == 3 and record["held_out_clips"] == 2 and 10 < record["held_out_psnr"] < 50
    assert files[0].with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    other = shutil.copytree(clips, tmp_path / "other")
    encode(other / "5.mp4", list(scene(50, 4, 16, 24)), 8)
    command(words(other, files[2], "--clips=3", "--channels=5"))
    assert LinearCodec(str(files[2])).fingerprint() == LinearCodec(str(files[0])).fingerprint()
    encode(other / "1.mp4", list(scene(51, 4, 16, 24)), 8)
    command(words(other, files[2], "--clips=4", "--channels=5"))
    assert LinearCodec(str(files[2])).fingerprint() != LinearCodec(str(files[0])).fingerprint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--channels=97"], "--channels is 97, expected at least 1 and at most 96"),
        (["--channels=0"], "--channels is 0, expected at least 1"),
        (["--clips=0"], "--clips is 0, expected at least 1"),
        (["--box=[3,4,4]"], "don't divide into boxes of (3, 4, 4) pixels"),
        (["--box=[2,4]"], "box"),
        (["--box=[0,4,4]"], "--box is (0, 4, 4), expected three sizes"),
        (["--scaling=none"], "scaling"),
        (["--frames=400"], "lasts"),
        (["--frames=40", "--box=[1,4,4]", "--fps=0"], "data.fps is 0"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_leaves_nothing(options, message, clips, tmp_path, capsys):
    assert message in refused(capsys, command, words(clips, tmp_path / "new/c.safetensors", *options))
    assert not (tmp_path / "new").exists()


def test_places_that_cannot_be_meant_are_refused(clips, tmp_path, capsys):
    def line(folder, out):
        return refused(capsys, command, words(folder, out))

    assert "expected a file CODEC.safetensors" in line(clips, tmp_path / "codec.pt")
    assert "no folder" in line(tmp_path / "nowhere", tmp_path / "c.safetensors")
    (tmp_path / "mine.safetensors").write_bytes(b"a model of mine")
    assert "was not written by this command" in line(clips, tmp_path / "mine.safetensors")
    (tmp_path / "c.png").write_bytes(b"a picture of mine")
    assert "c.png was not written by this command" in line(clips, tmp_path / "c.safetensors")
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared/index.json").write_text("{}")
    assert "is a prepared data set, which holds no pixels" in line(tmp_path / "prepared", tmp_path / "d.safetensors")


def test_a_run_and_its_videos_keep_to_the_codec_that_it_was_trained_with(clips, tmp_path, capsys):
    """Moved, it is the same; another of as many channels is refused, also where it was fitted anew in its place."""
    from eval.generate.command import command as generate

    file, other, moved = (tmp_path / f"{name}.safetensors" for name in ("codec", "other", "moved"))
    for path, options in ((file, ()), (other, ("--scaling=one",))):
        command(words(clips, path, "--channels=24", *options))
    run, data = tmp_path / "run", [f"--data.folder={clips}", *(f"--data.{x[2:]}" for x in SIZE)]
    codec = [
        "--model.codec=LinearCodec",
        f"--model.codec.path={file}",
        "--model.wan.channels=24",
        "--model.attention.tile=[1,2,3]",
    ]
    train_tiny(run, *data, *codec, "--trainer.max_steps=1")
    shutil.copy(file, moved)
    shutil.copy(other, file)
    sample = [f"--checkpoint={run / 'checkpoints/last.ckpt'}", "--prompt=x", "--steps=1", f"--out={tmp_path / 'made'}"]
    for options in ((), (f"--encoders={other}",)):
        line = refused(capsys, generate, [*sample, *options])
        assert "it was trained with another linear codec" in line and line.endswith("--encoders names another file")
    generate([*sample, f"--encoders={moved}"])
    further = (*data, *codec, "--trainer.max_steps=2", "--ckpt_path=last")
    line = refused(capsys, fit, tiny_words(run, *further))
    assert "is no checkpoint to go on from: it was trained with another linear codec" in line
    train_tiny(run, *further, f"--model.codec.path={moved}")
