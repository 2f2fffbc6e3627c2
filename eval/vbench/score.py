"""A score for each dimension: whatever is missing or fails is named, and the rest goes on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from train.common.console import check_writable

from .check import find_usable, warn_of_strays
from .dimensions import Scoring
from .official import ScorerOptions
from .preflight import check_all, describe_readiness
from .suite import FLICKER, Plan
from .values import Result

NO_SCORER = ScorerOptions()


def score(
    videos: Path,
    plan: Plan,
    out: Path,
    dimensions: Iterable[str] | None = None,
    options: ScorerOptions = NO_SCORER,
) -> dict[str, Result]:
    """Score each dimension and write out/scores/{dimension}.json.

    What was scored before, of the same bytes and by the same scorer, is not done again. dimensions: some of the plan's;
    None for all. Raises ValueError where nothing can be done: no such folder, a dimension that isn't planned, a Python
    that can't be used, or a GPU that isn't there.
    """
    chosen = [name for name in plan.dimensions if dimensions is None or name in dimensions]
    unknown = [name for name in dimensions or () if name not in plan.dimensions]
    if unknown or not chosen:
        raise ValueError(f"dimensions {', '.join(unknown) or 'is empty'}: the plan has {', '.join(plan.dimensions)}")
    if not videos.is_dir():
        raise ValueError(f"no folder of videos {videos}: generate them first, or plan with another folder")
    check_writable(out / "scores", "--out")
    scorer, weights = options.open()
    checked, static_filter = check_all(chosen, scorer, weights)
    console = Console()
    print("\n".join(describe_readiness(checked, static_filter)))
    stock = find_usable(videos, (x.name for x in plan.videos if {*x.dimensions} & {*chosen}), out)
    warn_of_strays(videos, plan)
    run = Scoring(videos, plan, out / "scores", stock, scorer, weights)
    results = {}
    for one in checked:
        if one.dimension == FLICKER:
            result = run.score_flicker(static_filter)
        else:
            result = run.score_official(one.dimension) if one.ready else run.score_nothing(one)
        results[one.dimension] = result
        console.print(_describe(result), soft_wrap=True, highlight=False, markup=False)
    complete = sum(result.complete for result in results.values())
    console.print(f"{complete} of {len(results)} dimensions complete; all in {out / 'scores'}", soft_wrap=True)
    return results


def _describe(result: Result) -> str:
    if not result.scorer:
        return f"{result.dimension:<24}{'-':>8}  not scored: {result.note.split('; ')[0]}"
    value = "-" if result.score is None else f"{result.score:.4f}"
    parts = [f"{result.dimension:<24}{value:>8}  videos: {len(result.videos)}"]
    if result.missing:
        parts.append(f"incomplete, missing: {len(result.missing)}")
    parts += [result.note] if result.note else []
    parts += [f"{name}: {reason}" for name, reason in list(result.errors.items())[:3]]
    return "; ".join(parts)
