"""Captioned moving shapes, drawn on demand: the data set that is always there."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .order import Pick, as_pick

COLORS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.8, 0.2), "blue": (0.2, 0.3, 1.0), "yellow": (0.95, 0.85, 0.1)}
SHAPES = ("circle", "square", "diamond")
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
BACKGROUND = 0.05


class MovingShapes(Dataset):
    """Clip i of a seed is always the same: one shape that crosses the middle of a dark frame.

    Items: video [3, frames, height, width] in -1 to 1, prompt, name, source, index, pass.
    """

    def __init__(self, clips: int, frames: int, height: int, width: int, seed: int = 0) -> None:
        self.clips, self.frames, self.height, self.width, self.seed = clips, frames, height, width, seed
        self.kinds = list(product(COLORS, SHAPES, DIRECTIONS))

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, key: int | Pick) -> dict[str, Any]:
        index, pass_ = as_pick(key)
        if index >= self.clips:
            raise IndexError(f"clip {index} of {self.clips}")
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        color, shape, direction = self.kinds[int(torch.randint(len(self.kinds), (), generator=generator))]
        video = self._draw(color, shape, direction, torch.rand(4, generator=generator).tolist())
        return {
            "video": video,
            "prompt": f"a {color} {shape} moving {direction}",
            "name": f"shapes seed {self.seed} clip {index}",
            "source": "drawn here",
            "index": index,
            "pass": pass_,
        }

    def _draw(self, color: str, shape: str, direction: str, generator: list[float]) -> Tensor:
        size = min(self.height, self.width)
        radius = size * (0.23 + 0.06 * generator[0])
        travel = size * (0.5 + 0.1 * generator[1])
        jitter = size * 0.05 * (2 * torch.tensor(generator[2:]) - 1)
        center = torch.tensor([self.height, self.width]) / 2 + jitter
        progress = torch.linspace(-0.5, 0.5, self.frames)[:, None]
        path = center + progress * travel * torch.tensor(DIRECTIONS[direction])
        dy = (torch.arange(self.height) + 0.5 - path[:, :1])[:, :, None]
        dx = (torch.arange(self.width) + 0.5 - path[:, 1:])[:, None, :]
        distance = {
            "circle": (dy.square() + dx.square()).sqrt(),
            "square": torch.maximum(dy.abs(), dx.abs()) * 1.1,
            "diamond": (dy.abs() + dx.abs()) * 0.85,
        }[shape]
        inside = (radius + 0.5 - distance).clamp(0, 1)
        pixels = BACKGROUND + inside * (torch.tensor(COLORS[color]).view(3, 1, 1, 1) - BACKGROUND)
        return 2 * pixels - 1
