"""Runs side by side and their paired differences, in words and tables: Markdown, JSON, CSV and LaTeX."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten

from numpy import sign

from fps_flex.checks import at_home

from ..intervals import FEWEST
from ..reading import write_json, write_plainly
from .aggregate import GROUPS
from .chart import draw_differences
from .paired import ALPHA, SAME, Difference, compare, find_both
from .report import TOTALS, Report, collect
from .suite import DIMENSIONS
from .tables import Column, Table, count, percent, percents, points, span

PAPER_ROWS = ("dense", "quantised", "sparse", "joint training-free", "joint trained")
PAPER_TOTALS = {"dense": 0.8019, "joint training-free": 0.6325, "joint trained": 0.8160}  # its Table 5, Wan2.1-1.3B
SLACK = 1.5e-4  # what rounding alone may do to the difference of two scores
Differences = dict[str, dict[str, Difference]]  # by label and row, as compare_runs has it
SAME_SCORES = "Each video that both have scores the same in both: they may be one run's, and nothing is estimated."
INTERVALS = (
    "Scores are over all videos of a run, differences over the pairs, the videos that both have; intervals over "
    "prompts, as wide as Student's t and as lopsided as the bounds of scores make them (Korn and Graubard). A "
    f"verdict takes {FEWEST} prompts, and a p below {ALPHA}, which is corrected for the table's {{rows}} (Holm)."
)
TOTALS_CAPTION = "Totals in percent, with their 95 % intervals over prompts"


def open_runs(given: list[str]) -> list[Report]:
    """given: paths, or label=path; five paths without a label are the paper's rows, in its order.

    Raises ValueError for fewer than two and more than five, and where one holds no scores.
    """
    most = len(PAPER_ROWS)
    if not 2 <= len(given) <= most:
        raise ValueError(f"{len(given)} runs to compare, expected 2 to {most}: A B, or dense=A trained=B")
    split = [("", "", text) if os.path.exists(at_home(Path(text))) else text.partition("=") for text in given]
    paths = [at_home(Path(path or label)) for label, _, path in split]
    named = [label if path else "" for label, _, path in split]
    if len(given) == most and not any(named):
        named = [*PAPER_ROWS]
    labels = [label or path.resolve().name for label, path in zip(named, paths, strict=True)]
    if len({*labels}) < len(labels):
        labels = [label or str(path) for label, path in zip(named, paths, strict=True)]
    if len({*labels}) < len(labels):
        raise ValueError(f"runs are called {', '.join(labels)}: give them different labels, label=path")
    return [collect(path, label) for label, path in zip(labels, paths, strict=True)]


def compare_runs(runs: list[Report]) -> Differences:
    """By the name of each run but the first: its differences from the first."""
    first, differences = runs[0], {}
    for run in runs[1:]:
        whole = tuple(name for name in GROUPS if name in first.figures() and name in run.figures())
        differences[run.name] = compare(first.results.scores, run.results.scores, whole, first.quick or run.quick)
    return differences


def list_mismatches(first: Report, other: Report) -> list[str]:
    """In what the plans of two runs differ, so that their difference isn't the model's alone."""
    if first.plan is None or other.plan is None:
        return []
    names = ["suite", "prompt_map", "quick"]
    names += ["clip"] if first.plan.clip and other.plan.clip else []  # of videos made elsewhere none is known
    lines = [f"{name} differs" for name in names if getattr(first.plan, name) != getattr(other.plan, name)]
    ours, theirs = ({video.name: video.seed for video in run.plan.videos} for run in (first, other))
    if first.plan.folder is None and other.plan.folder is None:
        different = sum(ours[name] != theirs[name] for name in ours.keys() & theirs.keys())
        lines += [f"{different} {'videos have' if different > 1 else 'video has'} another seed"] if different else []
    return lines


def list_contradictions(first: Report, other: Report, differences: dict[str, Difference]) -> list[str]:
    """The rows whose paired difference has another sign than that of the two scores, as they are shown.

    Scores are over all videos of a run, differences over those that both have, and a score need not be a plain mean.
    """
    scores = {name: (first.score(name), other.score(name)) for name in differences}
    shown = {name: round(round(b, 4) - round(a, 4), 4) for name, (a, b) in scores.items() if None not in (a, b)}
    paired = {name: round(one.mean, 4) for name, one in differences.items()}
    return [name for name, x in shown.items() if sign(x) != sign(paired[name]) and abs(x - paired[name]) > SLACK]


def list_notes(first: Report, other: Report) -> list[str]:
    """What one run's scores of a dimension are told with, and the other's aren't."""
    both = find_both(first.results.scores, other.results.scores).items()
    different = [(name, ours.note, theirs.note) for name, (ours, theirs) in both if ours.note != theirs.note]
    notes = [f"{name} of {first.name}: {note}" for name, note, _ in different if note]
    return notes + [f"{name} of {other.name}: {note}" for name, _, note in different if note]


def tabulate_totals(runs: list[Report]) -> Table:
    """A row a run, beside the paper's where a run has the label of one of its rows."""
    columns = [
        Column("run", ("run",)),
        *(Column(name.capitalize(), (name, f"{name}_low", f"{name}_high"), _show_total, True) for name in TOTALS),
        Column(f"change of Total from {runs[0].name}", ("change",), lambda x: f"{x:+.1%}", True),
        Column("Total in the paper (Wan2.1-1.3B)", ("paper",), percent, True),
    ]
    base, rows = runs[0].score("total"), []
    for run in runs:
        estimates = {name: run.intervals.get(name) for name in TOTALS}
        cells = [(run.score(name), x and x.low, x and x.high) for name, x in estimates.items()]
        change = run.score("total") / base - 1 if run is not runs[0] and base and run.score("total") else None
        rows.append([run.name, *cells, change, PAPER_TOTALS.get(run.name)])
    if not any(run.name in PAPER_TOTALS for run in runs):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table(tuple(columns), rows)


def _show_total(value: float, low: float | None, high: float | None) -> str:
    return percent(value) if low is None else f"{percent(value)} ({percents(low, high)})"


def tabulate_differences(first: Report, other: Report, differences: dict[str, Difference]) -> Table:
    """A row for each dimension and total that one of the two has."""
    columns = (
        Column("percent", ("row",)),
        Column(first.name, ("first",), percent, figure=True),
        Column(other.name, ("other",), percent, figure=True),
        Column("paired difference", ("difference",), points, figure=True),
        Column("95 % interval", ("low", "high"), span, figure=True),
        Column("verdict", ("verdict",)),
        Column("p", ("p",), lambda p: f"{p:.2g}", figure=True),
        Column("pairs", ("pairs",), count, figure=True),
        Column("prompts", ("prompts",), count, figure=True),
        Column(f"only in {first.name}", ("only_first",), count, figure=True),
        Column(f"only in {other.name}", ("only_other",), count, figure=True),
    )
    rows = {name: [name, first.score(name), other.score(name), *[None] * 8] for name in (*DIMENSIONS, *TOTALS)}
    for name, x in differences.items():
        counts = x.videos, x.prompts, x.only_first, x.only_other
        rows[name][3:] = [x.mean, (x.low, x.high), x.verdict, x.p, *counts]
    return Table(columns, [row for row in rows.values() if any(x is not None for x in row[1:])])


def stack_differences(runs: list[Report], differences: Differences) -> Table:
    """The differences of all runs in one table, each row with its run."""
    tables = {run.name: tabulate_differences(runs[0], run, differences[run.name]) for run in runs[1:]}
    rows = [[label, *row] for label, table in tables.items() for row in table.rows]
    return Table((Column("run", ("run",)), *next(iter(tables.values())).columns), rows)


def explain_totals(runs: list[Report]) -> list[str]:
    """Why runs have no total, and what else a reader has to know of them."""
    lines = []
    for run in runs:
        if run.totals.total is None:
            reasons = (shorten(reason.split(";")[0], 90, placeholder=" ...") for reason in run.totals.reasons)
            lines.append(f"{run.name} has no Total: {'; '.join(reasons)}.")
        if run.warnings:
            lines.append(f"{run.name}: {'; '.join(run.warnings)}.")
    if tuple(run.name for run in runs) == PAPER_ROWS:
        lines.append("The runs are called after the paper's rows, in its order: label=PATH calls one otherwise.")
    return lines


def explain_pair(first: Report, other: Report, differences: dict[str, Difference]) -> list[str]:
    """What the numbers are over, and what they are not."""
    if not differences:
        return ["They have no scored video in common."]
    lines = [SAME_SCORES]
    if any(one.verdict != SAME for one in differences.values()):
        tested = sum(one.p is not None for one in differences.values())
        lines = [INTERVALS.format(rows="one row" if tested == 1 else f"{tested} rows")]
    if contradictions := ", ".join(list_contradictions(first, other, differences)):
        lines.append(f"Signs differ in {contradictions}: the pairs say otherwise than the scores over all videos.")
    if mismatches := list_mismatches(first, other):
        lines.append(f"Not the model's alone: {'; '.join(mismatches)}.")
    return [*lines, *(f"Note: {note}." for note in list_notes(first, other))]


def describe_comparison(runs: list[Report], differences: Differences) -> str:
    """Markdown."""
    first, *others = runs
    lines = [f"# VBench: {' and '.join(run.name for run in runs)}", "", *tabulate_totals(runs).to_markdown()]
    lines += [line for text in explain_totals(runs) for line in ("", text)]
    for other in others:
        lines += ["", f"## {other.name} against {first.name}"]
        lines += ["", *tabulate_differences(first, other, differences[other.name]).to_markdown()]
        lines += [line for text in explain_pair(first, other, differences[other.name]) for line in ("", text)]
    return "\n".join(lines) + "\n"


def write_comparison(out: Path, runs: list[Report], differences: Differences) -> None:
    """compare.md, .json and .png; compare.csv, with a row for each run and score; and compare.tex."""
    record = {
        "runs": [
            {"label": x.name, **asdict(x.totals), "intervals": {name: asdict(one) for name, one in x.intervals.items()}}
            for x in runs
        ],
        "differences": {label: {name: asdict(x) for name, x in those.items()} for label, those in differences.items()},
        "contradictions": {run.name: list_contradictions(runs[0], run, differences[run.name]) for run in runs[1:]},
    }
    tables = [tabulate_totals(runs).to_tex(f"{TOTALS_CAPTION}.")]
    for run in runs[1:]:
        caption = f"{run.name} against {runs[0].name}. {explain_pair(runs[0], run, differences[run.name])[0]}"
        tables.append(tabulate_differences(runs[0], run, differences[run.name]).to_tex(caption))
    write_plainly(out / "compare.md", describe_comparison(runs, differences))
    write_json(out / "compare.json", record)
    write_plainly(out / "compare.csv", stack_differences(runs, differences).to_csv())
    write_plainly(out / "compare.tex", "\n".join(tables))
    draw_differences(out / "compare.png", runs[0].name, differences)
