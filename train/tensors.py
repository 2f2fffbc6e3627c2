"""Safetensors of an encoder on disk: their headers, and a digest that tells one set of weights from another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from torch import nn

from fps_flex.checks import is_finite
from fps_flex.files import Shape, open_files

DIGESTED = 64 << 20  # bytes read of one encoder's weights; of umT5's 11 GB a hundredth, in every tensor
BLOCKS = 16  # read of a tensor that is not read whole
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Held:
    """A tensor in a file. dtype: as safetensors names it. start, end: of its bytes."""

    file: Path
    dtype: str
    shape: Shape
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


def read_held(folder: Path, stem: str) -> dict[str, Held]:
    """Each tensor of `stem`.safetensors, or of the shards that its index names, with its name.

    Raises ValueError where there is none or both, and as `open_files`.
    """
    found = [x for x in (folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json") if x.is_file()]
    if len(found) != 1:
        lies = ", ".join(sorted(x.name for x in (found or folder.iterdir()))[:5])
        raise ValueError(f"expected {stem}.safetensors or its index of shards in {folder}, found {lies}")
    held = {}
    for file in sorted(set(open_files(found[0]).where.values())):
        held |= _read_header(file)
    return held


def _read_header(file: Path) -> dict[str, Held]:
    with file.open("rb") as data:
        length = int.from_bytes(data.read(8), "little")
        header = json.loads(data.read(length))
    first = 8 + length
    return {
        name: Held(file, said["dtype"], tuple(said["shape"]), *(first + offset for offset in said["data_offsets"]))
        for name, said in header.items()
        if name != "__metadata__"
    }


def check_held(folder: Path, held: dict[str, Held], expected: dict[str, Shape], kind: str) -> None:
    """Raises ValueError unless these are exactly the tensors of such a model, in floating point."""
    scaled = [f"{name} is {x.dtype}" for name, x in held.items() if x.dtype not in FLOATS]
    if scaled:
        more = f" and {len(scaled) - 1} more" if len(scaled) > 1 else ""
        raise ValueError(f"{folder} is quantised ({scaled[0]}{more}): expected weights in BF16, F16 or F32")
    wrong = [
        *(f"missing {name}" for name in expected if name not in held),
        *(f"unknown {name}" for name in held if name not in expected),
        *(
            f"{name} of shape {held[name].shape}, expected {shape}"
            for name, shape in expected.items()
            if name in held and held[name].shape != shape
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ValueError(f"{folder} is no {kind} of its config.json: {'; '.join(wrong[:4])}{more}")


def digest_held(held: dict[str, Held]) -> str:
    """Of the names, dtypes, shapes and contents of all tensors, in whichever shards and order they lie.

    All bytes count up to DIGESTED; of more, in each tensor as large a share, in blocks spread evenly from its first
    byte to its last. So a copy in another precision, or with any layer trained on, has another digest.
    """
    digest = sha256()
    whole = sum(x.nbytes for x in held.values()) <= DIGESTED
    for name, tensor in sorted(held.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        with tensor.file.open("rb") as data:
            for start, count in _blocks(tensor, tensor.nbytes if whole else DIGESTED // len(held)):
                data.seek(start)
                digest.update(data.read(count))
    return digest.hexdigest()[:16]


def _blocks(tensor: Held, share: int) -> Iterator[tuple[int, int]]:
    """(first byte, bytes) of what counts of a tensor."""
    if tensor.nbytes <= share:
        yield tensor.start, tensor.nbytes
        return
    count = max(share // BLOCKS, 1)
    for i in range(BLOCKS):
        yield tensor.start + i * (tensor.nbytes - count) // (BLOCKS - 1), count


def check_finite(what: str, model: nn.Module) -> None:
    """Raises ValueError where a weight is NaN or infinite."""
    for name, tensor in model.named_parameters():
        if not is_finite(tensor):
            raise ValueError(f"{name} in {what} is not finite: fetch it again")
