"""Wan's VAE and umT5 against the stock pipeline that they come from."""

import copy
import logging

import pytest
import torch

from fps_flex.wan.encoders import UMT5Text, WanVAE, clean

CPU = torch.device("cpu")


def video(*size):
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_latents_are_the_normalised_means_and_decode_as_in_the_pipeline(pipeline, wan_folder):
    codec, vae, clip = WanVAE(str(wan_folder)), pipeline.vae, video(9, 32, 48)
    latents = codec.encode(clip)
    assert codec.channels == 16 and latents.shape == (1, 16, *codec.latent_size((9, 32, 48))) == (1, 16, 3, 4, 6)
    with torch.no_grad():
        mean, std = (torch.tensor(x).view(16, 1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
        torch.testing.assert_close(latents * std + mean, vae.encode(clip).latent_dist.mean)
        torch.testing.assert_close(codec.decode(latents), vae.decode(latents * std + mean).sample)


def test_frames_beyond_480p_are_coded_in_tiles(wan_folder, monkeypatch):
    codec = WanVAE(str(wan_folder))
    calls = []
    for name in ("tiled_encode", "tiled_decode"):
        work = getattr(codec._model, name)
        monkeypatch.setattr(codec._model, name, lambda x, *a, work=work, **kw: calls.append(work) or work(x, *a, **kw))
    for rows, columns, expected in ((480, 832, 0), (488, 832, 2), (480, 832, 0)):
        calls.clear()
        assert codec.decode(codec.encode(video(1, rows, columns))).shape == (1, 3, 1, rows, columns)
        assert len(calls) == expected


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((80, 480, 832), "clips of 80 frames, expected 4n \\+ 1: 77 and 81 are nearest"),
        ((0, 480, 832), "clips of 0 frames, expected 4n \\+ 1: 1 and 5 are nearest"),
        ((81, 476, 832), "frames of 476x832, expected multiples of 8 rows and columns"),
    ],
)
def test_sizes_that_the_vae_cannot_take(wan_folder, size, message):
    with pytest.raises(ValueError, match=message):
        WanVAE(str(wan_folder)).latent_size(size)
    assert WanVAE(str(wan_folder)).latent_size((81, 720, 1280)) == (21, 90, 160)


def test_text_states_are_the_pipelines_with_zeros_after_the_prompt(pipeline, wan_folder):
    prompts = ["a red circle", "", "a  blue\n square &amp; a red circle moving left"]
    text = UMT5Text(str(wan_folder), dtype="float32")
    states = text(prompts, CPU)
    expected, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=512)
    assert states.shape == (3, 512, 32) and text.dim == 32
    torch.testing.assert_close(states, expected)
    filled = states.abs().sum(-1) > 0
    assert filled.sum(1).tolist() == [len(pipeline.tokenizer(clean(prompt)).input_ids) for prompt in prompts]
    assert clean(prompts[2]) == "a blue square & a red circle moving left"
    assert UMT5Text(str(wan_folder))(prompts, CPU).dtype == torch.bfloat16


def test_a_prompt_that_is_too_long_is_said_and_cut(wan_folder, caplog):
    text = UMT5Text(str(wan_folder), length=16, dtype="float32")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            states = text(["a red circle", "a red circle moving left over a blue square"], CPU)
    assert states.shape == (2, 16, 32) and (states[1].abs().sum(-1) > 0).all()
    (message,) = [record.message for record in caplog.records if record.name == "fps_flex.wan.encoders"]
    assert "is cut to 16: a red circle moving left over a blue square" in message


def test_copies_share_what_was_loaded_and_unloading_frees_it(wan_folder):
    text = UMT5Text(str(wan_folder))
    text(["a"], CPU)
    assert copy.deepcopy(text) is text and "_model" in vars(text)
    text.unload()
    assert "_model" not in vars(text)


def test_a_folder_without_the_encoders_is_named(wan_folder, tmp_path):
    with pytest.raises(ValueError, match="no folder .*nowhere: expected a Wan2.1 in the diffusers layout, or hf:"):
        WanVAE(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="expected text_encoder/ with safetensors in .*, found none: Wan-AI/"):
        UMT5Text(str(tmp_path))
    (tmp_path / "Wan2.1_VAE.pth").touch()
    (tmp_path / "models_t5_umt5-xxl-enc-bf16.pth").touch()
    for kind, part in ((WanVAE, "vae"), (UMT5Text, "text_encoder")):
        with pytest.raises(ValueError) as raised:
            kind(str(tmp_path))
        line = str(raised.value)
        assert f"expected {part}/ with safetensors" in line and "Wan2.1_VAE.pth, " in line
        assert "which are pickles: Wan-AI/Wan2.1-T2V-1.3B-Diffusers has that folder" in line
    (tmp_path / "vae").symlink_to(wan_folder / "transformer")
    with pytest.raises(ValueError, match="describes a WanTransformer3DModel, expected a AutoencoderKLWan"):
        WanVAE(str(tmp_path))


def test_a_broken_encoder_is_one_line(wan_folder, tmp_path):
    (tmp_path / "vae").mkdir()
    for file in (wan_folder / "vae").iterdir():
        (tmp_path / "vae" / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    codec = WanVAE(str(tmp_path))
    with pytest.raises(ValueError, match="can't be read as safetensors .*: fetch or save it again"):
        codec.encode(video(5, 16, 16))
