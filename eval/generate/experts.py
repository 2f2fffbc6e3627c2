"""The transformer of a checkpoint, or the two of a release that has one for each side of a noise level."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from fps_flex.checks import require
from fps_flex.wan.adapters import holds_adapter
from fps_flex.wan.experts import ALL, BOUNDARY, find_experts
from fps_flex.wan.weights import Weights, Which, open_weights
from train.index import comparable

NAME_BOTH = "name the high-noise one with --checkpoint and the low-noise one with --low_noise"


@dataclass(frozen=True)
class LowExpert:
    """The transformer that takes over below a noise level. path: it was opened from."""

    path: str
    weights: Weights
    boundary: float


def open_experts(
    checkpoint: str, which: Which, low_noise: str | None, boundary: float | None, base: str | None = None
) -> tuple[Weights, LowExpert | None]:
    """The weights of a checkpoint that does without another, or of the high-noise expert, with the low-noise one.

    checkpoint: a release of two has both; else a transformer, or the high-noise one beside `low_noise`. low_noise: the
    low-noise expert, or a release that has one. boundary: None takes what the experts were made for.
    Raises ValueError where one is missing, and where they are not of one release's kind.
    """
    high, own_low = _pick(checkpoint, high=True), _pick(checkpoint, high=False)
    low = _pick(low_noise, high=False) or low_noise if low_noise else own_low
    opened = [path for path in (high or checkpoint, low) if path]
    if base and not any(is_trained_lora(path) for path in opened):
        raise ValueError(f"base is {base}, of a LoRA's .ckpt, and {' and '.join(opened)} is none: leave it out")
    if which == "live" and not any(path.endswith(".ckpt") for path in opened):
        raise ValueError(f"weights is live, of a .ckpt of train.fit, and {' and '.join(opened)} is none: leave it out")
    first = _open(high or checkpoint, which, base, high=True)
    levels = first.noise_levels
    if levels[1] < 1:
        raise ValueError(f"{checkpoint} is the low-noise one of two experts: {NAME_BOTH}")
    if low is None:
        if levels != ALL:
            raise ValueError(f"{checkpoint} is one of two experts, for noise levels from {levels[0]:g} up: {NAME_BOTH}")
        if boundary is not None:
            raise ValueError(f"a boundary of {boundary:g} is between two experts, {checkpoint} is one: {NAME_BOTH}")
        return first, None
    second = _open(low, which, base, high=False)
    if (below := second.noise_levels)[0] > 0:
        raise ValueError(f"{low} is the high-noise one of two experts: {NAME_BOTH}")
    _check_same(high or checkpoint, first, low, second)
    return first, LowExpert(low, second, _boundary(boundary, {levels[0], below[1]} - set(ALL)))


def is_trained_lora(path: str) -> bool:
    """Whether it is a .ckpt of train.fit that trained a LoRA. Raises ValueError for a .ckpt of anything else."""
    return path.endswith(".ckpt") and holds_adapter(path)


def _open(path: str, which: Which, base: str | None, high: bool) -> Weights:
    base = base if is_trained_lora(path) else None
    which = "average" if which == "live" and not path.endswith(".ckpt") else which
    return open_weights(path, which, base and (_pick(base, high) or base))


def _pick(path: str, high: bool) -> str | None:
    """An expert of a release of two; None where it isn't such. Raises ValueError where one is missing."""
    experts = find_experts(Path(path))
    if experts is None:
        return None
    picked = experts.high if high else experts.low
    if not picked.is_dir():
        raise ValueError(f"{experts}: fetch it")
    return str(picked)


def _check_same(high: str, first: Weights, low: str, second: Weights) -> None:
    """Raises ValueError for transformers of different sizes, or trained with different encoders."""
    sizes, others = asdict(first.config), asdict(second.config)
    other = [f"{name} {value} and {others[name]}" for name, value in sizes.items() if value != others[name]]
    if first.trained and second.trained:
        both = (first.trained, second.trained)
        encoders = ([comparable(settings.get(name) or {}) for settings in both] for name in ("codec", "text"))
        other += [f"{one} and {two}" for one, two in encoders if one != two]
    if other:
        raise ValueError(f"{high} and {low} are no two experts of one model: they have {', '.join(other)}")


def _boundary(given: float | None, made_for: set[float]) -> float:
    """Raises ValueError where none is given and the experts were made for different ones."""
    if given is None and len(made_for) > 1:
        edges = " and ".join(f"{x:g}" for x in sorted(made_for))
        raise ValueError(f"the experts were made for boundaries of {edges}: name one with --boundary")
    boundary = given if given is not None else made_for.pop() if made_for else BOUNDARY
    require("boundary", boundary, above=0, below=1)
    return boundary
