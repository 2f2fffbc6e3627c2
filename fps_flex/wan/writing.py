"""Files for stock tools: JSON, and safetensors written tensor by tensor, of which at most one is in memory.

A tensor file is the length of its header in 8 bytes, the header as JSON, and the tensors' bytes one after the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import DTYPES, Spec

STEM = "diffusion_pytorch_model"  # of the files of the official and of the diffusers release alike

_CODES = {dtype: code for code, dtype in DTYPES.items()}

Read = Callable[[str], Tensor]


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_shards(folder: Path, specs: Mapping[str, Spec], read: Read, shard_bytes: int | None) -> None:
    """Save tensors into a folder that exists, in shards of up to `shard_bytes` with an index, or in one file.

    specs: of the tensors to write. read: gives a tensor by its name. Raises OSError where there is no room.
    """
    shards = list(_split(specs, shard_bytes))
    if len(shards) == 1:
        write_file(folder / f"{STEM}.safetensors", specs, read)
        return
    files = [f"{STEM}-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        write_file(folder / file, shard, read)
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": sum(x.nbytes for x in specs.values())}, "weight_map": weight_map}
    write_json(folder / f"{STEM}.safetensors.index.json", index)


def write_file(file: Path, specs: Mapping[str, Spec], read: Read, metadata: Mapping[str, str] | None = None) -> None:
    """Save tensors into one file. metadata: for its header. Other arguments, and errors, as of `write_shards`."""
    # wide dtypes first, as safetensors' own writer has them: each tensor then lies at a multiple of its item size
    names = sorted(specs, key=lambda name: -specs[name].dtype.itemsize)
    with file.open("wb") as opened:
        opened.write(_header({name: specs[name] for name in names}, metadata or {}))
        for name in names:
            tensor = read(name)
            if Spec(tuple(tensor.shape), tensor.dtype) != specs[name]:
                raise ValueError(f"{name} is of {tuple(tensor.shape)} and {tensor.dtype}, expected {specs[name]}")
            opened.write(_bytes(tensor))
        opened.flush()
        os.fsync(opened.fileno())


def _split(specs: Mapping[str, Spec], shard_bytes: int | None) -> Iterator[dict[str, Spec]]:
    """Tensors in their order, each file's up to so many bytes, or one tensor that is larger."""
    shard: dict[str, Spec] = {}
    size = 0
    for name, spec in specs.items():
        if shard and shard_bytes is not None and size + spec.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = spec
        size += spec.nbytes
    yield shard


def _header(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    begin = 0
    for name, spec in specs.items():
        end = begin + spec.nbytes
        entries[name] = {"dtype": _CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
