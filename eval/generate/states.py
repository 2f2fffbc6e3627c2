"""Text states of many prompts, which together would fill the memory: on disk until their videos are made."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from train.cached import trim_text

if TYPE_CHECKING:
    from jaxtyping import Float


class TextStates:
    """States of each prompt less the zeros at their end, in a file without a name, which goes with the process.

    folder: on whose disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - as long as the object is there
        self._where: dict[str, tuple[int, int, torch.dtype, torch.Size]] = {}  # first byte, and how many

    def add(self, prompt: str, states: Float[Tensor, "1 l e"]) -> None:
        """Raises ValueError where the disk is full."""
        data = trim_text(states[0]).cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        try:
            start = self._file.seek(0, 2)
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise ValueError(f"text states can't be kept in {self.folder} ({error.strerror}): make room") from None
        self._where[prompt] = start, len(data), states.dtype, states.shape

    def __getitem__(self, prompt: str) -> Float[Tensor, "1 l e"]:
        start, count, dtype, shape = self._where[prompt]
        states = torch.zeros(shape, dtype=dtype)
        self._file.seek(start)
        self._file.readinto(states.view(-1).view(torch.uint8)[:count].numpy())
        return states
