"""The clips of a prepared data set: latents and text states, read from safetensors shards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from fps_flex.checks import is_finite

from .index import EMPTY_PROMPT, CachedClip, Index, read_tensors
from .order import Pick, as_pick

if TYPE_CHECKING:
    from jaxtyping import Float

logger = logging.getLogger(__name__)


class CachedClips(Dataset):
    """The clips of a prepared data set that are, or are not, held out for validation; None takes all.

    A clip with values that aren't finite is left out, named and counted, and the next one of its size takes its place.
    Items: latents [C, TF, TH, TW], text [L, E], prompt, name, source, index, pass. Raises ValueError where a shard
    broke, and when no clip of a size is left.
    """

    def __init__(self, index: Index, held_out: bool | None) -> None:
        self.index = index
        self.clips = [clip for clip in index.clips if held_out is None or clip.held_out is held_out]
        self.broken: set[str] = set()

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: int | Pick) -> dict[str, Any]:
        index, pass_ = as_pick(key)
        for clip in self._in_place_of(index):
            shard = self.index.folder / clip.shard
            latents, text = read_tensors(shard, f"{clip.name}/latents", f"{clip.name}/text")
            if is_finite(latents, text):
                return {
                    "latents": latents,
                    "text": pad_text(text, self.index.text_length),
                    "prompt": clip.prompt,
                    "name": clip.name,
                    "source": str(shard),
                    "index": index,
                    "pass": pass_,
                }
            self.broken.add(clip.name)
            logger.warning("left out a clip (%d so far): %s in %s isn't finite", len(self.broken), clip.name, shard)
        raise ValueError(f"no clip of {self.clips[index].size} in {self.index.folder} is finite: prepare it again")

    def _in_place_of(self, index: int) -> Iterator[CachedClip]:
        """The clip, then those of its size after it, round to it again; but for the broken ones."""
        if index >= len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        for step in range(len(self)):
            clip = self.clips[(index + step) % len(self)]
            if clip.size == self.clips[index].size and clip.name not in self.broken:
                yield clip

    def names(self) -> list[str]:
        """What tells these clips from others."""
        return [clip.name for clip in self.clips]

    def buckets(self) -> list[list[int]]:
        """Indices of the clips of each size that there are clips of."""
        by_size: dict[tuple[int, int, int], list[int]] = {}
        for i, clip in enumerate(self.clips):
            by_size.setdefault(clip.size, []).append(i)
        return [by_size[size] for size in sorted(by_size)]


def read_empty_text(index: Index) -> Float[Tensor, "l e"]:
    """The text states of an empty prompt. Raises ValueError where they are missing or others than the clips'."""
    file = index.folder / EMPTY_PROMPT
    (text,) = read_tensors(file, "text")
    if text.ndim != 2 or len(text) > index.text_length or not is_finite(text):
        raise ValueError(f"{file} holds no text states of an empty prompt: prepare it again")
    return pad_text(text, index.text_length)


def pad_text(text: Float[Tensor, "kept e"], length: int) -> Float[Tensor, "l e"]:
    return F.pad(text, (0, 0, 0, length - len(text)))


def trim_text(text: Float[Tensor, "l e"]) -> Float[Tensor, "kept e"]:
    """Without the zeros at the end."""
    return text[: int(text.any(dim=-1).nonzero().max()) + 1 if text.any() else 0]
