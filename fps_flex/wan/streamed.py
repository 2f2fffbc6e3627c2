"""Tensors that lie in several files by their rows, and are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .recognise import Shape


@dataclass(frozen=True)
class Part:
    """Rows of a tensor, which follow each other. read: gives those from the first to before the last of them."""

    shape: Shape
    dtype: torch.dtype
    read: Callable[[int, int], Tensor]

    @property
    def count(self) -> int:
        """Of rows; a number alone counts as one."""
        return self.shape[0] if self.shape else 1


class Streamed(Mapping[str, Tensor]):
    """A state dict of which only what is asked for is in memory. parts: of each tensor, in the order of its rows.

    Raises ValueError where the parts of a tensor don't fit together.
    """

    def __init__(self, parts: Mapping[str, list[Part]]) -> None:
        for name, own in parts.items():
            if len({(x.shape[1:], x.dtype) for x in own}) != 1 or (len(own) > 1 and not own[0].shape):
                shapes = ", ".join(f"{tuple(x.shape)} of {x.dtype}" for x in own)
                raise ValueError(f"{name} is in parts of {shapes}, which make up no tensor")
        self._parts = dict(parts)

    def __getitem__(self, name: str) -> Tensor:
        own = self._parts[name]
        return own[0].read(0, 1) if not own[0].shape else self.rows(name, 0, self.shape(name)[0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def shape(self, name: str) -> Shape:
        first = self._parts[name][0].shape
        return (sum(x.count for x in self._parts[name]), *first[1:]) if first else ()

    def dtype(self, name: str) -> torch.dtype:
        return self._parts[name][0].dtype

    def rows(self, name: str, start: int, end: int) -> Tensor:
        """Those of a tensor from `start` to before `end`; of the files only these are read."""
        read: list[Tensor] = []
        first = 0  # of the part's own rows, among all
        for part in self._parts[name]:
            low, high = max(start - first, 0), min(end - first, part.count)
            if low < high:
                read.append(part.read(low, high))
            first += part.count
        return torch.cat(read) if read else self._parts[name][0].read(0, 0)

    def renamed(self, before: str, after: str) -> Streamed:
        """The same under names in which the first of `before` is `after`."""
        return Streamed({name.replace(before, after, 1): parts for name, parts in self._parts.items()})


def renamed(state: Mapping[str, Tensor], before: str, after: str) -> Mapping[str, Tensor]:
    """A state dict under names in which the first of `before` is `after`; nothing is read."""
    if isinstance(state, Streamed):
        return state.renamed(before, after)
    return {name.replace(before, after, 1): tensor for name, tensor in state.items()}


def shape_of(state: Mapping[str, Tensor], name: str) -> Shape:
    """Of a tensor in a state dict; nothing is read."""
    return state.shape(name) if isinstance(state, Streamed) else tuple(state[name].shape)


def dtype_of(state: Mapping[str, Tensor], name: str) -> torch.dtype:
    """Of a tensor in a state dict; nothing is read."""
    return state.dtype(name) if isinstance(state, Streamed) else state[name].dtype


def rows_of(state: Mapping[str, Tensor], name: str, start: int, end: int) -> Tensor:
    """Of a tensor in a state dict those rows; of files no others are read."""
    return state.rows(name, start, end) if isinstance(state, Streamed) else state[name][start:end]
