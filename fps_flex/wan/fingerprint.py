"""A digest that tells one set of weights from another, of a sample of every tensor's bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .recognise import Shape

DIGESTED = 64 << 20  # bytes read of one model's weights; of 28 GB a four-hundredth, in every tensor
BLOCKS = 16  # read of a tensor that is not read whole
TABLE_ROWS = 2**14  # of a matrix from which up it is a vocabulary's: no layer of Wan or umT5 has as many
OF_A_ROW = 32  # bytes of each of a vocabulary's rows

Span = tuple[int, int]  # first byte of a tensor, and how many


@dataclass(frozen=True)
class Held:
    """A tensor where it lies. dtype: as its file names it. read: gives the bytes of spans.

    read_rows: the first so many bytes of each of so many rows, of which all are as long.
    """

    dtype: str
    shape: Shape
    nbytes: int
    read: Callable[[Iterable[Span]], Iterator[bytes]]
    read_rows: Callable[[int, int], bytes]


def held_in_file(file: Path) -> dict[str, Held]:
    """Each tensor of a safetensors file, with its name, from its header."""
    with file.open("rb") as data:
        length = int.from_bytes(data.read(8), "little")
        header = json.loads(data.read(length))
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            read = partial(_read_file, file, 8 + length + start)
            read_rows = partial(_read_rows_of_file, file, 8 + length + start, end - start)
            tensors[name] = Held(entry["dtype"], tuple(entry["shape"]), end - start, read, read_rows)
    return tensors


def held_in_memory(tensor: Tensor) -> Held:
    """Also of a tensor that is mapped from a file, of which only what is asked for is read."""
    return held_when_read(tensor.dtype, tuple(tensor.shape), lambda: tensor)


def held_when_read(dtype: torch.dtype, shape: Shape, read: Callable[[], Tensor]) -> Held:
    """A tensor that is in memory only while it is looked at."""
    return Held(
        str(dtype),
        shape,
        prod(shape) * dtype.itemsize,
        lambda spans: _read_tensor(read(), spans),
        lambda rows, count: _read_rows_of_tensor(read(), rows, count),
    )


def digest_held(tensors: Mapping[str, Held]) -> str:
    """Of the names, dtypes, shapes and contents of all tensors, in whichever shards and order they lie.

    All bytes count up to DIGESTED; of more, in each tensor as large a share, in blocks spread evenly from its first
    byte to its last, and of a vocabulary's matrix the beginning of each row. So a copy in another precision, with any
    layer trained on, or with a token's vector put in another's place has another digest; one where single numbers
    differ may have the same.
    """
    digest = sha256()
    whole = sum(x.nbytes for x in tensors.values()) <= DIGESTED
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        for block in tensor.read(_spans(tensor, tensor.nbytes if whole else DIGESTED // len(tensors))):
            digest.update(block)
        if not whole and len(tensor.shape) == 2 and tensor.shape[0] >= TABLE_ROWS:
            digest.update(tensor.read_rows(tensor.shape[0], OF_A_ROW))
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


def _read_rows_of_file(file: Path, first: int, nbytes: int, rows: int, count: int) -> bytes:
    return np.memmap(file, np.uint8, "r", first, (rows, nbytes // rows))[:, :count].tobytes()


def _read_rows_of_tensor(tensor: Tensor, rows: int, count: int) -> bytes:
    data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return data.view(rows, -1)[:, :count].numpy().tobytes()


def _read_tensor(tensor: Tensor, spans: Iterable[Span]) -> Iterator[bytes]:
    data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    for start, count in spans:
        yield data[start : start + count].numpy().tobytes()
