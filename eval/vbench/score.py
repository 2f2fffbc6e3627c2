"""A score for each dimension: whatever is missing or fails is named, and the rest goes on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from train.common.console import check_writable

from .dimensions import Scoring
from .official import Device, open_scorer
from .preflight import STATIC_FILTER, Readiness, check, describe_readiness
from .stock import inspect_videos, say_stock
from .suite import FLICKER, Plan, read_plan
from .values import Result


def score_command(
    out: Path,
    dimensions: list[str] | None = None,
    scorer_python: Path | None = None,
    weights: Path | None = None,
    device: Device = "auto",
) -> None:
    """Score the videos of a plan; what was scored before, of the same bytes and by the same scorer, is not done again.

    Args:
        out: folder of the run, with its plan.json. Scores go to its scores/, one file a dimension.
        dimensions: some of the plan's; none takes all.
        scorer_python: the Python of an environment with the official vbench package, as setup-scorer makes one.
            Without it only temporal_flickering is scored.
        weights: VBench's folder of weights; none takes $VBENCH_CACHE_DIR, or ~/.cache/vbench.
        device: of the official package: cpu, cuda, or the one there is.
    """
    plan = read_plan(out / "plan.json")
    score(plan.find_videos(out), plan, out, dimensions, scorer_python, weights, device)


def score(
    videos: Path,
    plan: Plan,
    out: Path,
    dimensions: Iterable[str] | None = None,
    scorer_python: Path | None = None,
    weights: Path | None = None,
    device: Device = "auto",
) -> dict[str, Result]:
    """Score each dimension and write out/scores/{dimension}.json; arguments as in score_command.

    Raises ValueError where nothing can be done: no such folder, a dimension that isn't planned, a Python that can't
    be used, or a GPU that isn't there.
    """
    chosen = [name for name in plan.dimensions if dimensions is None or name in dimensions]
    unknown = [name for name in dimensions or () if name not in plan.dimensions]
    if unknown or not chosen:
        raise ValueError(f"dimensions {', '.join(unknown) or 'is empty'}: the plan has {', '.join(plan.dimensions)}")
    if not videos.is_dir():
        raise ValueError(f"no folder of videos {videos}: generate them first, or plan with another folder")
    check_writable(out / "scores", "--out")
    weights = find_weights(weights)
    scorer = open_scorer(scorer_python, device) if scorer_python else None
    static_filter = check(STATIC_FILTER, scorer, weights)
    checked = {name: Readiness(name, ()) if name == FLICKER else check(name, scorer, weights) for name in chosen}
    console = Console()
    print("\n".join(describe_readiness(checked.values(), static_filter)))
    stock = inspect_videos(videos, [video for video in plan.videos if set(video.dimensions) & set(chosen)], plan)
    say_stock(stock)
    run = Scoring(videos, plan, out / "scores", stock, scorer, weights)
    results = {}
    for name in chosen:
        if name == FLICKER:
            results[name] = run.score_flicker(static_filter)
        elif checked[name].ready:
            results[name] = run.score_official(name)
        else:
            results[name] = run.score_nothing(checked[name])
        console.print(_describe(results[name]), soft_wrap=True, highlight=False, markup=False)
    complete = sum(result.complete for result in results.values())
    console.print(f"{complete} of {len(results)} dimensions complete; all in {out / 'scores'}", soft_wrap=True)
    return results


def find_weights(weights: Path | None) -> Path:
    """VBench's folder of weights: the one given, else its own."""
    found = weights or Path(os.environ.get("VBENCH_CACHE_DIR") or "~/.cache/vbench")
    return Path(os.path.abspath(found.expanduser()))


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
