"""Tiny stock Wan transformers and pipelines whose attention matters, and calls of them."""

import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fps_flex import Regime, StepSchedule
from fps_flex.wan import Wan, WanConfig
from fps_flex.wan.keys import to_official
from tests.helpers.tiny_wan import SIZES, tiny_pipeline
from tests.helpers.tiny_wan import tiny_transformer as flat_transformer

SMALL = {"tile": (2, 2, 3), "block": 16}  # ragged on every grid here
FULL = StepSchedule(bounds=(), regimes=(Regime((9, 9, 9)),))
THREE = StepSchedule(regimes=(Regime((2, 3, 1), granularity=4), Regime((1, 2, 2)), Regime((2, 1, 1), granularity=2)))
SIZES_OF_VIDEOS = ((48, 80, 9), (64, 96, 5))  # rows, columns, frames
SAME, OTHER = 2e-3, 0.05  # relative errors: the same but for a code that rounds otherwise; another attention
TEXT = torch.randn(1, 512, 32, generator=torch.Generator().manual_seed(1))


def sharpen(transformer):
    """Attention that a window or a rounding changes: with norms as small as the tests' it is almost uniform."""
    for block in transformer.blocks:
        for norm in (block.attn1.norm_q, block.attn1.norm_k):
            torch.nn.init.constant_(norm.weight, 1.5)
        torch.nn.init.normal_(block.attn1.to_out[0].weight, std=0.5)
    return transformer.eval()


def tiny_transformer():
    return sharpen(flat_transformer())


def tiny_i2v_transformer():
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=36, out_channels=16, text_dim=32, freq_dim=64,
        ffn_dim=96, num_layers=2, image_dim=16, added_kv_proj_dim=48,
    )  # fmt: skip
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return sharpen(transformer)


def t2v_pipeline():
    pipe = tiny_pipeline()
    sharpen(pipe.transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def i2v_pipeline():
    """As Wan2.1's: the image goes in as channels, and through CLIP into cross-attention."""
    stock = tiny_pipeline()
    clip = CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, intermediate_size=16, patch_size=16
    )
    pipe = WanImageToVideoPipeline(
        tokenizer=stock.tokenizer, text_encoder=stock.text_encoder, vae=stock.vae, scheduler=stock.scheduler,
        image_processor=CLIPImageProcessorPil(crop_size=32, size=32), image_encoder=CLIPVisionModel(clip).eval(),
        transformer=tiny_i2v_transformer(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, height=48, width=80, frames=9, steps=3, **options):
    """Latents of a whole run of the pipeline, with guidance."""
    if isinstance(pipe, WanImageToVideoPipeline):
        options["image"] = Image.new("RGB", (width, height), (200, 30, 30))
    return pipe(
        prompt_embeds=TEXT, negative_prompt_embeds=-TEXT, height=height, width=width, num_frames=frames,
        num_inference_steps=steps, guidance_scale=4.0, generator=torch.Generator().manual_seed(3),
        output_type="latent", **options,
    ).frames  # fmt: skip


def inputs(sigma, grid=(3, 5, 7), channels=16):
    generator = torch.Generator().manual_seed(5)
    t, h, w = grid
    latents = torch.randn(len(sigma), channels, t, 2 * h, 2 * w, generator=generator)
    return latents, 1000 * torch.tensor(sigma), torch.randn(len(sigma), 6, 32, generator=generator)


@torch.no_grad()
def call(transformer, sigma=(0.95, 0.4), **options):
    """One forward pass of a batch at these noise levels."""
    latents, timestep, text = inputs(sigma, **options)
    return transformer(latents.to(transformer.dtype), timestep, text.to(transformer.dtype)).sample


def own_wan(transformer, attention):
    """Our own model with the same weights."""
    wan = Wan(WanConfig(**SIZES), attention)
    wan.load_state_dict({to_official(name): x for name, x in transformer.state_dict().items()})
    return wan.eval()
