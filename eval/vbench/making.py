"""How a run's videos were made, from the record of each: settings, weights, machines, time and memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from ..generate.records import numbers_of, part_of
from .reading import NoFile, first_of, read_json
from .suite import Plan

OF_A_VIDEO = ("name", "prompt", "seed", "sha256", "seconds", "peak_gb")
SHOWN_APART = ("regimes", "fingerprints", "machine", "density", "versions")


@dataclass(frozen=True)
class Making:
    """What the records say of all videos together.

    settings: of the first video, since all have the same. fingerprints: of each part's weights. devices, commits: how
    many videos each made. seconds: median of a video's. density: mean share of the attention's pairs that is computed.
    peak_gb: the most that a video took. problems: what a reader has to know of the records.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    devices: dict[str, int] = field(default_factory=dict)
    commits: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None
    density: float | None = None
    peak_gb: float | None = None
    problems: tuple[str, ...] = ()


def read_making(out: Path, plan: Plan | None) -> Making:
    """Records that can't be read are left out, named and counted; nothing at all for videos made elsewhere."""
    records, broken = [], []
    for video in plan.videos if plan and not plan.folder else ():
        file = out / "records" / f"{video.name.removesuffix('.mp4')}.json"
        try:
            records.append(_read(file))
        except NoFile:
            continue
        except ValueError:
            broken.append(file.name)
    problems = [_say_broken(broken)] if broken else []
    if not records:
        return Making(problems=tuple(problems))
    parts, machines = ([part_of(record, name) for record in records] for name in ("fingerprints", "machine"))
    names = dict.fromkeys(name for part in parts for name in part)
    fingerprints = {name: _count(part.get(name) for part in parts) for name in names}
    problems += [
        f"videos are of different weights of the {name}: {_with_counts(those)}"
        for name, those in fingerprints.items()
        if len(those) > 1
    ]
    seconds, density, peak = (numbers_of(records, name) for name in ("seconds", "density", "peak_gb"))
    return Making(
        {name: x for name, x in records[0].items() if name not in (*OF_A_VIDEO, *SHOWN_APART)},
        {name: next(iter(those)) for name, those in fingerprints.items() if those},
        _count(machine.get("device") for machine in machines),
        _count(machine.get("commit") for machine in machines),
        part_of(machines[0], "versions") or part_of(records[0], "versions"),
        median(seconds) if seconds else None,
        sum(density) / len(density) if density else None,
        max(peak, default=None),
        tuple(problems),
    )


def _read(file: Path) -> dict[str, Any]:
    """Raises NoFile, and ValueError for what is no record of a video."""
    record = read_json(file)
    if not isinstance(record, dict) or "prompt" not in record:
        raise ValueError(f"{file} is no record of a video")
    return record


def _say_broken(names: list[str]) -> str:
    what = "record of a video is" if len(names) == 1 else "records of videos are"
    return f"{len(names):,} {what} broken and left out of how they were made: {first_of(names)}"


def _count(values: Iterable[Any]) -> dict[str, int]:
    """How often each text is there, the commonest first."""
    return dict(Counter(value for value in values if isinstance(value, str)).most_common())


def _with_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count:,} videos)" for name, count in counts.items())


def describe_cost(making: Making) -> list[tuple[str, str]]:
    """(what, value) of what the videos took, as far as it is known."""
    facts = {
        "seconds per video (median)": None if making.seconds is None else f"{making.seconds:.1f}",
        "density of attention": None if making.density is None else f"{making.density:.3f}",
        "peak memory": None if making.peak_gb is None else f"{making.peak_gb:.1f} GB",
        "device": _only(making.devices),
    }
    return [(what, value) for what, value in facts.items() if value]


def describe_making(making: Making) -> list[tuple[str, str]]:
    """(what, value) of what the videos took, and of what made them, beside the settings."""
    facts = {
        "commit": _only(making.commits),
        "versions": ", ".join(f"{name} {number}" for name, number in making.versions.items()),
        **{f"fingerprint of the {name}": value for name, value in making.fingerprints.items()},
    }
    return [*describe_cost(making), *((what, value) for what, value in facts.items() if value)]


def _only(counts: dict[str, int]) -> str:
    """The counts are said where there are several."""
    return next(iter(counts)) if len(counts) == 1 else _with_counts(counts)


def describe_settings(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """As JSON, with no more of an absolute path than its end."""
    return [(name, json.dumps(_hide(value), ensure_ascii=False)) for name, value in settings.items()]


def _hide(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _hide(x) for name, x in value.items()}
    is_path = isinstance(value, str) and Path(value).is_absolute() and len(Path(value).parts) > 3
    return ".../" + "/".join(Path(value).parts[-2:]) if is_path else value
