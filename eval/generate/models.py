"""From a checkpoint of any kind to all that turns prompts into videos."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from fps_flex import FPSAttention
from fps_flex.checks import as_fields, at_home
from fps_flex.wan import Wan
from fps_flex.wan.codecs import ByteText, Codec, Fixed, PixelCodec, TextEncoder
from fps_flex.wan.config import Residual
from fps_flex.wan.encoders import UMT5Text, WanVAE
from fps_flex.wan.experts import ALL, levels_of
from fps_flex.wan.hub import HUB, release_of
from fps_flex.wan.linear_codec import LinearCodec
from fps_flex.wan.linears import Linears, quantize_linears
from fps_flex.wan.release import PartError
from fps_flex.wan.weights import Weights, build_empty, fill
from train.common.work import compute_dtype

from .attention import choose_attention
from .experts import LowExpert, open_experts
from .jobs import Clip, Options
from .loras import add_loras, describe_loras

CODECS = {one.kind: one for one in (PixelCodec, LinearCodec, WanVAE, ByteText, UMT5Text)}
SETTINGS = ("codec", "text", "clip", "residual", "shift", "step", "run_id")
OF_5B = Clip(121, 704, 1280, 24.0)  # Wan2.2's 5B, told by its VAE of 16x16 pixels a latent
Kind = TypeVar("Kind", bound=Fixed)
Parts = tuple[Codec, TextEncoder, Clip, Residual, float | None]  # of a TextToVideo


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

    def load(
        self, device: torch.device, linears: Linears = "bf16", residual: Residual | None = None, low: bool = False
    ) -> Wan:
        """The transformer on its device. residual: None takes its own. low: the low-noise one of two experts.

        On a GPU in bf16 (norms, modulation and time embedding in fp32) with compiled blocks, else in fp32.
        Raises ValueError where `linears` can't be had, and for an unknown residual.
        """
        weights = self.low.weights if low else self.weights
        wan = build_empty(weights.config, self.attention)
        fill(wan, weights.unrounded.stream(), device, compute_dtype(device))
        wan.compiled, wan.residual = device.type == "cuda", residual or self.residual
        quantize_linears(wan, linears)
        return wan.eval().requires_grad_(False)


def open_model(asked: Options) -> TextToVideo:
    """A checkpoint with its encoders, as it is asked for. Raises ValueError for what is missing or doesn't fit."""
    paths = {name: getattr(asked, name) for name in ("checkpoint", "low_noise", "encoders", "base")}
    if empty := [name for name, path in paths.items() if path is not None and not path.strip()]:
        raise ValueError(f"{empty[0]} is empty, expected a path")
    checkpoint, low_noise, encoders, base = (path and str(at_home(path)) for path in paths.values())
    weights, low = open_experts(checkpoint, asked.weights, low_noise, asked.boundary, base)
    loras, low_loras = asked.lora or (), asked.low_noise_lora
    if low:
        low = replace(low, weights=add_loras(low.weights, loras if low_loras is None else low_loras))
    elif low_loras is not None:
        raise ValueError(f"low_noise_lora is of the second of two experts, and {checkpoint} is one: leave it out")
    weights = add_loras(weights, loras)
    opened = {checkpoint: weights, **({low.path: low.weights} if low else {})}
    attention = choose_attention({path: trained_attention(one) for path, one in opened.items()}, asked.attention)
    trained = {path: one.trained for path, one in opened.items() if one.trained is not None}
    for path, record in trained.items():
        check_trained(path, record)
    if trained:
        parts = _open_trained(*next(iter(trained.items())), encoders)
    else:
        parts = _open_released(weights.settings or {}, encoders or _beside(checkpoint), low is not None)
    model = TextToVideo(weights, attention, *parts, weights.trained and weights.trained["step"], low)
    for given, name in ((model.codec.channels, "channels"), (model.text.dim, "text_dim")):
        expected = getattr(weights.config, name)
        if given != expected:
            raise ValueError(f"the encoders give {given} {name}, {checkpoint} was made for {expected}")
    return model


def trained_attention(weights: Weights) -> FPSAttention | None:
    """What a checkpoint of train.fit was trained with, also once it was exported; None for released weights."""
    attention = (weights.settings or {}).get("attention")
    return attention and FPSAttention.from_dict(attention)


def _open_released(settings: dict[str, Any], encoders: str, are_two: bool) -> Parts:
    """With the clip size, and the shift, of its release's own examples; an exported fine-tune with its own."""
    codec = find(WanVAE, path=encoders)
    text = find(UMT5Text, path=encoders, **({"length": settings["text_length"]} if "text_length" in settings else {}))
    clip, shift = (Clip(), 12.0 if are_two else None) if codec.pixels == 8 else (OF_5B, 5.0)
    clip = Clip(**settings["clip"]) if "clip" in settings else clip
    return codec, text, clip, settings.get("residual", "fp32"), settings.get("shift", shift)


def _open_trained(path: str, record: dict[str, Any], encoders: str | None) -> Parts:
    """path, record: a checkpoint of train.fit and what it says; of two such, the high-noise expert's."""
    kinds = {"codec": Codec, "text": TextEncoder}
    codec, text = (build(path, record[name], kind, encoders) for name, kind in kinds.items())
    try:
        codec.check_identity(record["codec"])
    except ValueError as error:
        raise ValueError(f"{path} can't be used: {error}; --encoders names another file") from None
    if encoders and not any("path" in one.spec()["options"] for one in (codec, text)):
        raise ValueError(
            f"encoders is {encoders}, and {path} was trained with ones that need no files ({codec.kind} and "
            f"{text.kind}): leave it out"
        )
    return codec, text, Clip(**record["clip"]), record["residual"], record["shift"]


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
        holder = "file" if kind is LinearCodec else "folder"
        raise PartError(f"{error}; --encoders names another {holder}") from None
