"""From a checkpoint of any kind to all that turns prompts into videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from fps_flex import FPSAttention
from fps_flex.checks import as_fields, as_whole, at_home, require
from fps_flex.wan import Wan
from fps_flex.wan.codecs import ByteText, Codec, Fixed, PixelCodec, TextEncoder
from fps_flex.wan.config import Residual
from fps_flex.wan.encoders import UMT5Text, WanVAE
from fps_flex.wan.experts import ALL, levels_of
from fps_flex.wan.hub import HUB, release_of
from fps_flex.wan.linear_codec import LinearCodec
from fps_flex.wan.linears import Linears, quantize_linears
from fps_flex.wan.release import PartError
from fps_flex.wan.weights import Weights, Which, build_empty, fill

from .attention import AttentionChanges, choose_attention
from .experts import LowExpert, open_experts
from .loras import add_loras, describe_loras

CODECS = {one.kind: one for one in (PixelCodec, LinearCodec, WanVAE, ByteText, UMT5Text)}
SETTINGS = ("codec", "text", "clip", "residual", "shift", "step", "run_id")
Kind = TypeVar("Kind", bound=Fixed)


@dataclass(frozen=True)
class Clip:
    """A video's frames, rows and columns of pixels, and frames a second; the default is Wan2.1's at 480p.

    Raises ValueError for sizes that aren't whole numbers from 1 up, and a rate that isn't above 0.
    """

    frames: int = 81
    height: int = 480
    width: int = 832
    fps: float = 16.0

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width"):
            as_whole(name, getattr(self, name))
        require("fps", self.fps, above=0, most=1000)

    @property
    def size(self) -> tuple[int, int, int]:
        return self.frames, self.height, self.width


OF_5B = Clip(121, 704, 1280, 24.0)  # Wan2.2's 5B, told by its VAE of 16x16 pixels a latent


@dataclass(frozen=True)
class TextToVideo:
    """A checkpoint that has been opened and checked; its weights and encoders are not in memory yet.

    weights: of its transformer, or of two experts' high-noise one. low: the other one.
    clip: what it was trained on. shift: it was trained with, or its release's own; None for that of Wan2.1, which goes
    by the size. step: of training; None for released weights.
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
    low: LowExpert | None = None

    def grid(self, size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Tokens of a video of so many frames, rows and columns. Raises ValueError where it doesn't divide."""
        return self.weights.config.grid(self.codec.latent_size(size))

    def load(self, device: torch.device, linears: Linears = "bf16", residual: Residual | None = None) -> Wan:
        """The transformer on its device, of two experts the high-noise one. residual: None takes its own.

        On a GPU in bf16 (norms, modulation and time embedding in fp32) with compiled blocks, else in fp32.
        Raises ValueError where `linears` can't be had, and for an unknown residual.
        """
        return self._load(self.weights, device, linears, residual)

    def load_low(self, device: torch.device, linears: Linears = "bf16", residual: Residual | None = None) -> Wan | None:
        """The low-noise expert, likewise; None where there is one transformer."""
        return self._load(self.low.weights, device, linears, residual) if self.low else None

    def _load(self, weights: Weights, device: torch.device, linears: Linears, residual: Residual | None) -> Wan:
        wan = build_empty(weights.config, self.attention)
        fill(wan, weights.unrounded.stream(), device, torch.bfloat16 if device.type == "cuda" else torch.float32)
        wan.compiled, wan.residual = device.type == "cuda", residual or self.residual
        quantize_linears(wan, linears)
        return wan.eval().requires_grad_(False)


def open_model(
    checkpoint: str,
    which: Which = "average",
    encoders: str | None = None,
    attention: AttentionChanges | FPSAttention | None = None,
    low_noise: str | None = None,
    boundary: float | None = None,
    lora: Sequence[str] = (),
    low_noise_lora: Sequence[str] | None = None,
    base: str | None = None,
) -> TextToVideo:
    """checkpoint: a .ckpt of train.fit, or Wan as released, official or diffusers, or exported; a file or a folder.

    which: weights of a .ckpt. encoders: folder with vae/, text_encoder/ and tokenizer/; None looks beside the weights,
    or where a .ckpt says. attention: as of `choose_attention`. low_noise, boundary, base: as of `open_experts`.
    lora: as of `add_loras`, for both of two experts where `low_noise_lora` isn't given.
    Raises ValueError where anything is missing or doesn't fit.
    """
    paths = {"checkpoint": checkpoint, "low_noise": low_noise, "encoders": encoders, "base": base}
    empty = [name for name, path in paths.items() if path is not None and not path.strip()]
    if empty:
        raise ValueError(f"{empty[0]} is empty, expected a path")
    checkpoint, low_noise, encoders, base = (path and str(at_home(path)) for path in paths.values())
    weights, low = open_experts(checkpoint, which, low_noise, boundary, base)
    if low:
        low = replace(low, weights=add_loras(low.weights, lora if low_noise_lora is None else low_noise_lora))
    elif low_noise_lora is not None:
        raise ValueError(f"low_noise_lora is of the second of two experts, and {checkpoint} is one: leave it out")
    weights = add_loras(weights, lora)
    opened = {checkpoint: weights, **({low.path: low.weights} if low else {})}
    attention = choose_attention({path: trained_attention(one) for path, one in opened.items()}, attention)
    trained = {path: one.trained for path, one in opened.items() if one.trained is not None}
    for path, record in trained.items():
        check_trained(path, record)
    if trained:
        model = _open_trained(*next(iter(trained.items())), weights, low, encoders, attention)
    else:
        model = _open_released(weights, low, encoders or _beside(checkpoint), attention)
    for given, name in ((model.codec.channels, "channels"), (model.text.dim, "text_dim")):
        expected = getattr(weights.config, name)
        if given != expected:
            raise ValueError(f"the encoders give {given} {name}, {checkpoint} was made for {expected}")
    return model


def trained_attention(weights: Weights) -> FPSAttention | None:
    """What a checkpoint of train.fit was trained with, also once it was exported; None for released weights."""
    attention = (weights.settings or {}).get("attention")
    return attention and FPSAttention.from_dict(attention)


def _open_released(weights: Weights, low: LowExpert | None, encoders: str, attention: FPSAttention) -> TextToVideo:
    """With the clip size, and the shift, of its release's own examples; an exported fine-tune with its own."""
    settings = weights.settings or {}
    codec = find(WanVAE, path=encoders)
    text = find(UMT5Text, path=encoders, **({"length": settings["text_length"]} if "text_length" in settings else {}))
    clip, shift = (Clip(), 12.0 if low else None) if codec.pixels == 8 else (OF_5B, 5.0)
    clip = Clip(**settings["clip"]) if "clip" in settings else clip
    residual, shift = settings.get("residual", "fp32"), settings.get("shift", shift)
    return TextToVideo(weights, attention, codec, text, clip, residual, shift, low=low)


def _open_trained(
    path: str,
    record: dict[str, Any],
    weights: Weights,
    low: LowExpert | None,
    encoders: str | None,
    attention: FPSAttention,
) -> TextToVideo:
    """path, record: a checkpoint of train.fit and what it says; of two such, the high-noise expert's."""
    kinds = {"codec": Codec, "text": TextEncoder}
    codec, text = (build(path, record[name], kind, encoders) for name, kind in kinds.items())
    if encoders and not any("path" in one.spec()["options"] for one in (codec, text)):
        raise ValueError(
            f"encoders is {encoders}, and {path} was trained with ones that need no files ({codec.kind} and "
            f"{text.kind}): leave it out"
        )
    step = record["step"] if weights.trained is record else None
    return TextToVideo(
        weights, attention, codec, text, Clip(**record["clip"]), record["residual"], record["shift"], step, low
    )


def _beside(checkpoint: str) -> str:
    """The folder where released weights have their encoders."""
    if checkpoint.startswith(HUB):
        return release_of(checkpoint)
    path = Path(checkpoint)
    folder = path if path.is_dir() else path.parent
    return str(folder if levels_of(folder) == ALL else folder.resolve().parent)


def describe(model: TextToVideo) -> dict[str, Any]:
    """What of a model decides how its videos look, as plain data."""
    low = model.low.weights.trained if model.low else None
    return {
        "trained_steps": model.step,
        "low_noise_trained_steps": low and low["step"],
        "attention": asdict(model.attention),
        "codec": model.codec.spec(),
        "text": model.text.spec(),
    }


def find_fingerprints(model: TextToVideo) -> dict[str, Any]:
    """Of all weights that its videos depend on, and what LoRAs are among them.

    Raises ValueError for encoders that are broken.
    """
    low = {"low_noise": model.low.weights.fingerprint()} if model.low else {}
    encoders = {"codec": model.codec.fingerprint(), "text": model.text.fingerprint()}
    loras = {"loras": describe_loras(model.weights)}
    loras |= {"low_noise_loras": describe_loras(model.low.weights)} if model.low else {}
    return {"transformer": model.weights.fingerprint(), **low, **encoders, **{k: x for k, x in loras.items() if x}}


def check_trained(path: str, record: dict[str, Any]) -> None:
    """Raises ValueError unless a checkpoint says all of its run that making videos takes."""
    missing = [name for name in SETTINGS if name not in record]
    if missing:
        raise ValueError(
            f"{path} doesn't say its {', '.join(missing)}: start a run of this version from it, with --model.checkpoint"
        )


def build(path: str, spec: dict[str, Any], base: type[Kind], encoders: str | None) -> Kind:
    """A codec or text encoder as a checkpoint describes it. Raises ValueError where it can't be built.

    encoders: folder to look in, in place of that it was trained with.
    """
    kinds = {name: kind for name, kind in CODECS.items() if issubclass(kind, base)}
    named = spec["kind"]
    if named not in kinds:
        raise ValueError(
            f"{path} is no checkpoint of this project (it was trained with {named}, expected one of {', '.join(kinds)})"
        )
    try:
        options = dict(as_fields("options", spec["options"], [field.name for field in fields(kinds[named])]))
        if encoders and "path" in options:
            options["path"] = encoders
        return find(kinds[named], **options)
    except PartError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is no checkpoint of this project (its {base.__name__}: {error})") from None


def find(kind: type[Kind], **options: Any) -> Kind:
    """Raises PartError where its files are missing or broken."""
    try:
        return kind(**options)
    except PartError as error:
        raise PartError(f"{error}; --encoders names another folder") from None
