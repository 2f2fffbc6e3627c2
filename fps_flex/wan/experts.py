"""Releases with two transformers, each for one side of a noise level: Wan2.2's A14B."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import as_path, is_real, show

LAYOUTS = (("transformer", "transformer_2"), ("high_noise_model", "low_noise_model"))  # diffusers', the official one
INDEX = "model_index.json"  # of a pipeline; says whether it has one transformer or two
BOUNDARY = 0.875  # of Wan2.2's text-to-video A14B, where no model_index.json says another
ALL = (0.0, 1.0)

Levels = tuple[float, float]


@dataclass(frozen=True)
class Experts:
    """high: folder of the transformer for noise levels from `boundary` up. low: of that for the levels below."""

    high: Path
    low: Path
    boundary: float

    def __str__(self) -> str:
        missing = ", ".join(str(folder) for folder in (self.high, self.low) if not folder.is_dir())
        lacks = f", and lacks {missing}" if missing else ""
        return (
            f"{self.high.parent} is a release of two transformers, {self.high} for high noise and {self.low} for low "
            f"noise{lacks}"
        )

    def levels(self, name: str) -> Levels:
        """The noise levels of the expert in a folder of that name."""
        return (self.boundary, 1.0) if name == self.high.name else (0.0, self.boundary)


def find_experts(folder: Path) -> Experts | None:
    """The two transformers of a release, there or missing; None for one transformer, and for what is no folder.

    Raises ValueError for what no file can be called, a model_index.json that is none, and a boundary outside 0 to 1.
    """
    folder = as_path("path", folder)
    index = _read_index(folder / INDEX) if (folder / INDEX).is_file() else {}
    boundary = index.get("boundary_ratio")
    if boundary is not None and not (is_real(boundary) and 0 < boundary < 1):
        raise ValueError(
            f"{folder / INDEX} says boundary_ratio = {show(boundary)}, expected more than 0 and less than 1"
        )
    names = _layout(folder, index)
    if names is None:
        return None
    high, low = names
    return Experts(folder / high, folder / low, BOUNDARY if boundary is None else float(boundary))


def as_levels(name: str, value: object) -> Levels:
    """The lowest and the highest of some noise levels. Raises ValueError for anything else."""
    pair = tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(pair) != 2 or not all(map(is_real, pair)) or not 0 <= pair[0] < pair[1] <= 1:
        raise ValueError(f"{name} is {show(value)}, expected the lowest and the highest noise level, from 0 to 1")
    lowest, highest = map(float, pair)
    return lowest, highest


def _layout(folder: Path, index: dict[str, Any]) -> tuple[str, str] | None:
    """Names of a release's two transformers, by its index or by what lies there; in `transformer` alone lies one."""
    diffusers, official = LAYOUTS
    indexed = index.get("transformer_2") not in (None, [None, None]) or index.get("boundary_ratio") is not None
    if indexed or (folder / diffusers[1]).is_dir():
        return diffusers
    return official if any((folder / name).is_dir() for name in official) else None


def levels_of(path: Path) -> Levels:
    """The noise levels that released weights are for: all, or an expert's side of its release's boundary.

    path: of the expert's folder, or a file in it. Raises as `find_experts`.
    """
    folder = (path if path.is_dir() else path.parent).resolve()
    if any(folder.name in names for names in LAYOUTS) and (experts := find_experts(folder.parent)):
        return experts.levels(folder.name)
    return ALL


def _read_index(file: Path) -> dict[str, Any]:
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        index = None
    if not isinstance(index, dict):
        raise ValueError(f"{file} is no index of a release: fetch it again")
    return index
