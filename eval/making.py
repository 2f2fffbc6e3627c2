"""How videos were made, from the record of each: settings, weights, machines, time and memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from fps_flex.checks import is_real

from .generate.records import part_of

OF_A_VIDEO = ("name", "prompt", "seed", "sha256", "seconds", "peak_gb")
SHOWN_APART = ("regimes", "fingerprints", "machine", "density", "versions")


@dataclass(frozen=True)
class Making:
    """What the records say of all videos together.

    settings: of the first video, since all have the same. fingerprints: of each part's weights, and like devices and
    commits how many videos each made. seconds: median of a video's. density: mean share of the attention's pairs that
    is computed. peak_gb: the most that a video took. problems: what a reader has to know of the records.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, dict[str, int]] = field(default_factory=dict)
    devices: dict[str, int] = field(default_factory=dict)
    commits: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None
    density: float | None = None
    peak_gb: float | None = None
    problems: tuple[str, ...] = ()


def summarise(records: list[dict[str, Any]], problems: Iterable[str] = ()) -> Making:
    """records: whatever is in them, only what can be meant counts. problems: with reading them."""
    first = records[0] if records else {}
    parts, machines = ([part_of(record, name) for record in records] for name in ("fingerprints", "machine"))
    counts = {
        name: _count(part.get(name) for part in parts) for name in dict.fromkeys(x for part in parts for x in part)
    }
    different = {name: those for name, those in counts.items() if len(those) > 1}
    seconds, density, peak = (
        [float(record[name]) for record in records if is_real(record.get(name))]
        for name in ("seconds", "density", "peak_gb")
    )
    return Making(
        {name: x for name, x in first.items() if name not in (*OF_A_VIDEO, *SHOWN_APART)},
        {name: those for name, those in counts.items() if those},
        _count(machine.get("device") for machine in machines),
        _count(machine.get("commit") for machine in machines),
        part_of(part_of(first, "machine"), "versions") or part_of(first, "versions"),
        median(seconds) if seconds else None,
        sum(density) / len(density) if density else None,
        max(peak, default=None),
        (*problems, *(f"videos are of different weights of the {x}: {_tell(those)}" for x, those in different.items())),
    )


def _count(values: Iterable[Any]) -> dict[str, int]:
    """How often each text is there, the commonest first."""
    return dict(Counter(value for value in values if isinstance(value, str)).most_common())


def _tell(counts: dict[str, int]) -> str:
    """With how many videos each made, where there are several."""
    named = {x: f"{x} ({count:,} {'video' if count == 1 else 'videos'})" for x, count in counts.items()}
    return ", ".join(named.values() if len(counts) > 1 else counts)


def describe_cost(making: Making) -> dict[str, str]:
    """What the videos took, as far as it is known."""
    facts = {
        "seconds per video (median)": None if making.seconds is None else f"{making.seconds:.1f}",
        "density of attention": None if making.density is None else f"{making.density:.3f}",
        "peak memory": None if making.peak_gb is None else f"{making.peak_gb:.1f} GB",
        "device": _tell(making.devices),
    }
    return {what: value for what, value in facts.items() if value}


def describe_making(making: Making) -> dict[str, str]:
    """What the videos took, what made them, and the settings as JSON."""
    facts = {
        **describe_cost(making),
        "commit": _tell(making.commits),
        "versions": ", ".join(f"{name} {number}" for name, number in making.versions.items()),
        **{f"fingerprint of the {name}": _tell(those) for name, those in making.fingerprints.items()},
        **{name: json.dumps(_hide(value), ensure_ascii=False) for name, value in making.settings.items()},
    }
    return {what: value for what, value in facts.items() if value}


def _hide(value: Any) -> Any:
    """No more of an absolute path than its end."""
    if isinstance(value, dict):
        return {name: _hide(x) for name, x in value.items()}
    is_path = isinstance(value, str) and Path(value).is_absolute() and len(Path(value).parts) > 3
    return ".../" + "/".join(Path(value).parts[-2:]) if is_path else value
