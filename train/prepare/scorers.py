"""Scores by learned models, each with a minimum: an interface, and an aesthetic score from CLIP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from fps_flex.checks import is_finite
from fps_flex.wan.codecs import Fixed

if TYPE_CHECKING:
    from jaxtyping import UInt8


class Scorer(Fixed, ABC):
    """Frames of a clip -> a score; a clip below `minimum` is dropped. name: of the score in the manifest."""

    name: str
    minimum: float

    @abstractmethod
    def __call__(self, frames: UInt8[np.ndarray, "f h w 3"]) -> float: ...


@dataclass(frozen=True)
class ClipAesthetic(Scorer):
    """A linear head on CLIP's normalised image embedding, averaged over four frames (LAION's predictor has this form).

    Args:
        clip: folder of a CLIP model with safetensors and its preprocessor.
        head: safetensors file with `weight` [1, E] and `bias` [1].
        minimum: the paper's is 2.0.

    Raises ValueError when either is missing.
    """

    kind: ClassVar[str] = "clip-aesthetic"

    clip: str
    head: str
    minimum: float = 2.0

    name = "aesthetic"

    def __post_init__(self) -> None:
        for path in (Path(self.clip) / "config.json", Path(self.head)):
            if not path.is_file():
                raise ValueError(f"no {path}: expected a CLIP folder and a safetensors file with weight and bias")

    @cached_property
    def _model(self) -> tuple[Any, int, dict[str, torch.Tensor]]:
        """The CLIP model, its pictures' side, and the head."""
        from transformers import CLIPModel

        try:
            model = CLIPModel.from_pretrained(self.clip, use_safetensors=True, local_files_only=True).eval()
        except Exception as error:
            raise ValueError(f"{self.clip} can't be loaded as a CLIP ({str(error).splitlines()[0]})") from None
        return model, model.config.vision_config.image_size, _read_head(Path(self.head), model.config.projection_dim)

    @torch.no_grad()
    def __call__(self, frames: UInt8[np.ndarray, "f h w 3"]) -> float:
        model, size, head = self._model
        picked = frames[np.linspace(0, len(frames) - 1, min(4, len(frames))).round().astype(int)]
        embedded = model.get_image_features(pixel_values=_normalize(picked, size))
        embedded = getattr(embedded, "pooler_output", embedded)
        embedded = embedded / embedded.norm(dim=-1, keepdim=True)
        return (embedded @ head["weight"].T + head["bias"]).mean().item()


def _read_head(path: Path, dim: int) -> dict[str, torch.Tensor]:
    """weight [1, E] and bias [1]. Raises ValueError for anything else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        head = load_file(path)
        weight, bias = (head[name].float() for name in ("weight", "bias"))
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"{path} can't be read ({error}): expected safetensors with weight and bias") from None
    if weight.shape != (1, dim) or bias.shape != (1,) or not is_finite(weight, bias):
        shapes = f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)}"
        raise ValueError(f"{path} holds {shapes}, expected {(1, dim)} and (1,), as the CLIP gives, with finite values")
    return {"weight": weight, "bias": bias}


def _normalize(frames: UInt8[np.ndarray, "f h w 3"], size: int) -> torch.Tensor:
    """As CLIP was trained: scaled to cover, cropped to the centre, normalised by its mean and deviation."""
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    scale = size / min(x.shape[-2:])
    x = torch.nn.functional.interpolate(
        x, size=[max(size, round(n * scale)) for n in x.shape[-2:]], mode="bicubic", antialias=True
    )
    top, left = ((n - size) // 2 for n in x.shape[-2:])
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    return (x[..., top : top + size, left : left + size] - mean) / std
