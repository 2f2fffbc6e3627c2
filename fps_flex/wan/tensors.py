"""Safetensors of an encoder on disk: which tensors they hold, and whether these are a model's."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..checks import is_finite, some
from .files import Shape, open_files
from .fingerprint import Held, held_in_file

FLOATS = ("F64", "F32", "F16", "BF16")


def read_held(folder: Path, stem: str) -> dict[str, Held]:
    """Each tensor of `stem`.safetensors, or of the shards that its index names, with its name.

    Raises ValueError where there is none or both, and as `open_files`.
    """
    present = [x for x in (folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json") if x.is_file()]
    if len(present) != 1:
        lies = some(sorted(x.name for x in (present or folder.iterdir())), 5)
        raise ValueError(f"expected {stem}.safetensors or its index of shards in {folder}, found {lies}")
    tensors: dict[str, Held] = {}
    for file in sorted(set(open_files(present[0]).where.values())):
        tensors |= held_in_file(file)
    return tensors


def check_held(folder: Path, tensors: dict[str, Held], expected: dict[str, Shape], kind: str) -> None:
    """Raises ValueError unless these are exactly the tensors of such a model, in floating point."""
    scaled = [f"{name} is {x.dtype}" for name, x in tensors.items() if x.dtype not in FLOATS]
    if scaled:
        raise ValueError(f"{folder} is quantised ({some(scaled, 1)}): expected weights in BF16, F16 or F32")
    wrong = [
        *(f"missing {name}" for name in expected if name not in tensors),
        *(f"unknown {name}" for name in tensors if name not in expected),
        *(
            f"{name} of shape {tensors[name].shape}, expected {shape}"
            for name, shape in expected.items()
            if name in tensors and tensors[name].shape != shape
        ),
    ]
    if wrong:
        raise ValueError(f"{folder} is no {kind} of its config.json: {some(wrong, 4, '; ')}")


def check_finite(what: str, model: nn.Module) -> None:
    """Raises ValueError where a weight is NaN or infinite."""
    for name, tensor in model.named_parameters():
        if not is_finite(tensor):
            raise ValueError(f"{name} in {what} is not finite: fetch it again")
