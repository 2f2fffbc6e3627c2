"""A LoRA added to a transformer's weights, tensor by tensor as they are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..checks import as_instance, require, some
from .adapters import Adapter
from .files import Spec
from .fp8_files import FLOAT8
from .opened import Merged, Weights


def merge(weights: Weights, adapter: Adapter, strength: float = 1.0, path: str | Path = "the LoRA") -> Weights:
    """Weights of which each is read with what the adapter adds to it, times the strength.

    Sums are in fp32, and are rounded to a tensor's own dtype, or bf16 in place of float8; `unrounded` keeps them.
    path: of the adapter, for errors. Raises ValueError for an adapter of another model, and for a strength that is no
    finite number.
    """
    as_instance("weights", weights, Weights)
    require("strength", strength)
    changed = adapter.shapes()
    _check_shapes(path, changed, weights.specs)
    before = weights.unrounded
    exact = {name: Spec(x.shape, torch.float32) if name in changed else x for name, x in before.specs.items()}
    rounded = {name: _rounded(spec) if name in changed else spec for name, spec in weights.specs.items()}

    def read_exact(name: str) -> Tensor:
        tensor = before.read(name)
        return tensor.float().add(adapter.delta(name), alpha=strength) if name in changed else tensor

    def read(name: str) -> Tensor:
        return read_exact(name).to(rounded[name].dtype)

    merged = Merged(weights, str(path), adapter.fingerprint(), float(strength), exact, read_exact)
    return replace(weights, specs=rounded, read=read, merged=merged)


def _rounded(spec: Spec) -> Spec:
    return Spec(spec.shape, torch.bfloat16) if spec.dtype in FLOAT8 else spec


def _check_shapes(path: str | Path, changed: dict[str, tuple[int, ...]], specs: dict[str, Spec]) -> None:
    wrong = [
        f"it changes {name} of {shape}, the transformer {f'has {specs[name].shape}' if name in specs else 'has none'}"
        for name, shape in changed.items()
        if name not in specs or specs[name].shape != shape
    ]
    if wrong:
        raise ValueError(f"{path} is a LoRA of another model: {some(wrong, 1)}")
