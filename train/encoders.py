"""Wan2.1's own encoders, from a folder in the diffusers layout: its VAE and its umT5 text encoder.

Both are loaded when first used, onto the device that they are used on, and only from safetensors.
"""

from __future__ import annotations

import html
import json
import logging
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .codecs import Codec, TextEncoder, Triple

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan
    from jaxtyping import Float
    from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

HUB = "hf:"  # before the name of a release, to fetch it
RELEASE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
UNTILED_PIXELS = 480 * 832  # a frame; larger ones are coded in tiles to save memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WanVAE(Codec):
    """Wan2.1's VAE, in fp32: 4x8x8 pixels a latent, the first frame alone; latents normalised by its own statistics.

    Args:
        path: folder of a Wan2.1 in the diffusers layout (with vae/), or hf: and its name on the Hugging Face hub.

    Raises ValueError when there is none.
    """

    path: str

    def __post_init__(self) -> None:
        self._config  # noqa: B018 - a wrong path is said at once

    @cached_property
    def _config(self) -> dict[str, Any]:
        return _read_config(self.path, "vae", "AutoencoderKLWan")

    @property
    def channels(self) -> int:
        return self._config["z_dim"]

    def latent_size(self, size: Triple) -> Triple:
        frames, rows, columns = size
        if frames < 1 or frames % 4 != 1:
            below = max(1, (frames - 1) // 4 * 4 + 1)
            raise ValueError(f"clips of {frames} frames, expected 4n + 1: {below} and {below + 4} are nearest")
        if rows % 8 or columns % 8 or min(rows, columns) < 8:
            raise ValueError(f"frames of {rows}x{columns}, expected multiples of 8 rows and columns")
        return (frames - 1) // 4 + 1, rows // 8, columns // 8

    @torch.no_grad()
    def encode(self, video: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b c tf th tw"]:
        with torch.autocast(video.device.type, enabled=False):
            vae = self._on(video.device, video.shape[-2:])
            latents = vae.encode(video.float()).latent_dist.mode()
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c tf th tw"]) -> Float[Tensor, "b 3 f h w"]:
        mean, std = self._statistics(latents)
        with torch.autocast(latents.device.type, enabled=False):
            rows, columns = latents.shape[-2:]
            vae = self._on(latents.device, (8 * rows, 8 * columns))
            return vae.decode(latents.float() * std + mean).sample

    def _on(self, device: torch.device, frame: tuple[int, int]) -> AutoencoderKLWan:
        vae = self._model.to(device)
        vae.use_tiling = frame[0] * frame[1] > UNTILED_PIXELS
        return vae

    @cached_property
    def _model(self) -> AutoencoderKLWan:
        from diffusers import AutoencoderKLWan

        vae = _load(AutoencoderKLWan, self.path, "vae", torch_dtype=torch.float32, use_safetensors=True)
        vae.use_slicing = True
        return vae

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(self._config[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
        return mean.to(latents.device), std.to(latents.device)


@dataclass(frozen=True)
class UMT5Text(TextEncoder):
    """Wan2.1's text encoder, umT5-xxl: the states of a prompt's tokens, then zeros.

    Args:
        path: folder of a Wan2.1 in the diffusers layout (with text_encoder/ and tokenizer/), or hf: and its name on
            the Hugging Face hub.
        length: tokens kept of a prompt, and states given.
        dtype: to load and compute in.

    Raises ValueError when there is none.
    """

    path: str
    length: int = 512
    dtype: Literal["bfloat16", "float32"] = "bfloat16"

    negative_prompt = (  # the official one
        "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
        "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
        "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
    )

    def __post_init__(self) -> None:
        self._config  # noqa: B018 - a wrong path is said at once

    @cached_property
    def _config(self) -> dict[str, Any]:
        return _read_config(self.path, "text_encoder", "UMT5EncoderModel")

    @property
    def dim(self) -> int:
        return self._config["d_model"]

    @torch.no_grad()
    def __call__(self, prompts: list[str], device: torch.device) -> Float[Tensor, "b l e"]:
        prompts = [clean(prompt) for prompt in prompts]
        tokens = self._tokenizer(
            prompts, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        self._say_what_is_cut(prompts)
        ids, kept = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        with torch.autocast(device.type, enabled=False):
            states = self._model.to(device)(ids, kept).last_hidden_state
        return torch.where(kept[..., None].bool(), states, 0)

    def _say_what_is_cut(self, prompts: list[str]) -> None:
        for prompt, ids in zip(prompts, self._tokenizer(prompts).input_ids, strict=True):
            if len(ids) > self.length:
                logger.warning("a prompt of %d tokens is cut to %d: %s...", len(ids), self.length, prompt[:60])

    @cached_property
    def _model(self) -> UMT5EncoderModel:
        from transformers import UMT5EncoderModel

        dtype = getattr(torch, self.dtype)
        return _load(UMT5EncoderModel, self.path, "text_encoder", dtype=dtype, use_safetensors=True).eval()

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        return _load(AutoTokenizer, self.path, "tokenizer")


def clean(prompt: str) -> str:
    """As Wan was trained: broken characters mended, HTML entities undone, white space folded."""
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


def _read_config(path: str, part: str, kind: str) -> dict[str, Any]:
    """config.json of a part of a release. Raises ValueError where there is none or it is of another kind."""
    folder = _folder(path, part)
    file = folder / part / "config.json"
    if not file.is_file():
        pickles = sorted(file.name for file in folder.glob("*.pth"))
        found = f"{', '.join(pickles)}, which are pickles" if pickles else "none"
        raise ValueError(f"expected {part}/ with safetensors in {path}, found {found}: {RELEASE} has that folder")
    config = json.loads(file.read_text())
    names = (config.get("_class_name"), *config.get("architectures", ()))
    if kind not in names:
        raise ValueError(f"{file} describes a {' '.join(filter(None, names)) or 'nameless model'}, expected a {kind}")
    return config


def _folder(path: str, part: str) -> Path:
    """Where a release is on disk; of one on the hub, the part is fetched first."""
    if not path.startswith(HUB):
        if not Path(path).is_dir():
            raise ValueError(f"no folder {path}: expected a Wan2.1 in the diffusers layout, or {HUB}{RELEASE} to fetch")
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path.removeprefix(HUB), allow_patterns=f"{part}/*"))
    except Exception as error:
        raise ValueError(f"{part}/ of {path} can't be fetched ({str(error).splitlines()[0]})") from None


def _load(kind: Any, path: str, part: str, **options: Any) -> Any:
    """Raises ValueError when a part can't be loaded."""
    folder = _folder(path, part) / part
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder} can't be loaded ({reason}): fetch it again") from None
