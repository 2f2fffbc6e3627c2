"""What FPS attention in diffusers refuses, and the attention that a fine-tuned model brings with it."""

import json
from dataclasses import asdict

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from fps_flex import FPSAttention
from fps_flex.diffusers import install, install_trained, uninstall
from fps_flex.wan.convert import main as weights
from fps_flex.wan.export import export
from fps_flex.wan.weights import SETTINGS, load_wan, open_weights
from tests.helpers.cases import relative_error
from tests.helpers.stock_wan import (
    SAME,
    SMALL,
    call,
    inputs,
    own_wan,
    t2v_pipeline,
    tiny_transformer,
)
from tests.helpers.tiny_run import train_tiny
from tests.helpers.tiny_wan import SIZES


def test_what_can_not_run_says_so():
    transformer = tiny_transformer()
    install(transformer, "fps", **SMALL)
    transformer.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match="no gradient checkpointing in diffusers: disable it, or use train.fit"):
        transformer(*inputs((0.5,)))
    call(transformer)  # without gradients there is nothing to recompute
    with pytest.raises(ValueError, match="outside a forward pass of its transformer: call the transformer itself"):
        transformer.forward(*inputs((0.5,)))
    rope = torch.ones(1, 4, 1, 24)
    with pytest.raises(ValueError, match="a video's own tokens and no mask: got other tokens or a mask"):
        transformer.blocks[0].attn1(torch.randn(1, 4, 48), torch.randn(1, 4, 48), None, (rope, rope))


def context_parallel(transformer):
    for block in transformer.blocks:
        block.attn1.processor._parallel_config = object()
    return transformer


class Sage:
    """Another project's processor."""


def sage(transformer):
    transformer.blocks[1].attn1.set_processor(Sage())
    return transformer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), "got a Linear, expected diffusers' WanTransformer3DModel"),
        (
            t2v_pipeline,
            "got a WanPipeline, expected diffusers' WanTransformer3DModel: pass its transformer",
        ),
        (lambda: own_wan(tiny_transformer(), FPSAttention()), "got a Wan, expected diffusers' WanTransformer3DModel"),
        (lambda: tiny_transformer().to(torch.float16), "the transformer is in float16, expected bfloat16 or float32"),
        (
            lambda: sage(tiny_transformer()),
            "blocks.1.attn1 has another attention processor already, Sage: set diffusers' own again",
        ),
        (lambda: context_parallel(tiny_transformer()), "splits its tokens over GPUs (context parallelism)"),
    ],
    ids=["linear", "pipeline", "own-wan", "float16", "another-processor", "context-parallel"],
)
def test_what_does_not_fit_is_one_clear_line_and_changes_nothing(make, message):
    model = make()
    before = dict(getattr(model, "attn_processors", {}))
    with pytest.raises(ValueError) as refused:
        install(model)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert getattr(model, "attn_processors", {}) == before and not getattr(model, "_forward_pre_hooks", None)


def test_another_processor_put_over_ours_is_left_where_it_is():
    transformer = tiny_transformer()
    install(transformer, "fps", **SMALL)
    sage(transformer)
    uninstall(transformer)
    kinds = [type(block.attn1.processor) for block in transformer.blocks]
    assert kinds == [WanAttnProcessor, Sage] and not transformer._forward_pre_hooks


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of two steps on moving shapes, whose schedule is its own, and what was exported from it."""
    folder = tmp_path_factory.mktemp("trained")
    train_tiny(folder / "run", "--model.lr=0.1")
    checkpoint = folder / "run/checkpoints/last.ckpt"
    weights(["convert", str(checkpoint), str(folder / "exported"), "--format", "diffusers"])
    return checkpoint, folder / "exported"


@pytest.mark.parametrize("which", [0, 1], ids=["checkpoint", "export"])
def test_a_model_fine_tuned_here_goes_on_with_the_attention_it_was_trained_with(trained, which):
    checkpoint, exported = trained
    transformer, report = WanTransformer3DModel.from_pretrained(exported, output_loading_info=True)
    assert not any(report.values())
    attention = torch.load(checkpoint, weights_only=True)["fps_flex"]["attention"]
    wan = load_wan(exported, FPSAttention.from_dict(attention))
    install_trained(transformer, trained[which])
    assert transformer._fps_flex.attention == FPSAttention.from_dict(attention)
    latents, text = torch.randn(2, 24, 5, 8, 8), torch.randn(2, 8, 32)
    with torch.no_grad():
        for timestep in (torch.tensor([950.0, 300.0]), torch.tensor([700.0, 50.0])):
            expected, got = wan(latents, timestep, text), transformer(latents, timestep, text).sample
            assert expected.std() > 0.01 and relative_error(got, expected) < SAME
    install_trained(transformer, trained[which], scale_format="pow2")
    changed = asdict(transformer._fps_flex.attention)
    assert changed == {**asdict(FPSAttention.from_dict(attention)), "scale_format": "pow2"}


def test_settings_of_another_model_and_broken_ones_are_one_clear_line(trained, tmp_path):
    checkpoint, exported = trained
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / SETTINGS).write_text("{")
    older = tmp_path / "older"
    older.mkdir()
    (older / SETTINGS).write_text(json.dumps({"wan": {**SIZES, "depth": 3}}))
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    for path, message in (
        (checkpoint, "was trained as another model: dim 128, ffn_dim 384, layers 3, channels 24; this transformer has "
                     "dim 48, ffn_dim 96, layers 2, channels 16"),
        (exported, "was trained as another model: dim 128"),
        (tmp_path, f"no {SETTINGS} in {tmp_path}: expected a .ckpt of train.fit, or the folder that"),
        (broken, "doesn't say its attention (JSONDecodeError"),
        (older, "doesn't say its attention (wan "),
        (tmp_path / "other.ckpt", "is no checkpoint of this project (it lacks state_dict or fps_flex)"),
        (tmp_path / "none.ckpt", "no checkpoint"),
    ):  # fmt: skip
        transformer = tiny_transformer()
        with pytest.raises(ValueError) as refused:
            install_trained(transformer, path)
        assert message in str(refused.value) and "\n" not in str(refused.value)
        assert type(transformer.blocks[0].attn1.processor) is WanAttnProcessor


def test_released_weights_are_exported_without_settings(wan_folder, tmp_path):
    export(open_weights(wan_folder), tmp_path / "out", "diffusers")
    assert not (tmp_path / "out" / SETTINGS).exists()
