"""LoRAs that are added to a checkpoint's weights for a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fps_flex.checks import at_home, require, show
from fps_flex.wan.adapters import read_adapter
from fps_flex.wan.merging import merge
from fps_flex.wan.weights import Weights

LISTS = ("--lora", "--low_noise_lora")  # options that are given once for each of their values


def add_loras(weights: Weights, loras: Sequence[str]) -> Weights:
    """loras: files, each with its strength after a colon where that isn't 1.

    Raises ValueError for a file that is no LoRA, or one of another model, and for a strength that is not finite.
    """
    for text in loras:
        path, strength = parse_lora(text)
        try:
            weights = merge(weights, read_adapter(path), strength, path)
        except ValueError as error:
            raise ValueError(f"lora {show(text)}: {error}") from None
    return weights


def parse_lora(text: str) -> tuple[str, float]:
    """The file and the strength: what follows the last colon, where that is a number. Raises ValueError as above."""
    path, colon, last = text.rpartition(":")
    try:
        strength = float(last)
    except ValueError:
        path, colon = text, ""
    if not (path if colon else text).strip():
        raise ValueError(f"lora is {text!r}, expected FILE or FILE:STRENGTH")
    if not colon:
        return str(at_home(text)), 1.0
    require(f"the strength in lora {show(text)}", strength)
    return str(at_home(path)), strength


def describe_loras(weights: Weights) -> list[dict[str, Any]]:
    """Of each LoRA in some weights, in the order in which they were added, its file, fingerprint and strength."""
    found: list[dict[str, Any]] = []
    while merged := weights.merged:
        found.insert(0, {"path": merged.path, "fingerprint": merged.fingerprint, "strength": merged.strength})
        weights = merged.base
    return found
