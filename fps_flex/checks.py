"""What a caller hands in, as what it has to be: each returns the value in its plain type, or raises ValueError.

Python takes True for 1, 1 for 1.0 and "no" for true; nothing here does. Numpy's integers and floats become Python's.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor

Triple = tuple[int, int, int]
Kind = TypeVar("Kind")


def some(things: Sequence[str], most: int = 3, between: str = ", ") -> str:
    """The first of many, and how many more there are."""
    more = len(things) - most
    return between.join(things[:most]) + (f" and {more} more" if more > 0 else "")


def show(value: object) -> str:
    """A value as an error says it: on one line, and cut where it is long."""
    line = " ".join(repr(value).split())
    return line if len(line) <= 100 else f"{line[:97]}..."


def is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number, whole or not."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


def is_finite(*tensors: Tensor) -> bool:
    """Whether all values are. By the extremes, which NaN takes over: faster than looking at each value."""
    return all(bool(torch.stack(x.detach().aminmax()).isfinite().all()) for x in tensors if x.numel())


def as_whole(name: str, value: object, least: int = 1) -> int:
    if not is_whole(value) or value < least:
        raise ValueError(f"{name} is {show(value)}, expected a whole number of at least {least}")
    return int(value)


def as_real(name: str, value: object) -> float:
    if not is_real(value):
        raise ValueError(f"{name} is {show(value)}, expected a number")
    return float(value)


def as_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {show(value)}, expected True or False")
    return value


def as_tuple(name: str, value: object, expected: str) -> tuple[Any, ...]:
    """A list or tuple. expected: what it should hold, for the error."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name} is {show(value)}, expected {expected}")
    return tuple(value)


def as_triple(name: str, value: object) -> Triple:
    """Sizes on (T, H, W)."""
    expected = "three sizes (T, H, W) of at least 1, whole numbers"
    sizes = as_tuple(name, value, expected)
    if len(sizes) != 3 or not all(is_whole(size) and size >= 1 for size in sizes):
        raise ValueError(f"{name} is {show(sizes)}, expected {expected}")
    t, h, w = map(int, sizes)
    return t, h, w


def one_of(name: str, value: object, known: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is {show(value)}, expected one of {', '.join(known)}")
    return str(value)


def as_instance(name: str, value: object, kind: type[Kind]) -> Kind:
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {show(value)}, expected a {kind.__name__}")
    return value


def as_device(name: str, value: Any) -> torch.device:
    """One that is there."""
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"{name} is {show(value)}, expected a device as torch names it (cpu, cuda, ...)") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{name} is {show(value)}, and PyTorch finds {torch.cuda.device_count()} GPUs here")
    return device


def as_path(name: str, value: Any) -> Path:
    """A path that a file could have, whether there is one or not; ~ is the home folder."""
    try:
        path = Path(value).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name} is {show(value)}, expected a path that can be read ({reason})") from None
    return path


def at_home(path: str | Path) -> Path:
    """A path whose ~ is the user's home, or another user's; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def as_fields(name: str, value: object, fields: Sequence[str]) -> dict[str, Any]:
    """A dict with exactly these keys."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {show(value)}, expected a dict of {', '.join(fields)}")
    missing, unknown = [x for x in fields if x not in value], [x for x in value if x not in fields]
    if missing or unknown:
        lacks = f"lacks {', '.join(missing)}" if missing else ""
        has = f"has an unknown {', '.join(map(show, unknown))}" if unknown else ""
        raise ValueError(f"{name} {' and '.join(filter(None, (lacks, has)))}: expected exactly {', '.join(fields)}")
    return value


def require(
    option: str,
    value: float,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Raises ValueError unless the value is a finite number within the bounds, of which None is none."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    finite = number and isfinite(value)
    inside = finite and (
        (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )
    if not inside:
        bounds = ((least, "at least"), (above, "more than"), (most, "at most"), (below, "less than"))
        wanted = " and ".join(f"{words} {_plain(bound)}" for bound, words in bounds if bound is not None)
        kind = "" if finite and wanted else "a finite number" if number else "a number"
        raise ValueError(f"{option} is {value!r}, expected {', '.join(filter(None, (kind, wanted)))}")


def _plain(bound: float) -> str:
    """A bound without rounding where it is whole: 4611686018427387904, not 4.61169e+18."""
    return str(int(bound)) if float(bound).is_integer() else f"{bound:g}"
