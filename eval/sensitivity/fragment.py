"""What is proposed, as a YAML fragment for train.fit, eval.generate and install."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import Any

from fps_flex import FPSAttention, StepSchedule
from fps_flex.choice import describe_cuts
from fps_flex.quant import CodeFormat

from .layerwise import Choices, mean_density, name_ranges, sum_errors
from .predict import as_schedule
from .result import PRODUCER, Sensitivity
from .tables import percent

INSTALLED = ("tile", "scale_format")  # whose defaults are others in `install`
MEASURED_WITH = ("tile", "block", "scale_format", "smooth_k", "rotate")  # and codes


def fragment(measured: Sensitivity, chosen: Choices, codes: CodeFormat) -> str:
    """chosen: of all layers, one for each, or one for all of them."""
    common, ranges = name_ranges(chosen)
    lines = [
        f"# By {PRODUCER} propose: mean density {mean_density(chosen):.3f}, predicted velocity error "
        f"{percent(sum_errors(chosen))}.",
        "attention:",
        "  schedule:",
        *_schedule_lines(as_schedule(measured, common), indent=4),
    ]
    if ranges:
        lines.append("  layers:")
        for name, choice in ranges.items():
            lines += [f'    "{name}":', *_schedule_lines(as_schedule(measured, choice), indent=6)]
    options = options_of(measured, codes)
    return "\n".join([*lines, *(f"  {name}: {_plain(x)}" for name, x in options.items())]) + "\n"


def options_of(measured: Sensitivity, codes: CodeFormat) -> dict[str, Any]:
    """All but the schedule that decides what an attention computes."""
    options = {name: measured.base[name] for name in MEASURED_WITH} | {"codes": codes}
    return options | {"tile": tuple(options["tile"])}


def _schedule_lines(schedule: StepSchedule, indent: int) -> list[str]:
    regimes = [f"- {{window: {_plain(x.window)}, granularity: {_plain(x.granularity)}}}" for x in schedule.regimes]
    lines = [f"bounds: {_plain(schedule.bounds)}", "regimes:", *regimes, f"shift: {_plain(schedule.shift)}"]
    return [" " * indent + line for line in lines]


def _plain(value: Any) -> str:
    """As JSON has it, which YAML reads too."""
    return value if isinstance(value, str) else json.dumps(value)


def describe_use(measured: Sensitivity, path: Path, chosen: Choices, codes: CodeFormat) -> str:
    """How to use what `fragment` wrote, and what it leaves apart in a video."""
    lines = [
        f"{path} holds it:",
        f"  python -m eval.generate --config {quote(str(path))} --checkpoint CKPT ...",
        f"  python -m train.fit --config YOURS.yaml --config {quote(str(path))} ...",
    ]
    if len(chosen) == 1:
        named = {
            k: x for k, x in options_of(measured, codes).items() if k in INSTALLED or x != getattr(FPSAttention, k)
        }
        options = "".join(f", {name}={x!r}" for name, x in named.items())
        lines.append(f"  install(transformer, schedule=StepSchedule.read({str(path)!r}){options})")
    common, ranges = name_ranges(chosen)
    layers = {name: as_schedule(measured, choice) for name, choice in ranges.items()}
    attention = FPSAttention(as_schedule(measured, common), layers=layers, **options_of(measured, codes))
    cuts = describe_cuts(attention, measured.layout.tiles)
    return "\n".join([*lines, *([cuts] if cuts else [])])
