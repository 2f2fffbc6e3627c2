"""Names of weights: what wrappers put before them, and which model they show."""

import logging

import pytest
import torch

from fps_flex.wan.keys import to_diffusers
from tests.helpers.official_wan import assert_same, read_weights, refused_weights

PREFIXES = [
    "module.", "model.", "model.diffusion_model.", "diffusion_model.", "_orig_mod.", "module._orig_mod.", "pipe.dit.",
    "generator.model.", "generator_ema.", "generator.", "dit.", "transformer.", "net.", "module.model.",
    "model._fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "generator_ema.model.", "ema.",
]  # fmt: skip


@pytest.mark.parametrize("rename", [str, to_diffusers])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers_are_no_part_of_names(save, tensors, prefix, rename):
    assert_same(read_weights(save({prefix + rename(name): x for name, x in tensors.items()})), tensors)


@pytest.mark.parametrize("inner", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_of_blocks_are_in_the_middle_of_names(save, tensors, inner, prefix):
    def wrap(name):
        block, dot, rest = name.partition(".self_attn.")
        return prefix + (f"{block}.{inner}{dot}{inner}.{rest}" if dot else name)

    assert_same(read_weights(save({wrap(name): x for name, x in tensors.items()})), tensors)


def test_a_prefix_that_only_some_names_have_is_refused_with_one_of_each(save, tensors):
    half = {("module." if "blocks.1" in name else "") + name: x for name, x in tensors.items()}
    refused_weights(save(half), " holds module.blocks.1.", " and blocks.0.", "expected all names to begin with module.")


def test_names_that_become_one_are_refused(save, tensors):
    twice = tensors | {"blocks.0._orig_mod.modulation": tensors["blocks.0.modulation"]}
    refused_weights(save(twice), "blocks.0.modulation", "blocks.0._orig_mod.modulation", "save one model in a file")
    stock = {to_diffusers(name): x for name, x in tensors.items()}
    both = stock | {"blocks.0.self_attn.q.weight": tensors["blocks.0.self_attn.q.weight"]}
    refused_weights(
        save(both), "blocks.0.attn1.to_q.weight and blocks.0.self_attn.q.weight", "save one model in a file"
    )


@pytest.mark.parametrize("name", ["a\nb.weight", "a\r.weight", "\x1b[31m.weight", "blocks.0.\u2028ffn"])
def test_a_name_that_no_line_can_say_is_refused_in_one(save, tensors, name):
    refused_weights(save(tensors | {name: torch.zeros(1)}), "holds a tensor called ", ", expected printable names")


def test_several_models_in_a_file_are_named(save, tensors):
    several = {prefix + name: x for prefix in ("generator.model.", "generator_ema.") for name, x in tensors.items()}
    refused_weights(save(several), "holds 2 models, generator.model., generator_ema.: save the one to load")
    refused_weights(save(tensors | {f"critic.{name}": x for name, x in tensors.items()}), "critic.blocks")


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_of_an_all_in_one_checkpoint_the_transformer_is_read_and_the_rest_named(save, tensors, caplog, prefix):
    beside = {"vae.decoder.conv1.weight": torch.zeros(1), "text_encoders.umt5xxl.shared.weight": torch.zeros(1)}
    with caplog.at_level(logging.WARNING):
        assert_same(read_weights(save({prefix + name: x for name, x in tensors.items()} | beside)), tensors)
    assert f"the transformer ({prefix or 'no prefix'}) is read, not its text_encoders., vae." in caplog.text


ZERO = torch.zeros(1)


OTHER_MODELS = {
    "diffusion_model.blocks.0.self_attn.q.lora_A.weight": "a LoRA",
    "transformer.blocks.0.attn1.to_q.lora_B.weight": "a LoRA",
    "lora_unet_blocks_0_self_attn_q.lora_down.weight": "a LoRA",
    "blocks.0.self_attn.q.alpha": "a LoRA",
    "diffusion_model.blocks.0.self_attn.q.diff_b": "a LoRA",
    "encoder.downsamples.0.residual.0.gamma": "a VAE",
    "decoder.middle.0.residual.0.gamma": "a VAE",
    "quant_conv.weight": "a VAE",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "a text encoder",
    "shared.weight": "a text encoder",
    "token_embedding.weight": "a text encoder",
    "vision_model.embeddings.patch_embedding.weight": "a CLIP vision encoder",
    "visual.patch_embedding.weight": "a CLIP vision encoder",
    "double_blocks.0.img_attn.proj.weight": "a Flux transformer",
    "model.model.double_blocks.0.img_attn.proj.weight": "a Flux transformer",
    "txt_in.individual_token_refiner.blocks.0.mlp.fc1.weight": "a HunyuanVideo transformer",
    "model.diffusion_model.input_blocks.0.0.weight": "a Stable Diffusion UNet",
    "down_blocks.0.resnets.0.conv1.weight": "a Stable Diffusion UNet",
    "model.diffusion_model.patchify_proj.weight": "an LTX-Video transformer",
}


WAN_KINDS = {
    "img_emb.proj.0.weight": "an image-to-video model",
    "blocks.0.cross_attn.k_img.weight": "an image-to-video model",
    "condition_embedder.image_embedder.norm1.weight": "an image-to-video model",
    "img_emb.emb_pos": "a first-and-last-frame-to-video model",
    "vace_blocks.0.before_proj.weight": "a VACE model",
    "vace_patch_embedding.weight": "a VACE model",
    "face_adapter.fuser_blocks.0.k_norm.weight": "a Wan-Animate model",
    "casual_audio_encoder.encoder.final_linear.weight": "a speech-to-video model",
    "control_adapter.conv.weight": "a camera-control model",
    "ref_conv.weight": "a Fun-Control model",
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_another_model_is_named(save, name):
    refused_weights(save({name: ZERO}), f"is {OTHER_MODELS[name]} ({name}), expected a text-to-video Wan")


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", WAN_KINDS)
def test_another_kind_of_wan_is_named(save, tensors, name, prefix):
    path = save({prefix + key: x for key, x in (tensors | {name: ZERO}).items()})
    refused_weights(path, f"is {WAN_KINDS[name]} ({name}), expected a text-to-video Wan")


@pytest.mark.parametrize("rename", [str, to_diffusers])
@pytest.mark.parametrize(("channels", "what"), [(36, "an image-to-video"), (48, "a Fun-Control"), (17, "beside the")])
def test_more_channels_in_than_out_are_another_model(save, tensors, channels, what, rename):
    other = tensors | {"patch_embedding.weight": torch.zeros(48, channels, 1, 2, 2)}
    refused_weights(save({rename(name): x for name, x in other.items()}), what, f"({channels} channels in, 16 out)")
