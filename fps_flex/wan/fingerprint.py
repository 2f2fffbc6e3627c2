"""A digest that tells one set of weights from another, of a sample of every tensor's bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from .recognise import Shape

DIGESTED = 64 << 20  # bytes read of one model's weights; of 28 GB a four-hundredth, in every tensor
BLOCKS = 16  # read of a tensor that is not read whole

Span = tuple[int, int]  # first byte of a tensor, and how many


@dataclass(frozen=True)
class Held:
    """A tensor where it lies. dtype: as its file names it. read: gives the bytes of spans."""

    dtype: str
    shape: Shape
    nbytes: int
    read: Callable[[Iterable[Span]], Iterator[bytes]]


def held_in_file(file: Path) -> dict[str, Held]:
    """Each tensor of a safetensors file, with its name, from its header."""
    with file.open("rb") as data:
        length = int.from_bytes(data.read(8), "little")
        header = json.loads(data.read(length))
    held = {}
    for name, said in header.items():
        if name != "__metadata__":
            start, end = said["data_offsets"]
            read = partial(_read_file, file, 8 + length + start)
            held[name] = Held(said["dtype"], tuple(said["shape"]), end - start, read)
    return held


def held_in_memory(tensor: Tensor) -> Held:
    """Also of a tensor that is mapped from a file, of which only what is asked for is read."""
    return Held(str(tensor.dtype), tuple(tensor.shape), tensor.nbytes, partial(_read_tensor, tensor))


def digest_held(held: Mapping[str, Held]) -> str:
    """Of the names, dtypes, shapes and contents of all tensors, in whichever shards and order they lie.

    All bytes count up to DIGESTED; of more, in each tensor as large a share, in blocks spread evenly from its first
    byte to its last. So a copy in another precision, or with any layer trained on, has another digest.
    """
    digest = sha256()
    whole = sum(x.nbytes for x in held.values()) <= DIGESTED
    for name, tensor in sorted(held.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        for block in tensor.read(_spans(tensor, tensor.nbytes if whole else DIGESTED // len(held))):
            digest.update(block)
    return digest.hexdigest()[:16]


def _spans(tensor: Held, share: int) -> Iterator[Span]:
    """What counts of a tensor."""
    if tensor.nbytes <= share:
        yield 0, tensor.nbytes
        return
    count = max(share // BLOCKS, 1)
    for i in range(BLOCKS):
        yield i * (tensor.nbytes - count) // (BLOCKS - 1), count


def _read_file(file: Path, first: int, spans: Iterable[Span]) -> Iterator[bytes]:
    """first: byte of the tensor in the file."""
    with file.open("rb") as data:
        for start, count in spans:
            data.seek(first + start)
            yield data.read(count)


def _read_tensor(tensor: Tensor, spans: Iterable[Span]) -> Iterator[bytes]:
    data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    for start, count in spans:
        yield data[start : start + count].numpy().tobytes()
