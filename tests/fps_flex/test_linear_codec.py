"""The linear codec against loops and against space to depth, and the files that it refuses."""

import copy
import shutil

import pytest
import torch
from safetensors.torch import save_file

from fps_flex.wan.codecs import PixelCodec
from fps_flex.wan.linear_codec import LinearCodec
from tests.helpers.linear_codecs import random_components, write_codec


def video(*size, batch=2):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_latents_are_those_of_a_loop_over_boxes(tmp_path):
    parts, clip = random_components((2, 2, 3), 7), video(4, 4, 6)
    codec = LinearCodec(str(write_codec(tmp_path / "c.safetensors", parts, (2, 2, 3))))
    latents = codec.encode(clip)
    assert codec.channels == 7 and latents.shape == (2, 7, *codec.latent_size((4, 4, 6))) == (2, 7, 2, 2, 2)
    basis, mean, scale = (parts[name].double() for name in ("basis", "mean", "scale"))
    decoded = codec.decode(latents)
    for b in range(2):
        for t, y, x in ((0, 0, 0), (1, 0, 1), (1, 1, 1), (0, 1, 0)):
            part = (b, slice(None), slice(2 * t, 2 * t + 2), slice(2 * y, 2 * y + 2), slice(3 * x, 3 * x + 3))
            numbers = torch.tensor([((clip[part].flatten().double() - mean) * row).sum() for row in basis]) / scale
            torch.testing.assert_close(latents[b, :, t, y, x], numbers.float())
            back = sum(number * s * row for number, s, row in zip(numbers, scale, basis, strict=True)) + mean
            torch.testing.assert_close(decoded[part].flatten(), back.float())


def test_all_components_lose_nothing_and_the_plain_ones_are_space_to_depth(tmp_path):
    clip = video(2, 8, 8)
    plain = {"basis": torch.eye(24), "mean": torch.zeros(24), "scale": torch.ones(24)}
    codec = LinearCodec(str(write_codec(tmp_path / "plain.safetensors", plain, (2, 2, 2))))
    assert torch.equal(codec.encode(clip), PixelCodec((2, 2, 2)).encode(clip))
    whole = LinearCodec(str(write_codec(tmp_path / "whole.safetensors", random_components((2, 2, 2), 24), (2, 2, 2))))
    torch.testing.assert_close(whole.decode(whole.encode(clip)), clip)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_in_fp32_and_answers_in_the_type_it_is_asked_in(dtype, tmp_path):
    codec, clip = LinearCodec(str(write_codec(tmp_path / "c.safetensors"))), video(1, 4, 4).to(dtype)
    expected = codec.encode(clip.float())
    with torch.autocast("cpu", torch.bfloat16):
        latents = codec.encode(clip)
        decoded = codec.decode(latents)
    assert latents.dtype == decoded.dtype == dtype
    assert torch.equal(latents, expected.to(dtype))
    assert torch.equal(decoded, codec.decode(latents.float()).to(dtype))


@pytest.mark.gpu
def test_a_gpu_gives_the_same(tmp_path):
    codec, clip = LinearCodec(str(write_codec(tmp_path / "c.safetensors"))), video(1, 4, 4)
    torch.testing.assert_close(codec.encode(clip.cuda()).cpu(), codec.encode(clip), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("size", [(3, 4, 6), (4, 5, 6), (4, 4, 7), (0, 4, 6)])
def test_sizes_that_do_not_divide_are_refused(size, tmp_path):
    codec = LinearCodec(str(write_codec(tmp_path / "c.safetensors", box=(2, 2, 3))))
    with pytest.raises(ValueError, match="don't divide into boxes of \\(2, 2, 3\\) pixels"):
        codec.latent_size(size)


def test_a_copy_elsewhere_is_the_same_codec_and_one_other_number_another(tmp_path):
    parts = random_components()
    codec = LinearCodec(str(write_codec(tmp_path / "a.safetensors", parts)))
    twin = LinearCodec(shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors"))
    told = LinearCodec(str(write_codec(tmp_path / "c.safetensors", parts, psnr=30.0)))
    other = LinearCodec(str(write_codec(tmp_path / "d.safetensors", {**parts, "mean": parts["mean"] + 1e-6})))
    turned = LinearCodec(str(write_codec(tmp_path / "e.safetensors", parts, (2, 2, 1))))
    assert codec.fingerprint() == twin.fingerprint() == told.fingerprint()
    assert len({one.fingerprint() for one in (codec, other, turned)}) == 3
    assert codec.spec() == {"kind": "linear", "options": {"path": str(tmp_path / "a.safetensors")}}
    assert copy.deepcopy(codec) is codec


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-7])


def change(**tensors):
    return lambda path: write_codec(path, {**random_components(), **tensors})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.unlink(), "no .*, expected the file of a linear codec"),
        (lambda path: path.write_text("{}"), "is no linear codec"),
        (lambda path: path.write_bytes(b""), "is no linear codec"),
        (cut_short, "is no linear codec"),
        (lambda path: save_file(random_components(), path), "doesn't say that it is of the kind linear"),
        (lambda path: save_file({"x": torch.ones(1)}, path, {"fps-flex": "[1"}), "is no linear codec"),
        (lambda path: write_codec(path, kind="wan-vae"), "doesn't say that it is of the kind linear"),
        (lambda path: write_codec(path, box=(1, 2, 2), channels=4), "says 4 channels and holds 5"),
        (lambda path: write_codec(path, random_components((1, 2, 2)), (1, 2, 3)), "basis is of \\(5, 12\\)"),
        (lambda path: write_codec(path, random_components(), (0, 2, 2)), "three sizes"),
        (change(extra=torch.ones(1)), "has an unknown 'extra'"),
        (change(mean=torch.full((12,), torch.nan)), "mean is of .* expected finite"),
        (change(mean=torch.zeros(12, dtype=torch.int32)), "mean is of .*int32"),
        (change(scale=torch.tensor([1.0, 1, 0, 1, 1])), "scale holds numbers that aren't above 0"),
        (change(scale=torch.ones(4)), "scale is of \\(4,\\)"),
        (change(basis=random_components()["basis"] * 1.01), "basis isn't orthonormal"),
        (change(basis=torch.ones(())), "basis is of \\(\\)"),
    ],
)
def test_a_file_that_is_missing_foreign_or_damaged_is_refused_in_a_line(damage, reason, tmp_path):
    path = write_codec(tmp_path / "c.safetensors")
    damage(path)
    with pytest.raises(ValueError, match=reason) as refusal:
        LinearCodec(str(path))
    assert "python -m train.codec" in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected the file of a linear codec"):
        LinearCodec(str(tmp_path))
