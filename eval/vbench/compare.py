"""Runs side by side: their totals, and their paired differences."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from ..intervals import FEWEST, Estimate
from .aggregate import GROUPS, Totals, aggregate, find_intervals
from .chart import draw_differences
from .check import read_findings
from .paired import ALPHA, Difference, compare
from .reading import write_json, write_plainly
from .results import Results, read_results
from .suite import DIMENSIONS, Plan, find_plan

PAPER_ROWS = ("dense", "quantised", "sparse", "joint training-free", "joint trained")
PAPER_TOTALS = {"dense": 0.8019, "joint training-free": 0.6325, "joint trained": 0.8160}  # its Table 5, Wan2.1-1.3B


@dataclass(frozen=True)
class Run:
    """A run, or other scores, under the name that it has in the tables."""

    label: str
    results: Results
    totals: Totals
    plan: Plan | None


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
    return Run(label, results, aggregate(results, plan, read_findings(path / "check.json")), plan)


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
        scores = [_score(run, name) for run in (first, other)]
        if None not in scores and (round(scores[1], 4) - round(scores[0], 4)) * round(difference.mean, 4) < 0:
            names.append(name)
    return names


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
        totals, found = run.totals, find_intervals(run.results)
        cells = [
            run.label,
            *(_total(getattr(totals, name), found.get(name)) for name in ("quality", "semantic", "total")),
        ]
        change = totals.total / base - 1 if run is not runs[0] and base and totals.total else None
        cells.append("-" if change is None else f"{change:+.1%}")
        lines.append(_row([*cells, percent(PAPER_TOTALS.get(run.label))] if paper else cells))
    for run in runs:
        if run.totals.total is None:
            reasons = (shorten(reason.split(";")[0], 90, placeholder=" ...") for reason in run.totals.reasons)
            lines += ["", f"{run.label} has no Total: {'; '.join(reasons)}."]
        lines += ["", f"{run.label}: {'; '.join(run.totals.warnings)}."] if run.totals.warnings else []
    return lines


def _total(value: float | None, found: Estimate | None) -> str:
    """In percent, with its interval where there is one."""
    if value is None or found is None or found.low is None:
        return percent(value)
    return f"{percent(value)} ({percent(found.low)} to {percent(found.high)})"


def _describe_pair(first: Run, other: Run, differences: dict[str, Difference]) -> list[str]:
    if not differences:
        return ["They have no scored video in common."]
    columns = ("paired difference", "95 % interval", "p", "pairs", "prompts", f"only in {first.label}")
    lines = _head(["percent", first.label, other.label, *columns, f"only in {other.label}", "verdict"])
    for name, found in differences.items():
        interval = "-" if found.low is None else f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
        figures = (f"{100 * found.mean:+.2f}", interval, "-" if found.p is None else f"{found.p:.2g}")
        counts = (f"{x:,}" for x in (found.videos, found.prompts, found.only_first, found.only_other))
        scores = (percent(_score(run, name)) for run in (first, other))
        lines.append(_row([name, *scores, *figures, *counts, found.verdict]))
    return [*lines, *_explain_pair(first, other, differences)]


def _explain_pair(first: Run, other: Run, differences: dict[str, Difference]) -> list[str]:
    tested = sum(found.p is not None for found in differences.values())
    said = (
        "Scores are over all videos of a run, differences over the pairs, the videos that both have; intervals over "
        f"prompts (Student's t). A verdict takes {FEWEST} prompts, and a p below {ALPHA}, which is corrected for the "
        f"table's {tested} rows (Holm)."
    )
    lines = ["", said]
    contradictions = ", ".join(list_contradictions(first, other, differences))
    if contradictions:
        lines += ["", f"Signs differ in {contradictions}: the pairs say the opposite of the scores over all videos."]
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


def write_comparison(out: Path, runs: list[Run], found: dict[str, dict[str, Difference]]) -> None:
    """compare.md, compare.json and compare.png."""
    said = {
        "runs": [{"label": run.label, **asdict(run.totals), "intervals": _list_intervals(run)} for run in runs],
        "differences": {
            label: {name: asdict(one) for name, one in differences.items()} for label, differences in found.items()
        },
        "contradictions": {run.label: list_contradictions(runs[0], run, found[run.label]) for run in runs[1:]},
    }
    write_plainly(out / "compare.md", describe_comparison(runs, found))
    write_json(out / "compare.json", said)
    draw_differences(out / "compare.png", runs[0].label, found)


def _list_intervals(run: Run) -> dict[str, dict[str, Any]]:
    """Without those of withheld totals."""
    found = find_intervals(run.results).items()
    return {name: asdict(one) for name, one in found if _score(run, name) is not None}
