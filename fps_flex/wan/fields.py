"""What a checkpoint of train.fit holds for its readers, and of what type each part is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from math import isnan
from typing import Any

import torch
from torch import Tensor

from ..checks import as_bool, as_fields, as_real, as_tuple, as_whole, one_of, show
from .config import WanConfig
from .experts import as_levels
from .streamed import Streamed

NEEDED = ("wan", "attention", "noise_levels")
FRAMES, SIDE, RATE = 100_000, 65_536, 1000  # more frames, pixels per side and frames a second no clip here has


def check_checkpoint(loaded: object) -> None:
    """Raises ValueError for what lacks the model's weights, sizes, attention or noise levels, for weights that are no
    plain tensors under names of their own, and for any field of another type.

    Which of the other fields are there is for their readers to ask, `current_model_state` among them: of a run without
    averaged weights it isn't.
    """
    if not isinstance(loaded, dict) or not {"state_dict", "fps_flex"} <= set(loaded):
        raise ValueError("it lacks state_dict or fps_flex")
    for name in ("state_dict", "current_model_state"):
        _check_state(f"its {name}", loaded.get(name, {}))
    record = loaded["fps_flex"]
    lacking = [name for name in NEEDED if not isinstance(record, dict) or name not in record]
    if lacking:
        raise ValueError(f"it lacks {' and '.join(f'fps_flex.{name}' for name in lacking)}")
    _check_fields(record)


def _check_state(name: str, state: object) -> None:
    tensors = {} if isinstance(state, Streamed) else state  # whose tensors are plain, and not read yet
    if not isinstance(tensors, dict) or not all(isinstance(x, Tensor) for x in tensors.values()):
        raise ValueError(f"{name} is no dict of tensors")
    assert isinstance(state, (dict, Streamed))
    if not all(isinstance(key, str) and key.isprintable() for key in state):
        raise ValueError(f"{name} has a key that is no name")
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(f"{name} holds {key} without its values, or sparse: expected plain tensors")
    for key in state:
        if (twin := key.removeprefix("model.")) != key and twin in state:
            raise ValueError(f"{name} holds {key} and {twin}, which are both {twin}: save one model in a file")


def _check_fields(record: dict[str, Any]) -> None:
    for name in ("wan", "attention"):
        if not isinstance(record[name], dict):
            raise ValueError(f"its fps_flex.{name} is a {type(record[name]).__name__}, expected a dict")
    as_fields("its fps_flex.wan", record["wan"], [field.name for field in fields(WanConfig)])
    check_record("its fps_flex", record)


def check_record(where: str, record: dict[str, Any]) -> None:
    """where: what the fields are of, for the errors. Raises ValueError for one of another type."""
    for name, check in _CHECKS.items():
        if name in record:
            check(f"{where}.{name}", record[name])


def _check_step(name: str, value: object) -> None:
    as_whole(name, value, least=0)


def _check_run_id(name: str, value: object) -> None:
    if not (isinstance(value, str) and re.fullmatch("[0-9a-f]{16}", value)):
        raise ValueError(f"{name} is {show(value)}, expected 16 digits and letters from a to f")


def _check_shift(name: str, value: object) -> None:
    if as_real(name, value) <= 0:
        raise ValueError(f"{name} is {show(value)}, expected a number above 0")


def _check_residual(name: str, value: object) -> None:
    one_of(name, value, ("compute", "fp32"))


def _check_score(name: str, value: object) -> None:
    """Infinite where nothing was validated yet."""
    if not isinstance(value, float) or isnan(value):
        raise ValueError(f"{name} is {show(value)}, expected a loss")


def _check_coder(name: str, value: object) -> None:
    optional = [x for x in ("fingerprint",) if isinstance(value, dict) and x in value]
    parts = as_fields(name, value, ("kind", "options", *optional))
    for field in optional:
        if not isinstance(parts[field], str):
            raise ValueError(f"{name}.{field} is {show(parts[field])}, expected text")
    if not isinstance(parts["kind"], str):
        raise ValueError(f"{name}.kind is {show(parts['kind'])}, expected the name of a codec or text encoder")
    _check_options(f"{name}.options", parts["options"])


def _check_clip(name: str, value: object) -> None:
    parts = as_fields(name, value, ("frames", "height", "width", "fps"))
    for part, most in (("frames", FRAMES), ("height", SIDE), ("width", SIDE)):
        if as_whole(f"{name}.{part}", parts[part]) > most:
            raise ValueError(f"{name}.{part} is {parts[part]}, expected at most {most}")
    if not 0 < as_real(f"{name}.fps", parts["fps"]) <= RATE:
        raise ValueError(f"{name}.fps is {parts['fps']}, expected a number above 0 and up to {RATE}")


def _check_lora(name: str, value: object) -> None:
    parts = as_fields(name, value, ("rank", "alpha", "targets"))
    as_whole(f"{name}.rank", parts["rank"])
    if as_real(f"{name}.alpha", parts["alpha"]) <= 0:
        raise ValueError(f"{name}.alpha is {parts['alpha']}, expected a number above 0")
    targets = as_tuple(f"{name}.targets", parts["targets"], "a list of layers' names")
    if not targets or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"{name}.targets is {show(targets)}, expected layers' names")


def _check_base(name: str, value: object) -> None:
    parts = as_fields(name, value, ("path", "fingerprint", "dtype"))
    for part, text in parts.items():
        if not (isinstance(text, str) and text.isprintable()):
            raise ValueError(f"{name}.{part} is {show(text)}, expected a text")


def _check_options(name: str, value: object) -> None:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} is {show(value)}, expected a dict of names")


def _check_position(name: str, value: object) -> None:
    parts = as_fields(name, value, ("step", "taken", "validated"))
    as_whole(f"{name}.step", parts["step"], least=0)
    as_bool(f"{name}.validated", parts["validated"])
    taken = as_tuple(f"{name}.taken", parts["taken"], "a list of how many clips were taken")
    for count in taken:
        as_whole(f"{name}.taken", count, least=0)
    if not taken:
        raise ValueError(f"{name}.taken is empty, expected how many clips were taken")


_CHECKS: dict[str, Callable[[str, object], object]] = {
    "run_id": _check_run_id,
    "step": _check_step,
    "text_length": as_whole,
    "shift": _check_shift,
    "residual": _check_residual,
    "val_loss": _check_score,
    "codec": _check_coder,
    "text": _check_coder,
    "clip": _check_clip,
    "noise_levels": as_levels,
    "lora": _check_lora,
    "base": _check_base,
    "options": _check_options,
    "position": _check_position,
}
