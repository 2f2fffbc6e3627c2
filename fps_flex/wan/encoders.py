"""Wan's own encoders, from a folder in the diffusers layout: its VAE and its umT5 text encoder.

Both are loaded when first used, onto the device that they are used on, and only from safetensors.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..checks import as_whole, one_of, require, show
from .codecs import MOST_LENGTH, Codec, TextEncoder, Triple, digest
from .fingerprint import digest_held
from .release import find_part, first_line, load_part, read_config
from .tensors import check_finite, check_held, read_held
from .text_config import DECIDING, check_text
from .tokenizer import digest_tokenizer, find_model, load_tokenizer
from .vae_config import DEFAULTS, FRAMES, check_vae

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan
    from jaxtyping import Float
    from transformers import PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

UNTILED_PIXELS = 480 * 832  # a frame; larger ones are coded in tiles to save memory
VAE, VAE_STEM = "vae", "diffusion_pytorch_model"
TEXT, TEXT_STEM = "text_encoder", "model"
TIED = {"shared.weight", "encoder.embed_tokens.weight"}  # one tensor, in a file under either name or both

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WanVAE(Codec):
    """Wan's VAE, in fp32; latents normalised by its own statistics.

    A latent is the first frame alone, or 4 frames after it, of 8x8 pixels (Wan2.1, and Wan2.2 A14B) or 16x16 (Wan2.2
    5B), as its config.json says.

    Args:
        path: folder of a Wan in the diffusers layout (with vae/), or hf: and its name on the Hugging Face hub.

    Raises ValueError when there is none, or its config.json can't be meant.
    """

    kind: ClassVar[str] = "wan-vae"

    path: str

    def __post_init__(self) -> None:
        self._config  # noqa: B018 - a wrong path is said at once

    @cached_property
    def _config(self) -> dict[str, Any]:
        """config.json with what it leaves out."""
        config = DEFAULTS | read_config(self.path, VAE, "AutoencoderKLWan")
        check_vae(f"{VAE}/config.json of {self.path}", config)
        return config

    @property
    def channels(self) -> int:
        return self._config["z_dim"]

    @property
    def pixels(self) -> int:
        """Rows, and columns, of a latent."""
        return self._config["scale_factor_spatial"]

    def latent_size(self, size: Triple) -> Triple:
        frames, rows, columns = size
        if frames < 1 or frames % FRAMES != 1:
            below = max(1, (frames - 1) // FRAMES * FRAMES + 1)
            raise ValueError(f"clips of {frames} frames, expected 4n + 1: {below} and {below + FRAMES} are nearest")
        if rows % self.pixels or columns % self.pixels or min(rows, columns) < self.pixels:
            raise ValueError(f"frames of {rows}x{columns}, expected multiples of {self.pixels} rows and columns")
        return (frames - 1) // FRAMES + 1, rows // self.pixels, columns // self.pixels

    def fingerprint(self) -> str:
        """What makes its latents: the statistics and what no tensor shows of config.json, and the weights."""
        names = ("latents_mean", "latents_std", *DEFAULTS)
        settings = {name: self._config[name] for name in names}
        return f"settings {digest(settings)}, weights {digest_held(read_held(find_part(self.path, VAE), VAE_STEM))}"

    @torch.no_grad()
    def encode(self, video: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b c tf th tw"]:
        with torch.autocast(video.device.type, enabled=False):
            rows, columns = video.shape[-2:]
            vae = self._on(video.device, (rows, columns))
            latents = vae.encode(video.float()).latent_dist.mode()
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c tf th tw"]) -> Float[Tensor, "b 3 f h w"]:
        mean, std = self._statistics(latents)
        with torch.autocast(latents.device.type, enabled=False):
            rows, columns = latents.shape[-2:]
            vae = self._on(latents.device, (self.pixels * rows, self.pixels * columns))
            return vae.decode(latents.float() * std + mean).sample

    def _on(self, device: torch.device, frame: tuple[int, int]) -> AutoencoderKLWan:
        vae = self._model.to(device)
        vae.use_tiling = frame[0] * frame[1] > UNTILED_PIXELS
        return vae

    @cached_property
    def _model(self) -> AutoencoderKLWan:
        from diffusers import AutoencoderKLWan

        _check_weights(find_part(self.path, VAE), VAE_STEM, lambda: AutoencoderKLWan.from_config(self._config))
        vae = load_part(AutoencoderKLWan, self.path, VAE, torch_dtype=torch.float32, use_safetensors=True)
        check_finite(f"{VAE}/ of {self.path}", vae)
        vae.use_slicing = True
        return vae

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(self._config[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
        return mean.to(latents.device), std.to(latents.device)


@dataclass(frozen=True)
class UMT5Text(TextEncoder):
    """Wan's text encoder, umT5-xxl: the states of a prompt's tokens, then zeros.

    Args:
        path: folder of a Wan2.1 in the diffusers layout (with text_encoder/ and tokenizer/), or hf: and its name on
            the Hugging Face hub.
        length: tokens kept of a prompt, and states given.
        dtype: to load and compute in.

    Raises ValueError when there is none, and for a length or dtype that can't be had.
    """

    kind: ClassVar[str] = "umt5"

    path: str
    length: int = 512
    dtype: Literal["bfloat16", "float32"] = "bfloat16"

    negative_prompt = (  # the official one
        "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
        "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
        "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
    )

    def __post_init__(self) -> None:
        as_whole("the text encoder's length", self.length)
        require("the text encoder's length", self.length, most=MOST_LENGTH)
        one_of("the text encoder's dtype", self.dtype, ("bfloat16", "float32"))
        self._config  # noqa: B018 - a wrong path is said at once
        find_model(self.path)

    @cached_property
    def _config(self) -> dict[str, Any]:
        config = read_config(self.path, TEXT, "UMT5EncoderModel")
        check_text(f"{TEXT}/config.json of {self.path}", config)
        return config

    @cached_property
    def _resolved(self) -> UMT5Config:
        """config.json as transformers takes it, whichever entries say it."""
        from transformers import UMT5Config

        return load_part(UMT5Config, self.path, TEXT)

    def fingerprint(self) -> str:
        """What makes its states: length and what no tensor shows of config.json, the weights and the tokenizer.

        Not dtype, in which they are computed, as bf16 and fp32 give the same states but for rounding.
        """
        settings = {"length": self.length, **{name: getattr(self._resolved, name) for name in DECIDING}}
        weights = digest_held(read_held(find_part(self.path, TEXT), TEXT_STEM))
        return f"settings {digest(settings)}, weights {weights}, tokenizer {digest_tokenizer(self.path)}"

    @property
    def dim(self) -> int:
        return self._config["d_model"]

    @torch.no_grad()
    def __call__(self, prompts: list[str], device: torch.device) -> Float[Tensor, "b l e"]:
        prompts = [clean(prompt) for prompt in prompts]
        tokens = self._tokenizer(
            prompts, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt",
            return_attention_mask=True,
        )  # fmt: skip
        self._say_what_is_cut(prompts)
        ids, kept = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        with torch.autocast(device.type, enabled=False):
            states = self._model.to(device)(ids, kept).last_hidden_state
        states = torch.where(kept[..., None].bool(), states, 0)
        for prompt, finite in zip(prompts, states.isfinite().all(-1).all(-1).tolist(), strict=True):
            if not finite:
                raise ValueError(f"{TEXT}/ of {self.path} gives states that aren't finite for {show(prompt)}")
        return states

    def count(self, prompt: str) -> int:
        return len(self._tokenizer([clean(prompt)]).input_ids[0])

    def _say_what_is_cut(self, prompts: list[str]) -> None:
        for prompt, ids in zip(prompts, self._tokenizer(prompts).input_ids, strict=True):
            if len(ids) > self.length and prompt not in self._cut:
                logger.warning("a prompt of %d tokens is cut to %d: %s...", len(ids), self.length, prompt[:60])
                self._cut.add(prompt)

    @cached_property
    def _cut(self) -> set[str]:
        """Prompts of which it has been said."""
        return set()

    @cached_property
    def _model(self) -> UMT5EncoderModel:
        from transformers import UMT5EncoderModel

        _check_weights(find_part(self.path, TEXT), TEXT_STEM, lambda: UMT5EncoderModel(self._resolved))
        dtype = getattr(torch, self.dtype)
        model = load_part(UMT5EncoderModel, self.path, TEXT, dtype=dtype, use_safetensors=True).eval()
        check_finite(f"{TEXT}/ of {self.path}", model)
        return model

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.path, self._config["vocab_size"])


def clean(prompt: str) -> str:
    """As Wan was trained: broken characters mended, HTML entities undone, white space folded."""
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


def _check_weights(folder: Path, stem: str, build: Callable[[], nn.Module]) -> None:
    """Raises ValueError unless a folder holds exactly the tensors of a model, of its shapes and not quantised."""
    tensors = read_held(folder, stem)
    try:
        with torch.device("meta"):
            empty = build()
    except Exception as error:
        raise ValueError(f"no model is of the sizes in {folder / 'config.json'} ({first_line(error)})") from None
    expected = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    if TIED & tensors.keys():
        expected = {name: shape for name, shape in expected.items() if name not in TIED or name in tensors}
    check_held(folder, tensors, expected, type(empty).__name__)
