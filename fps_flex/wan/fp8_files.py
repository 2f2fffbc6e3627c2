"""ComfyUI's scaled fp8: matrices in float8 beside their scales, as one weight each.

`<layer>.weight` is in float8, and `<layer>.scale_weight`, or newer `<layer>.weight_scale`, is what it is times: one
number, or one per output row or block. What scales activations, and the markers of the format, are no weights.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .files import Shape, Spec, TensorFiles
from .keys import is_scaled

logger = logging.getLogger(__name__)

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
READABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16, *FLOAT8)

_OF_WEIGHTS = (".scale_weight", ".weight_scale")
_OF_ACTIVATIONS = (".scale_input", ".input_scale")
_FORMAT = ".comfy_quant"
_KNOWN = {"format", "full_precision_matrix_mult", "orig_dtype", "orig_shape"}  # what such a marker may say


@dataclass(frozen=True)
class UnscaledFiles:
    """The weights in files whose scales are undone as they are read. names: in the files, by those without wrappers.

    scales: the names of a weight's scale, for those that have one.
    """

    path: Path
    files: TensorFiles
    names: Mapping[str, str]
    scales: Mapping[str, str]

    @property
    def specs(self) -> dict[str, Spec]:
        """Of a weight with a scale, in fp32."""
        specs = {name: self.files.specs[where] for name, where in self.names.items()}
        return {name: Spec(x.shape, torch.float32) if name in self.scales else x for name, x in specs.items()}

    def read(self, name: str) -> Tensor:
        """Raises ValueError for scales that are no positive numbers."""
        tensor = self.files.read(self.names[name])
        if name not in self.scales:
            return tensor
        scale = self.files.read(self.scales[name]).float()
        if not (scale.isfinite() & (scale > 0)).all():
            raise ValueError(f"{self.path}: {self.scales[name]} is not finite and above 0, as scales are")
        return tensor.float().mul_(_spread(scale, tuple(tensor.shape)))


def without_scales(path: Path, files: TensorFiles, names: Mapping[str, str]) -> UnscaledFiles:
    """names: in the files, by those without wrappers.

    Raises ValueError for tensors of whole numbers, for a format that is not known or not the weight's, for scales
    without a float8 weight or of a shape that doesn't fit it, and for a weight whose scale is missing.
    """
    weights = {name: where for name, where in names.items() if not name.endswith((*_OF_ACTIVATIONS, _FORMAT))}
    scales: dict[str, str] = {}
    for name in [name for name in weights if name.endswith(_OF_WEIGHTS)]:
        scale, weight = weights.pop(name), f"{name.rpartition('.')[0]}.weight"
        if weight in scales:
            raise ValueError(f"{path} holds {scales[weight]} and {scale}: expected one scale for {weight}")
        _check_scale(path, scale, files.specs[scale], files.specs.get(names.get(weight, "")))
        scales[weight] = scale
    _check_all_scaled(path, files, names, scales)
    for where in weights.values():
        if (dtype := files.specs[where].dtype) not in READABLE:
            raise ValueError(f"{path}: {where} is of {dtype}, expected floating-point weights, not quantised ones")
    if scales:
        logger.info("%d weights of %s are read as float8 times their scales, in float32", len(scales), path)
    return UnscaledFiles(path, files, weights, scales)


def _check_scale(path: Path, name: str, scale: Spec, weight: Spec | None) -> None:
    if weight is None or weight.dtype not in FLOAT8:
        beside = f"a weight of {weight.dtype}" if weight else "no weight"
        raise ValueError(f"{path}: {name} is beside {beside}, expected one of float8")
    if scale.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"{path}: {name} is of {scale.dtype}, expected float32, bfloat16 or float16")
    if not _fits(scale.shape, weight.shape):
        raise ValueError(
            f"{path}: {name} is of shape {scale.shape} for a weight of {weight.shape}, expected one scale, or one per "
            "output row or block"
        )


def _check_all_scaled(path: Path, files: TensorFiles, names: Mapping[str, str], scales: Mapping[str, str]) -> None:
    """Raises ValueError for a float8 weight without its scale in a file that holds or announces scales."""
    marked = {f"{name.removesuffix(_FORMAT)}.weight": name for name in names if name.endswith(_FORMAT)}
    for weight, marker in marked.items():
        dtype = files.specs[names[weight]].dtype if weight in names else None
        _check_format(path, names[marker], files.read(names[marker]), dtype)
        if weight not in scales:
            raise ValueError(f"{path}: {names[marker]} is beside {weight} without its scale: fetch or save it again")
    if not (marked or is_scaled(files.where) or any(name.endswith((*_OF_WEIGHTS, *_OF_ACTIVATIONS)) for name in names)):
        return
    for weight, where in names.items():
        if weight.endswith(".weight") and files.specs[where].dtype in FLOAT8 and weight not in scales:
            raise ValueError(f"{path}: {where} lacks its scale in a file of scaled float8: fetch or save it again")


def _check_format(path: Path, name: str, marker: Tensor, dtype: torch.dtype | None) -> None:
    """dtype: of the weight that it is about."""
    try:
        record = json.loads(bytes(marker.flatten().tolist()))
        known = record["format"] in ("float8_e4m3fn", "float8_e5m2") and record.keys() <= _KNOWN
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        known, record = False, "nothing readable"
    if not known:
        raise ValueError(f"{path}: {name} says {json.dumps(record)[:100]}, expected the format float8_e4m3fn or _e5m2")
    if dtype != getattr(torch, record["format"]):
        beside = f"a weight of {dtype}" if dtype else "no weight"
        raise ValueError(f"{path}: {name} says {record['format']} and is beside {beside}: fetch or save it again")


def _aligned(scale: Shape, weight: Shape) -> Shape:
    """How many scales there are along each dimension of the weight: one for all, one per row, or as they are."""
    if all(size == 1 for size in scale):
        return (1,) * len(weight)
    return scale + (1,) * (len(weight) - 1) if len(scale) == 1 else scale


def _fits(scale: Shape, weight: Shape) -> bool:
    """Whether each scale is for a block of the weight, all of one size."""
    scale = _aligned(scale, weight)
    return len(scale) == len(weight) and all(s and not w % s for s, w in zip(scale, weight, strict=True))


def _spread(scale: Tensor, weight: Shape) -> Tensor:
    """As it multiplies a weight of such a shape, with size 1 where broadcasting does it."""
    scale = scale.reshape(_aligned(tuple(scale.shape), weight))
    for dim, (count, size) in enumerate(zip(scale.shape, weight, strict=True)):
        if 1 < count < size:
            scale = scale.repeat_interleave(size // count, dim)
    return scale
