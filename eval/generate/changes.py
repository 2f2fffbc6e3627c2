"""What differs between a video's record and what would be recorded now: its weights, or a setting."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOTED = {"density", "versions", "machine", "seconds", "peak_gb", "sha256"}  # and not compared
OF_WEIGHTS = {"fingerprints", "trained_steps", "low_noise_trained_steps"}


@dataclass(frozen=True)
class Part:
    """Weights that a video depends on. path: where they lay. options: what else a configuration says of them."""

    path: str | None
    options: Any
    fingerprint: str | None


def find_other_weights(video: Path, made: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The paths that had other weights when a video was made than now.

    Weights that moved are the same. Raises ValueError for other weights of another path, and for any other setting that
    differs.
    """
    were, are = _parts(made), _parts(now)
    changed = [name for name in are if were[name].fingerprint != are[name].fingerprint]
    plain = [name for name in now if name not in {*NOTED, *OF_WEIGHTS, *are}]
    other = [name for name in plain if not says_the_same(made[name], now[name])]
    other += [name for name in are if not says_the_same(were[name].options, are[name].options)]
    other += [name for name in changed if were[name].path != are[name].path and name not in other]
    if other:
        was = ", ".join(f"{name} {made[name]} (now {now[name]})" for name in other)
        raise ValueError(f"{video} was made with {was}: choose another --out")
    return list(dict.fromkeys(are[name].path or name for name in changed))


def _parts(record: dict[str, Any]) -> dict[str, Part]:
    """By the name of the setting that says where they lie."""
    digests = record["fingerprints"] if isinstance(record["fingerprints"], dict) else {}
    parts = {
        "checkpoint": Part(record["checkpoint"], None, digests.get("transformer")),
        "low_noise": Part(record["low_noise"], None, digests.get("low_noise")),
    }
    for name in ("codec", "text"):
        options = _flatten(record[name])
        parts[name] = Part(options.pop("path", None), options, digests.get(name))
    return parts


def _flatten(spec: Any) -> dict[str, Any]:
    """An encoder's kind and options; of a record that was written over, whatever it says."""
    if not (isinstance(spec, dict) and isinstance(spec.get("options"), dict)):
        return {"spec": spec}
    return {"kind": spec.get("kind"), **spec["options"]}


def says_the_same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: to Python 1, 1.0 and true are equal, but as settings they differ."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
