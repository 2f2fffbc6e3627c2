"""Which attention a checkpoint is run with: that of its training, but for the options that are named."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from fps_flex import FPSAttention, Regime, StepSchedule
from fps_flex.checks import show
from fps_flex.choice import FASTEST
from fps_flex.engines import Engine
from fps_flex.quant import CodeFormat, ScaleFormat
from fps_flex.schedule import PRESETS, preset_of
from fps_flex.tiles import Triple
from train.common.ranks import speaks

DENSE = FPSAttention("dense", tile=None)  # what released weights were trained with
FOR_ANY = ("block", "engine")  # options that say something of dense attention too


@dataclass(frozen=True)
class ScheduleChanges:
    """Parts of a schedule in place of the trained one's.

    Args:
        bounds: progress at which each regime but the first begins, ascending, between 0 and 1.
        regimes: one more than bounds, each a window and a granularity.
        shift: under which progress is read off the noise level.
    """

    bounds: tuple[float, ...] | None = None
    regimes: tuple[Regime, ...] | None = None
    shift: float | None = None


@dataclass(frozen=True)
class AttentionChanges:
    """Options of the attention, each in place of what the weights were trained with; none leaves it as it was.

    Released weights were trained with dense attention: block and engine change that, and the others need a schedule,
    beside which what is left out is what is fastest: a tile planned for the grid, and power-of-two scales.

    Args:
        schedule: fps, sta, uniform or dense; or bounds, regimes and shift, of which those left out stay.
        tile: tokens of a tile on (T, H, W); null asks for the one with the fewest pads, `trained` is that of training.
        block: slots of a kernel block, a multiple of 128 on a GPU.
        quantize: false switches FP8 off.
        sparse: false switches windows off.
        scale_format: of the FP8 scales: fp32, or powers of two.
        carrier: of FP8 values: the input's dtype, or float8 on a GPU.
        engine: what computes it.
        smooth_k: take K's mean over tokens off it before it is rounded.
        codes: of Q and K, e4m3 or int8.
        rotate: Q and K before they are rounded: hadamard, or null for not, `trained` is that of training.
        layers: those that follow another schedule: {0-1: dense}; {} for none.
    """

    schedule: str | ScheduleChanges | None = None
    tile: Triple | Literal["trained"] | None = "trained"
    block: int | None = None
    quantize: bool | None = None
    sparse: bool | None = None
    scale_format: ScaleFormat | None = None
    carrier: Literal["input", "float8"] | None = None
    engine: Engine | None = None
    smooth_k: bool | None = None
    codes: CodeFormat | None = None
    rotate: Literal["hadamard", "trained"] | None = "trained"
    layers: dict[str, str | Regime | StepSchedule] | None = None

    def named(self) -> dict[str, Any]:
        """The options that are changed."""
        return {x.name: value for x in fields(self) if (value := getattr(self, x.name)) != x.default}

    def names_schedule(self) -> bool:
        """Whether the schedule is told without a trained one."""
        parts = self.schedule
        return isinstance(parts, str) or parts is not None and None not in (parts.bounds, parts.regimes)

    def apply(self, base: FPSAttention) -> FPSAttention:
        """Raises ValueError for values that FPSAttention refuses, alone or together."""
        named = self.named()
        if isinstance(self.schedule, ScheduleChanges):
            parts = {name: value for name, value in vars(self.schedule).items() if value is not None}
            named["schedule"] = replace(base.schedule, **parts)
        return replace(base, **named)


def choose_attention(
    trained: dict[str, FPSAttention | None], asked: AttentionChanges | FPSAttention | None
) -> FPSAttention:
    """trained: path -> with what its weights were trained, of one or two experts; None for released ones.

    asked: changes of that, which are told to the user; or what takes its place; None leaves it.
    Raises ValueError for changes that don't fit, and for experts that would get different attention.
    """
    if isinstance(asked, FPSAttention):
        return asked
    changes = asked or AttentionChanges()
    bases = [attention for attention in trained.values() if attention]
    if not (bases and changes.names_schedule()):
        bases = [attention or _base_for_released(path, changes) for path, attention in trained.items()]
    chosen = [changes.apply(base) for base in bases]
    if chosen[0] != chosen[-1]:
        raise ValueError(
            f"{' and '.join(trained)} were trained with different attention: name that of both, with "
            f"--attention.schedule and --attention.tile, or what else differs ({_differ(chosen[0], 'and', chosen[-1])})"
        )
    for path, attention in trained.items():
        if speaks() and (other := _differ(chosen[0], "in place of", attention or DENSE)):
            print(f"{path} gets another attention than it was trained with: {other}", flush=True)
    return chosen[0]


def _base_for_released(path: str, changes: AttentionChanges) -> FPSAttention:
    """What options change of weights that were trained dense. Raises ValueError unless they say which attention."""
    if changes.names_schedule():
        return DENSE if changes.schedule == "dense" else FASTEST
    unclear = [name for name in changes.named() if name not in FOR_ANY]
    if unclear:
        given = "a part of attention.schedule" if unclear[0] == "schedule" else f"attention.{unclear[0]}"
        raise ValueError(
            f"{given} is given, and {path} was trained with dense attention: add --attention.schedule, with one of "
            f"{', '.join(PRESETS)} or with bounds and regimes"
        )
    return DENSE


def _differ(one: FPSAttention, words: str, other: FPSAttention) -> str:
    """The options that two differ in, with both values: 'engine eager in place of auto'."""
    pairs = {x.name: (getattr(one, x.name), getattr(other, x.name)) for x in fields(FPSAttention)}
    schedules = pairs.pop("schedule")
    said = (", ".join(f"{name} {_name_schedule(x)}" for name, x in layers) for layers in pairs["layers"])
    pairs["layers"] = tuple(layers or "none" for layers in said)
    if any(map(preset_of, schedules)):
        parts = {"schedule": tuple(map(_name_schedule, schedules))}
    else:
        parts = {f"schedule.{x.name}": tuple(getattr(s, x.name) for s in schedules) for x in fields(StepSchedule)}
    return ", ".join(f"{name} {_say(a)} {words} {_say(b)}" for name, (a, b) in {**parts, **pairs}.items() if a != b)


def _name_schedule(schedule: StepSchedule) -> str:
    """A preset's name, or what a schedule of one's own is."""
    windows = ", ".join(map(_say_regime, schedule.regimes))
    return preset_of(schedule) or f"one of its own (bounds {_say(schedule.bounds)}, {windows})"


def _say(value: Any) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], Regime):
        return f"({', '.join(map(_say_regime, value))})"
    return value if isinstance(value, str) else "null" if value is None else show(value)


def _say_regime(regime: Regime) -> str:
    """Its window and granularity: 'window (1, 2, None) scales 2'."""
    scales = "not quantised" if regime.granularity is None else f"scales {regime.granularity}"
    return f"window {'all' if regime.window == (None, None, None) else regime.window} {scales}"
