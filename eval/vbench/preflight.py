"""Whether each dimension can be scored: what the scorer's environment and the weights on disk lack."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .official import Scorer
from .suite import DIMENSIONS, FLICKER
from .weights import EVERY, NEEDS, STATIC_FILTER, Weight, show_bytes

DETECTRON2 = "-m pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2"
NO_SCORER = "needs --scorer_python"


@dataclass(frozen=True)
class Readiness:
    """Whether a dimension can be scored, and what is missing if not. files, packages: those missing or wrong."""

    dimension: str
    problems: tuple[str, ...]
    files: tuple[Weight, ...] = ()
    packages: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        return not self.problems


def check(dimension: str, scorer: Scorer | None, weights: Path) -> Readiness:
    """Of a dimension as the official package scores it, or of the static filter. weights: VBench's cache folder."""
    if scorer is None:
        how = "the Python of an environment with vbench (python -m eval.vbench setup-scorer DIR makes one)"
        return Readiness(dimension, (f"{NO_SCORER}, {how}",))
    packages, files = NEEDS[dimension]
    absent = tuple(name for name in (*EVERY, *packages) if not scorer.packages.get(name))
    problems = [
        f"missing package {name} in the environment of {scorer.python}"
        + (f" (its installation is up to you: {scorer.python} {DETECTRON2})" if name == "detectron2" else "")
        for name in absent
    ]
    wrong = {file: problem for file in files if (problem := file.find_problem(weights))}
    return Readiness(dimension, (*problems, *wrong.values()), (*wrong,), absent)


def check_all(dimensions: Iterable[str], scorer: Scorer | None, weights: Path) -> tuple[list[Readiness], Readiness]:
    """Of each dimension in the official order, and of the static filter. temporal_flickering itself is always ready."""
    chosen = {*dimensions}
    checked = [
        Readiness(name, ()) if name == FLICKER else check(name, scorer, weights)
        for name in DIMENSIONS
        if name in chosen
    ]
    return checked, check(STATIC_FILTER, scorer, weights)


def describe_readiness(checked: Iterable[Readiness], static_filter: Readiness) -> list[str]:
    """What can be scored: a line a dimension, and one for all files that are missing."""
    lines, missing = ["what can be scored:"], {}
    for one in checked:
        if one.dimension == FLICKER:
            how = "with the static filter" if static_filter.ready else f"unfiltered ({_summarise(static_filter)})"
            lines.append(f"  {one.dimension:<24}ready, {how}")
            one = static_filter
        else:
            lines.append(f"  {one.dimension:<24}{'ready' if one.ready else f'no: {_summarise(one)}'}")
        missing.update(dict.fromkeys(one.files))
    if missing:
        files = "1 file is" if len(missing) == 1 else f"{len(missing)} files are"
        size = show_bytes(sum(file.bytes for file in missing))
        lines.append(f"{files} missing or wrong (about {size}): python -m eval.vbench weights lists them")
    return lines


def _summarise(one: Readiness) -> str:
    """What is missing, in a few words."""
    if one.problems and not (one.packages or one.files):
        return NO_SCORER
    told = [f"package {', '.join(one.packages)}"] if one.packages else []
    told += [f"{len(one.files)} file{'s' if len(one.files) > 1 else ''}"] if one.files else []
    return "; ".join(told)
