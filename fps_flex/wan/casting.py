"""Weights in another dtype: which of them, and what is lost."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from .files import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator

# these compute in fp32 and are kept in it, whatever the rest is in
FP32 = ("modulation", "norm", "time_embedding", "time_projection")

DtypeName = Literal["fp32", "bf16", "fp16", "float8_e4m3fn"]
DTYPE_NAMES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "float8_e4m3fn": torch.float8_e4m3fn,
}

_BLOCK_MATRIX = re.compile(r"blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.[02])\.weight")
_CHUNK = 2**20  # values looked at at a time, so that no whole tensor is in memory once more


def keeps_fp32(name: str) -> bool:
    return any(part in name for part in FP32)


@dataclass
class Cast:
    """To a dtype by its name, or to none: then weights stay as they are.

    What is kept in fp32 gets fp32 in all cases. In float8 are the matrices of the blocks alone, as in ComfyUI's files;
    the rest is in bf16. worst: the largest error of rounding, and the tensor that has it. squares: of all errors, and
    of the weights that were rounded, summed.
    """

    dtype: DtypeName | None = None
    worst: tuple[float, str] = (0.0, "")
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def target(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """name: the official one."""
        if self.dtype is None:
            return dtype
        if keeps_fp32(name):
            return torch.float32
        if self.dtype == "float8_e4m3fn" and not _BLOCK_MATRIX.fullmatch(name):
            return torch.bfloat16
        return DTYPE_NAMES[self.dtype]

    def spec(self, name: str, spec: Spec) -> Spec:
        return Spec(spec.shape, self.target(name, spec.dtype))

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Raises ValueError for values that are not finite, and for those that the dtype can't hold."""
        target = self.target(name, tensor.dtype)
        largest = check_finite(name, tensor)
        if target == tensor.dtype:
            return tensor
        limit = torch.finfo(target).max
        if largest > limit:
            raise ValueError(f"{name} holds a value of {largest:g}, {target} goes to {limit:g}: choose another dtype")
        made = tensor.to(target)
        self._note(name, tensor, made)
        return made

    def _note(self, name: str, tensor: Tensor, made: Tensor) -> None:
        for part, rounded in zip(_chunks(tensor), _chunks(made), strict=True):
            before, after = part.float(), rounded.float()
            error = after - before
            self.worst = max(self.worst, (float(error.abs().max()), name))
            self.squares[0] += float(error.square().sum())
            self.squares[1] += float(before.square().sum())

    def describe(self) -> str:
        """What rounding cost, in a line; nothing where it cost nothing."""
        worst, name = self.worst
        if not worst:
            return ""
        share = (self.squares[0] / self.squares[1]) ** 0.5
        return f"rounding changed the weights by {100 * share:.2g} % of their norm, at most by {worst:.2g} ({name})"


def check_finite(name: str, tensor: Tensor) -> float:
    """The largest magnitude among a tensor's values. Raises ValueError where one is NaN or infinite."""
    parts = [_largest(part) for part in _chunks(tensor)]
    largest = float(torch.stack(parts).amax()) if parts else 0.0  # NaN where any is; Python's own max would drop it
    if not isfinite(largest):
        raise ValueError(f"{name} holds a value of {largest:g}, expected finite weights: fetch or save them again")
    return largest


def _largest(part: Tensor) -> Tensor:
    if part.itemsize == 1:  # float8, of which torch compares none: without their signs, bytes are in order, NaN last
        return (part.view(torch.uint8) & 127).amax().view(part.dtype).float()
    return torch.stack(part.aminmax()).abs().amax()


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    return (part for part in tensor.detach().reshape(-1).split(_CHUNK) if part.numel())
