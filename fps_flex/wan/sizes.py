"""The sizes of a transformer: by the shapes of its tensors, and what a config.json beside them says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checks import as_instance, as_whole, show, some
from .config import WanConfig
from .recognise import Shape

HEAD_DIM = 128  # of every Wan2.1, where no config.json says otherwise
CONFIG = "config.json"

_KINDS = {
    "_class_name": ("WanModel", "WanTransformer3DModel"),
    "model_type": ("t2v", "ti2v"),  # ti2v: Wan2.2's 5B, which text alone drives too
}


def infer_config(path: Path, shapes: Mapping[str, Shape], folder: Path) -> WanConfig:
    """Sizes from the shapes; heads and eps, which no shape shows, from config.json, or else as in every Wan2.1.

    shapes: by official names. Raises ValueError for tensors of no Wan, and for a config.json of another model.
    """
    try:
        entries = _read(folder / CONFIG)
        dim, channels, t, h, w = shapes["patch_embedding.weight"]
        config = WanConfig(
            dim=dim,
            ffn_dim=shapes["blocks.0.ffn.0.weight"][0],
            heads=_heads(entries, dim),
            layers=len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
            channels=channels,
            text_dim=shapes["text_embedding.0.weight"][1],
            freq_dim=shapes["time_embedding.0.weight"][1],
            patch=(t, h, w),
            eps=entries.get("eps", 1e-6),
        )
    except (OSError, KeyError, IndexError, ValueError, TypeError, RecursionError) as error:
        names = some(sorted(shapes))
        raise ValueError(f"{path} holds no Wan transformer ({error}): its tensors are {names}") from None
    _check_entries(folder / CONFIG, entries, config)
    return config


def _read(file: Path) -> dict[str, Any]:
    """What config.json says; nothing where there is none, and not what it leaves to a default with null."""
    entries = as_instance(CONFIG, json.loads(file.read_text("utf-8")), dict) if file.is_file() else {}
    return {name: value for name, value in entries.items() if value is not None}


def _heads(entries: Mapping[str, Any], dim: int) -> int:
    for name in ("num_heads", "num_attention_heads"):
        if name in entries:
            return as_whole(name, entries[name])
    return dim // as_whole("attention_head_dim", entries.get("attention_head_dim", HEAD_DIM))


def _check_entries(file: Path, entries: Mapping[str, Any], config: WanConfig) -> None:
    """Raises ValueError where config.json is of another model than the shapes: missing layers show in nothing else."""
    for name, kinds in _KINDS.items():
        if name in entries and entries[name] not in kinds:
            raise ValueError(f"{file} says {name} = {show(entries[name])}, expected {' or '.join(kinds)}")
    shown = {
        "num_layers": config.layers, "dim": config.dim, "attention_head_dim": config.head_dim,
        "num_heads": config.heads, "num_attention_heads": config.heads, "ffn_dim": config.ffn_dim,
        "in_dim": config.channels, "in_channels": config.channels, "out_dim": config.channels,
        "out_channels": config.channels, "text_dim": config.text_dim, "freq_dim": config.freq_dim,
        "patch_size": list(config.patch),
    }  # fmt: skip
    wrong = [name for name, size in shown.items() if entries.get(name, size) != size]
    if wrong:
        there = ", ".join(f"{name} = {show(entries[name])}" for name in wrong)
        here = ", ".join(str(shown[name]) for name in wrong)
        raise ValueError(f"{file} says {there}, the weights beside it show {here}: fetch both again")
