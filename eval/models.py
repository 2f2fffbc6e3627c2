"""From a checkpoint of any kind to all that turns prompts into videos."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from fps_flex import FPSAttention, Wan
from fps_flex.linears import Linears, quantize_linears
from fps_flex.wan import Residual
from fps_flex.weights import Weights, Which, build_empty, fill, open_weights
from train.codecs import ByteText, Codec, Fixed, PixelCodec, TextEncoder
from train.encoders import UMT5Text, WanVAE

CODECS = {kind.class_path(): kind for kind in (PixelCodec, WanVAE, ByteText, UMT5Text)}

Kind = TypeVar("Kind", bound=Fixed)


@dataclass(frozen=True)
class Clip:
    """A video's frames, rows and columns of pixels, and frames a second; the default is Wan2.1's at 480p."""

    frames: int = 81
    height: int = 480
    width: int = 832
    fps: float = 16.0

    @property
    def size(self) -> tuple[int, int, int]:
        return self.frames, self.height, self.width


@dataclass(frozen=True)
class TextToVideo:
    """A checkpoint that has been opened and checked; its weights and encoders are not in memory yet.

    clip: what it was trained on. shift: it was trained with; None for released weights. step: of training, likewise.
    residual: it was trained with, or fp32, as in the official model, for released weights.
    """

    weights: Weights
    attention: FPSAttention
    codec: Codec
    text: TextEncoder
    clip: Clip
    residual: Residual
    shift: float | None = None
    step: int | None = None

    def check(self, size: tuple[int, int, int]) -> None:
        """Raises ValueError when it can't make videos of so many frames, rows and columns."""
        try:
            self.attention.plan(self.weights.config.grid(self.codec.latent_size(size)), torch.zeros(1))
        except ValueError as error:
            raise ValueError(f"videos of {size} (frames, rows, columns) can't be made: {error}") from None

    def load(self, device: torch.device, linears: Linears = "bf16", residual: Residual | None = None) -> Wan:
        """The transformer on its device. residual: None takes its own.

        On a GPU in bf16 (norms, modulation and time embedding in fp32) with compiled blocks, else in fp32.
        Raises ValueError where `linears` can't be had, and for an unknown residual.
        """
        wan = build_empty(self.weights.config, self.attention)
        fill(wan, self.weights.stream(), device, torch.bfloat16 if device.type == "cuda" else torch.float32)
        wan.compiled, wan.residual = device.type == "cuda", residual or self.residual
        quantize_linears(wan, linears)
        return wan.eval().requires_grad_(False)


def open_model(
    checkpoint: str, which: Which = "average", encoders: str | None = None, attention: FPSAttention | None = None
) -> TextToVideo:
    """checkpoint: a .ckpt of train.fit, or Wan2.1 as released, official or diffusers, a file or a folder.

    which: weights of a .ckpt. encoders: folder with vae/, text_encoder/ and tokenizer/; None looks beside the weights,
    or where a .ckpt says. attention: None takes that of a .ckpt; released weights, trained with dense attention, get
    dense attention.
    Raises ValueError where anything is missing or doesn't fit.
    """
    weights = open_weights(checkpoint, which)
    if weights.trained is None:
        beside = Path(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint).parent
        codec, text = (_find(kind, encoders or str(beside)) for kind in (WanVAE, UMT5Text))
        attention = attention or FPSAttention("dense", tile=None)
        model = TextToVideo(weights, attention, codec, text, Clip(), "fp32")
    else:
        model = _open_trained(checkpoint, weights, encoders, attention)
    for given, name in ((model.codec.channels, "channels"), (model.text.dim, "text_dim")):
        expected = getattr(weights.config, name)
        if given != expected:
            raise ValueError(f"the encoders give {given} {name}, {checkpoint} was made for {expected}")
    return model


def _open_trained(
    checkpoint: str, weights: Weights, encoders: str | None, attention: FPSAttention | None
) -> TextToVideo:
    said = weights.trained
    missing = [name for name in ("codec", "text", "clip", "residual", "shift", "step") if name not in said]
    if missing:
        raise ValueError(f"{checkpoint} doesn't say its {', '.join(missing)}: train it on with this version")
    return TextToVideo(
        weights,
        attention or FPSAttention.from_dict(said["attention"]),
        _build(said["codec"], encoders),
        _build(said["text"], encoders),
        Clip(**said["clip"]),
        said["residual"],
        said["shift"],
        said["step"],
    )


def _build(spec: dict[str, Any], encoders: str | None) -> Any:
    """A codec or text encoder as a checkpoint describes it."""
    if spec["class_path"] not in CODECS:
        raise ValueError(f"the checkpoint was trained with {spec['class_path']}, expected one of {', '.join(CODECS)}")
    kind, options = CODECS[spec["class_path"]], dict(spec["init_args"])
    return _find(kind, encoders or options.pop("path"), **options) if "path" in options else kind(**options)


def _find(kind: type[Kind], path: str, **options: Any) -> Kind:
    options.pop("path", None)
    try:
        return kind(path=path, **options)
    except ValueError as error:
        raise ValueError(f"{error}; --encoders names another folder") from None


def describe(model: TextToVideo) -> dict[str, Any]:
    """What of a model decides how its videos look, as plain data."""
    return {"trained_steps": model.step, "attention": asdict(model.attention), "text": model.text.spec()}
