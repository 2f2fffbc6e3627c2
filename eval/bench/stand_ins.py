"""What stands in for data, encoders and a checkpoint where training is measured: random values, there at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from fps_flex import FPSAttention
from fps_flex.wan import WanConfig
from fps_flex.wan.codecs import Codec, TextEncoder
from fps_flex.wan.files import Spec
from fps_flex.wan.opened import Weights
from fps_flex.wan.weights import build_empty
from train.chance import to_device
from train.common.work import find_device
from train.module import FlowModule
from train.order import Pick, as_pick

from .sizes import TEXT_TOKENS, Triple

if TYPE_CHECKING:
    from torch import Tensor


class Latents(Dataset):
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, key: int | Pick) -> dict[str, Any]:
        index, pass_ = as_pick(key)
        where = {"name": f"random {index}", "source": "drawn here", "index": index, "pass": pass_}
        video = torch.randn(self.shape, generator=torch.Generator().manual_seed(index))  # whichever process asks
        return {"video": video, "prompt": "", **where}


@dataclass(frozen=True)
class Encoded(Codec):
    """Stands in for a codec where latents are there already."""

    channels: int

    def latent_size(self, size: Triple) -> Triple:
        return size

    def encode(self, video: Tensor) -> Tensor:
        return video

    def decode(self, latents: Tensor) -> Tensor:
        return latents


@dataclass(frozen=True)
class States(TextEncoder):
    """Random states in place of a text encoder's."""

    dim: int

    def __call__(self, prompts: list[str], device: torch.device) -> Tensor:
        generator = torch.Generator(device).manual_seed(0)  # the same for processes that share a clip
        return torch.randn(len(prompts), TEXT_TOKENS, self.dim, device=device, generator=generator)


class OnRandomWeights(FlowModule):
    """In place of a checkpoint's, weights that are drawn as they are asked for; and batches without VideoData."""

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        return to_device(batch, device)

    @staticmethod
    def open_start(checkpoint: str | None, wan: WanConfig) -> Weights | None:
        if checkpoint is None:
            return None
        state = build_empty(wan, FPSAttention()).state_dict()
        specs = {name: Spec(tuple(tensor.shape), torch.bfloat16) for name, tensor in state.items()}
        return RandomWeights(wan, specs, _drawn(specs))


def _drawn(specs: dict[str, Spec]) -> Callable[[str], Tensor]:
    device = find_device()
    return lambda name: 0.02 * torch.randn(specs[name].shape, dtype=torch.bfloat16, device=device)


class RandomWeights(Weights):
    def fingerprint(self) -> str:
        return "random"
