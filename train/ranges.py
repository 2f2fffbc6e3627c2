"""What an option may be, said in one line where it is something else."""

from __future__ import annotations

from math import isfinite


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
        wanted = " and ".join(f"{words} {bound:g}" for bound, words in bounds if bound is not None)
        kind = "" if finite and wanted else "a finite number" if number else "a number"
        raise ValueError(f"{option} is {value!r}, expected {', '.join(filter(None, (kind, wanted)))}")
