"""What chance has for a clip when a pass meets it: of the run's seed, the clip and the pass alone.

It is drawn where clips are loaded, while the GPU is at work: a step that drew its own noise would keep the GPU waiting.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import Dataset

from .order import Pick, as_pick, generator_of

ON_CPU = ("index", "pass", "uniform", "normal")  # what decides on a pass: reading it there waits for no GPU


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch there, but for what decides on the pass."""
    return {name: x if name in ON_CPU else move_data_to_device(x, device) for name, x in batch.items()}


class WithChance(Dataset):
    """The items of a data set, with noise [C, TF, TH, TW]; in training also uniform, in 0 to 1, and normal, by which a
    prompt is dropped and a noise level chosen.

    seed: of the run. shape: of the noise; None takes that of an item's latents. A clip of validation has the same noise
    whenever it is met.
    """

    def __init__(self, items: Dataset, seed: int, shape: tuple[int, ...] | None) -> None:
        self.items, self.seed, self.shape = items, seed, shape

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: int | Pick) -> dict[str, Any]:
        pick, item = as_pick(key), self.items[key]
        generator = generator_of(self.seed, pick.index)
        if pick.pass_ >= 0:
            generator = generator_of(self.seed, *pick)
            item["uniform"] = torch.rand((), generator=generator)
            item["normal"] = torch.randn((), generator=generator)
        item["noise"] = torch.randn(self.shape or item["latents"].shape, generator=generator)
        return item
