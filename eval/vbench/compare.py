"""Runs side by side, and their paired differences."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .aggregate import GROUPS, Totals, aggregate
from .check import read_findings
from .paired import Difference, compare
from .results import Results, read_results
from .suite import DIMENSIONS, Plan, find_plan

PAPER_ROWS = ("dense", "quantised", "sparse", "joint training-free", "joint trained")
PAPER_TOTALS = {"dense": 0.8019, "joint training-free": 0.6325, "joint trained": 0.8160}  # its Table 5, Wan2.1-1.3B


@dataclass(frozen=True)
class Run:
    """A run, or other scores, under the name that it has in the tables. path: where they were read."""

    label: str
    results: Results
    totals: Totals
    plan: Plan | None
    path: Path


def open_runs(given: list[str]) -> list[Run]:
    """given: paths, or label=path; five paths without a label are the paper's rows, in its order.

    Raises ValueError for fewer than two and more than five, and where one holds no scores.
    """
    if not 2 <= len(given) <= len(PAPER_ROWS):
        raise ValueError(f"{len(given)} runs to compare, expected 2 to {len(PAPER_ROWS)}: A B, or dense=A trained=B")
    pairs = [_split_label(text) for text in given]
    if len(pairs) == len(PAPER_ROWS) and not any(label for label, _ in pairs):
        pairs = [(label, path) for label, (_, path) in zip(PAPER_ROWS, pairs, strict=True)]
    labels = [label or path.resolve().name for label, path in pairs]
    if len(set(labels)) < len(labels):
        labels = [label or str(path) for label, path in pairs]
    if len(set(labels)) < len(labels):
        raise ValueError(f"runs are called {', '.join(labels)}: give them different labels, label=path")
    return [open_run(label, path) for label, (_, path) in zip(labels, pairs, strict=True)]


def _split_label(text: str) -> tuple[str, Path]:
    label, _, path = text.partition("=")
    return ("", Path(text)) if not path or os.path.exists(text) else (label, Path(path))


def open_run(label: str, path: Path) -> Run:
    results = read_results(path)
    plan = find_plan(path)
    return Run(label, results, aggregate(results, plan, read_findings(path / "check.json")), plan, path)


def compare_runs(runs: list[Run]) -> dict[str, dict[str, Difference]]:
    """By the label of each run but the first: its differences from the first."""
    return {run.label: _compare(runs[0], run) for run in runs[1:]}


def _compare(first: Run, other: Run) -> dict[str, Difference]:
    groups = tuple(x for x in GROUPS if getattr(first.totals, x) is not None and getattr(other.totals, x) is not None)
    quick = any(run.plan is not None and run.plan.quick is not None for run in (first, other))
    return compare(first.results.scores, other.results.scores, groups, quick)


def list_mismatches(first: Run, other: Run) -> list[str]:
    """In what the plans of two runs differ, so that their difference isn't the model's alone."""
    if first.plan is None or other.plan is None:
        return []
    names = ("suite", "prompt_map", "clip", "quick")
    said = [f"{name} differs" for name in names if getattr(first.plan, name) != getattr(other.plan, name)]
    ours, theirs = ({video.name: video.seed for video in run.plan.videos} for run in (first, other))
    if first.plan.folder is None and other.plan.folder is None:
        different = sum(ours[name] != theirs[name] for name in ours.keys() & theirs.keys())
        said += [f"{different} videos have another seed"] if different else []
    return said


def list_contradictions(first: Run, other: Run, found: dict[str, Difference]) -> list[str]:
    """The rows whose paired difference has another sign than that of the two scores, as they are shown.

    Scores are over all videos of a run, differences over those that both have.
    """
    names = []
    for name, difference in found.items():
        scores = [find_score(run, name) for run in (first, other)]
        if None not in scores and (round(scores[1], 4) - round(scores[0], 4)) * round(difference.mean, 4) < 0:
            names.append(name)
    return names


def find_score(run: Run, name: str) -> float | None:
    """Of a dimension or a total."""
    if name not in DIMENSIONS:
        return getattr(run.totals, name)
    result = run.results.scores.get(name)
    return result and result.score
