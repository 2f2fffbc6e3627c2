"""Step-aware strength: which windows and which granularity are in force at each noise level (paper, Eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checks import as_fields, as_instance, as_path, as_real, as_triple, as_tuple, is_real, is_whole, one_of, show
from .quant import Granularity, check_granularity
from .tiles import Triple

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Extent = int | float | None
Window = tuple[Extent, Extent, Extent]

WHOLE: Window = (None, None, None)

ON_BOUND = 1e-5  # how far rounding may move a sigma, or a progress


def shift_noise(u: Tensor, shift: float) -> Tensor:
    """sigma = s u / (1 + (s - 1) u): spends more steps at high noise, as long videos need."""
    return shift * u / (1 + (shift - 1) * u)


def unshift_noise(sigma: Tensor, shift: float) -> Tensor:
    """The inverse of `shift_noise`."""
    return sigma / (shift - (shift - 1) * sigma)


@dataclass(frozen=True)
class Regime:
    """Sparsity and quantisation at one stage of denoising.

    Args:
        window: how far a query tile sees on (T, H, W): an int is so many tiles, a float between 0 and 1 a share of the
            axis's tiles, rounded to whole tiles and at least 1, and None the whole axis. 1.0 is refused: it equals the
            1 of one tile, and regimes that differ must not be equal.
        granularity: tiles per axis that share one scale (1, 2, ...), "head", or None for no quantisation.

    Raises ValueError for anything else.
    """

    window: Window = WHOLE
    granularity: Granularity | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", _as_window(self.window))
        if self.granularity is not None:
            object.__setattr__(self, "granularity", check_granularity(self.granularity))

    def window_in_tiles(self, tiles: Triple) -> Triple:
        """The window on axes of so many tiles. Raises ValueError unless these are three counts from 1 up."""
        t, h, w = (_in_tiles(extent, n) for extent, n in zip(self.window, as_triple("tiles", tiles), strict=True))
        return t, h, w


def _as_window(window: object) -> Window:
    if not isinstance(window, (list, tuple)) or len(window) != 3 or not all(map(_is_extent, window)):
        given = show(tuple(window) if isinstance(window, list) else window)
        raise ValueError(
            f"window is {given}, expected three extents (T, H, W): each a whole number of tiles from 1 up, a share of "
            "the axis between 0.0 and 1.0, or None for the whole axis (not 1.0: write null in YAML and JSON)"
        )
    t, h, w = (x if x is None else int(x) if is_whole(x) else float(x) for x in window)
    return t, h, w


def _is_extent(extent: Any) -> bool:
    if extent is None or is_whole(extent):
        return extent is None or int(extent) >= 1
    return is_real(extent) and 0 < float(extent) < 1


def _in_tiles(extent: Extent, n: int) -> int:
    if extent is None:
        return n
    return min(extent, n) if isinstance(extent, int) else max(1, round(extent * n))


@dataclass(frozen=True)
class StepSchedule:
    """Progress of denoising -> regime. The default is the `fps` preset.

    Args:
        bounds: progress at which each regime but the first begins, ascending, inside (0, 1).
        regimes: one more than bounds.
        shift: the shift under which progress is read off sigma, whatever shift a sampler uses: the same sigma always
            meets the same regime.

    Raises ValueError for other types, and when these don't fit together.
    """

    bounds: tuple[float, ...] = (0.3, 0.7)
    regimes: tuple[Regime, ...] = (
        Regime((None, None, 0.1), granularity=4),
        Regime((None, None, 0.3), granularity=1),
        Regime((None, None, 0.2), granularity=2),
    )
    shift: float = 5.0

    def __post_init__(self) -> None:
        bounds = as_tuple("bounds", self.bounds, "a tuple of numbers")
        bounds = tuple(as_real(f"bounds[{i}]", bound) for i, bound in enumerate(bounds))
        regimes = as_tuple("regimes", self.regimes, "a tuple of Regime")
        regimes = tuple(as_instance(f"regimes[{i}]", regime, Regime) for i, regime in enumerate(regimes))
        shift = as_real("shift", self.shift)
        if len(regimes) != len(bounds) + 1:
            raise ValueError(f"{len(regimes)} regimes and {len(bounds)} bounds, expected one more regime")
        edges = (0.0, *bounds, 1.0)
        if any(low >= high for low, high in zip(edges[:-1], edges[1:], strict=True)):
            raise ValueError(f"bounds are {bounds}, expected ascending progress between 0 and 1")
        if not shift > 0:
            raise ValueError(f"shift is {shift}, expected a number above 0")
        for name, value in (("bounds", bounds), ("regimes", regimes), ("shift", shift)):
            object.__setattr__(self, name, value)

    @classmethod
    def from_dict(cls, data: object) -> StepSchedule:
        """The inverse of `dataclasses.asdict`. Raises ValueError for a missing or unknown field or another value."""
        data = as_fields("schedule", data, [field.name for field in fields(cls)])
        given, names = as_tuple("regimes", data["regimes"], "a list of regimes"), [x.name for x in fields(Regime)]
        regimes = [Regime(**as_fields(f"regimes[{i}]", regime, names)) for i, regime in enumerate(given)]
        return cls(**{**data, "regimes": tuple(regimes)})

    @classmethod
    def read(cls, path: str | Path) -> StepSchedule:
        """The schedule of a YAML or JSON file: of its attention, as `eval.sensitivity propose` and training configs
        have it, or its bounds, regimes and shift alone.

        Raises ValueError for what can't be read or says another thing, and for an attention that has other schedules
        for some layers, which one schedule can't hold.
        """
        path = as_path("path", path)
        try:
            return _schedule_in(_read_yaml(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @property
    def quantizes(self) -> bool:
        return any(regime.granularity is not None for regime in self.regimes)

    @property
    def is_sparse(self) -> bool:
        """Whether any regime has a window that isn't the whole of every axis."""
        return any(regime.window != WHOLE for regime in self.regimes)

    @property
    def is_dense(self) -> bool:
        """Whether every regime has full windows and no quantisation."""
        return not self.is_sparse and not self.quantizes

    def progress(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The fraction of denoising done at a noise level: 0 at pure noise, 1 at the video.

        Raises ValueError as `check_sigma`.
        """
        check_sigma(sigma)
        return 1 - unshift_noise(sigma.double(), self.shift)

    def regime_index(self, sigma: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
        """The index of the regime in force at each noise level; a bound belongs to the regime it begins.

        50 steps evenly spaced before the shift would meet bounds like 0.3 exactly, were sigma not rounded: ON_BOUND
        below counts as on. Other samplers' levels (UniPC's begin at 0.999) may be a step longer in a regime.
        Raises ValueError as `check_sigma`.
        """
        progress = self.progress(sigma)
        index = torch.zeros_like(sigma, dtype=torch.int64)
        for bound in self.bounds:
            index = index + (progress >= bound - ON_BOUND)
        return index

    def windows(self, tiles: Triple) -> list[Triple]:
        """Each regime's window on axes of so many tiles."""
        return [regime.window_in_tiles(tiles) for regime in self.regimes]

    def without_quantization(self) -> StepSchedule:
        return replace(self, regimes=tuple(replace(regime, granularity=None) for regime in self.regimes))

    def without_sparsity(self) -> StepSchedule:
        return replace(self, regimes=tuple(replace(regime, window=WHOLE) for regime in self.regimes))


def _read_yaml(path: Path) -> object:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"can't be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        raise ValueError(f"is no YAML ({show(str(error))})") from None


def _schedule_in(data: object) -> StepSchedule:
    for name in ("model", "attention"):
        data = data[name] if isinstance(data, dict) and name in data else data
    if isinstance(data, dict) and data.get("layers"):
        raise ValueError("has a schedule for each of some layers: pass its schedule and its layers to FPSAttention")
    data = data["schedule"] if isinstance(data, dict) and "schedule" in data else data
    return preset(data) if isinstance(data, str) else StepSchedule.from_dict(data)


def check_sigma(sigma: Float[Tensor, " b"]) -> None:
    """Raises ValueError unless sigma is floats [B], none of them NaN or outside 0 to 1, but for rounding.

    On a GPU a value out of range fails there, later and as an assertion: reading it here would wait for the GPU.
    """
    if not isinstance(sigma, Tensor):
        raise ValueError(f"sigma is {show(sigma)}, expected a tensor of noise levels [B]")
    if sigma.ndim != 1 or not len(sigma) or not sigma.is_floating_point() or sigma.is_meta:
        raise ValueError(
            f"sigma is a tensor of shape {tuple(sigma.shape)}, {sigma.dtype} on {sigma.device}, "
            "expected one noise level a sample [B], in floats"
        )
    levels = sigma.detach().double()
    inside = ((levels >= -ON_BOUND) & (levels <= 1 + ON_BOUND)).all()  # not so for NaN
    if sigma.is_cuda:
        torch._assert_async(inside, "sigma is outside 0 (the video) to 1 (pure noise)")
    elif not inside:
        raise ValueError(f"sigma is {show(sigma.tolist())}, expected noise levels from 0 (the video) to 1 (pure noise)")


# The paper's thresholds, windows and granularities are unpublished: these numbers are ours, and measured on no model.
# `fps` follows the paper's words (coarse, fine, intermediate), `sta` keeps the start dense as Sliding Tile Attention
# does, `uniform` has one regime throughout. For a model of yours, eval.sensitivity finds what replaces them.
PRESETS = {
    "fps": StepSchedule(),
    "sta": StepSchedule(bounds=(0.3,), regimes=(Regime(), Regime((None, None, 0.1), granularity=1))),
    "uniform": StepSchedule(bounds=(), regimes=(Regime((None, None, 0.2), granularity=1),)),
    "dense": StepSchedule(bounds=(), regimes=(Regime(),)),
}


def preset(name: str) -> StepSchedule:
    """A schedule by name: fps, sta, uniform or dense. Raises ValueError for another.

    But for dense they are starting points of ours, measured on no model: `python -m eval.sensitivity` and its `propose`
    find a schedule that replaces them for a model and a size, which `StepSchedule.read` reads.
    """
    return PRESETS[one_of("schedule", name, tuple(PRESETS))]


def preset_of(schedule: StepSchedule) -> str | None:
    """The name of the preset that has a schedule's numbers; None where no preset has."""
    return next((name for name, numbers in PRESETS.items() if numbers == schedule), None)
