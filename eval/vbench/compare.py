"""Runs side by side: their totals, and their paired differences."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np
from matplotlib.figure import Figure

from train.pictures import save_figure
from train.whole import write_text

from .aggregate import GROUPS, Totals, aggregate
from .check import read_findings
from .paired import RESAMPLES, Difference, compare
from .results import Results, read_results
from .suite import DIMENSIONS, Plan, read_plan

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
    return ("", Path(text)) if not path or Path(text).exists() else (label, Path(path))


def open_run(label: str, path: Path) -> Run:
    results = read_results(path)
    plan = read_plan(path / "plan.json") if (path / "plan.json").is_file() else None
    return Run(label, results, aggregate(results, plan, read_findings(path / "check.json")), plan, path)


def compare_runs(runs: list[Run]) -> dict[str, dict[str, Difference]]:
    """By the label of each run but the first: its differences from the first."""
    return {run.label: _compare(runs[0], run) for run in runs[1:]}


def _compare(first: Run, other: Run) -> dict[str, Difference]:
    groups = tuple(x for x in GROUPS if getattr(first.totals, x) is not None and getattr(other.totals, x) is not None)
    return compare(first.results.scores, other.results.scores, groups)


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


def describe_comparison(runs: list[Run], found: dict[str, dict[str, Difference]]) -> str:
    """Markdown. found: as compare_runs has it."""
    first, *others = runs
    lines = [f"# VBench: {' and '.join(run.label for run in runs)}", "", *_describe_totals(runs)]
    for other in others:
        lines += ["", f"## {other.label} against {first.label}", "", *_describe_pair(first, other, found[other.label])]
    return "\n".join(lines) + "\n"


def _describe_totals(runs: list[Run]) -> list[str]:
    paper = any(run.label in PAPER_TOTALS for run in runs)
    head = ["", "Quality", "Semantic", "Total", f"change of Total from {runs[0].label}"]
    lines = _head([*head, "Total in the paper (Wan2.1-1.3B)"] if paper else head)
    base = runs[0].totals.total
    for run in runs:
        totals = run.totals
        cells = [run.label, *(percent(x) for x in (totals.quality, totals.semantic, totals.total))]
        change = totals.total / base - 1 if run is not runs[0] and base and totals.total else None
        cells.append("-" if change is None else f"{change:+.1%}")
        lines.append(_row([*cells, percent(PAPER_TOTALS.get(run.label))] if paper else cells))
    for run in runs:
        if run.totals.total is None:
            reasons = (shorten(reason.split(";")[0], 90, placeholder=" ...") for reason in run.totals.reasons)
            lines += ["", f"{run.label} has no Total: {'; '.join(reasons)}."]
        lines += ["", f"{run.label}: {'; '.join(run.totals.warnings)}."] if run.totals.warnings else []
    return lines


def _describe_pair(first: Run, other: Run, differences: dict[str, Difference]) -> list[str]:
    lines = _head(["percent", first.label, other.label, "paired difference", "95 % interval", "pairs", ""])
    for name in (*DIMENSIONS, "quality", "semantic", "total"):
        if name not in differences:
            continue
        found = differences[name]
        scores = (_score(run, name) for run in (first, other))
        interval = "-" if found.low is None else f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
        verdict = ("better" if found.mean > 0 else "worse") if found.certain else "not told apart"
        mean = f"{100 * found.mean:+.2f}"
        lines.append(_row([name, *(percent(x) for x in scores), mean, interval, f"{found.videos:,}", verdict]))
    if not differences:
        lines = ["They have no scored video in common."]
    lines += ["", f"Paired by video; the interval from {RESAMPLES:,} draws of prompts."]
    mismatches = list_mismatches(first, other)
    return [*lines, "", f"Not the model's alone: {'; '.join(mismatches)}."] if mismatches else lines


def _score(run: Run, name: str) -> float | None:
    return run.results.scores[name].score if name in DIMENSIONS else getattr(run.totals, name)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _head(cells: list[str]) -> list[str]:
    return [_row(cells), "|---" + "|---:" * (len(cells) - 1) + "|"]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw_differences(path: Path, first: str, found: dict[str, dict[str, Difference]]) -> None:
    """A line a dimension: each run's paired difference from the one that is called `first`, with its interval."""
    names = [name for name in (*DIMENSIONS, "quality", "semantic", "total") if any(name in x for x in found.values())]
    figure = Figure(figsize=(8, 1.2 + 0.32 * len(names)), layout="constrained")
    axes = figure.subplots()
    for i, (label, differences) in enumerate(found.items()):
        known = {row: differences[name] for row, name in enumerate(names) if name in differences}
        means = np.array([100 * x.mean for x in known.values()])
        ends = [(x.mean, x.mean) if x.low is None else (x.low, x.high) for x in known.values()]
        bars = np.abs(100 * np.array(ends).reshape(-1, 2).T - means)
        rows = np.array([*known]) + 0.15 * (i - (len(found) - 1) / 2)
        axes.errorbar(means, rows, xerr=bars, fmt="o", markersize=4, label=label)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"paired difference from {first}, in percent points, with 95 % intervals")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4)
    save_figure(figure, path)


def write_comparison(out: Path, runs: list[Run], found: dict[str, dict[str, Difference]]) -> None:
    """compare.md, compare.json and compare.png."""
    said = {
        "runs": [{"label": run.label, **asdict(run.totals)} for run in runs],
        "differences": {
            label: {name: asdict(one) for name, one in differences.items()} for label, differences in found.items()
        },
    }
    write_text(out / "compare.md", describe_comparison(runs, found))
    write_text(out / "compare.json", json.dumps(said, ensure_ascii=False, indent=1) + "\n")
    draw_differences(out / "compare.png", runs[0].label, found)
