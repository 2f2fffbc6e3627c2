"""Regimes by layer: layers of a model that follow another schedule than the rest, such as the first and the last."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .checks import is_whole, show
from .schedule import PRESETS, Regime, StepSchedule, preset

Layers = tuple[tuple[str, StepSchedule], ...]  # "3" or "0-1", from 0 and inclusive, and what these layers follow

EXPECTED = "a mapping such as {'0-1': 'dense', '29': Regime(...)}"


def as_schedule(schedule: object) -> StepSchedule:
    """A StepSchedule itself, or a preset's numbers. Raises ValueError for anything else."""
    if isinstance(schedule, StepSchedule):
        return schedule
    if not isinstance(schedule, str):
        raise ValueError(f"schedule is {show(schedule)}, expected a StepSchedule or one of {', '.join(PRESETS)}")
    return preset(schedule)


def schedule_from(data: object) -> str | StepSchedule:
    """The inverse of `dataclasses.asdict`; a preset's name stays one. Raises ValueError for anything else."""
    return data if isinstance(data, str) else StepSchedule.from_dict(data)


def names_of(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def as_layers(layers: object) -> Layers:
    """Layers and their schedules, in the order of the layers.

    layers: ranges (3, "3" or "0-1", from 0 and inclusive) -> a preset's name, a Regime or a StepSchedule, the last two
    also as a dict of their fields; a mapping, or its pairs; None is none.
    Raises ValueError for anything else, and for a layer that is named twice.
    """
    pairs = list(layers.items()) if isinstance(layers, Mapping) else [] if layers is None else layers
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(x, (list, tuple)) and len(x) == 2 for x in pairs):
        raise ValueError(f"layers is {show(layers)}, expected {EXPECTED}")
    each = [(_as_range(name), _as_layer_schedule(name, value)) for name, value in pairs]
    ranges = sorted(each, key=lambda pair: pair[0])
    for (one, _), (other, _) in zip(ranges[:-1], ranges[1:], strict=True):
        if other[0] <= one[1]:
            raise ValueError(f"layers names {_name(one)} and {_name(other)}, which overlap: name each layer once")
    return tuple((_name(layers), schedule) for layers, schedule in ranges)


def range_of(name: str) -> range:
    """The layers of a name that `as_layers` made."""
    first, last = _as_range(name)
    return range(first, last + 1)


def check_layers(layers: Layers, count: int) -> None:
    """Raises ValueError where a model of so many layers has not all that are named."""
    missing = [name for name, _ in layers if range_of(name).stop > count]
    if missing:
        raise ValueError(
            f"layers names {', '.join(missing)}, and the model has {count} layers: expected some of 0 to {count - 1}"
        )


def _as_range(name: object) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", str(name)) if isinstance(name, str) or is_whole(name) else None
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if first > last:
        raise ValueError(
            f"layers names {show(name)}, expected a layer from 0 up, or the first and the last of a range: 3, or 0-1"
        )
    return first, last


def _name(layers: tuple[int, int]) -> str:
    first, last = layers
    return str(first) if first == last else f"{first}-{last}"


def _as_layer_schedule(name: object, value: Any) -> StepSchedule:
    try:
        if isinstance(value, Mapping) and value.keys() <= {*names_of(Regime)}:
            value = Regime(**value)
        elif isinstance(value, Mapping):
            value = schedule_from(dict(value))
        if isinstance(value, Regime):
            return StepSchedule(bounds=(), regimes=(value,))
        return as_schedule(value)
    except ValueError as error:
        raise ValueError(f"layers {name}: {error}") from None
