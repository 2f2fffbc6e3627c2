"""A comparison in words and tables: Markdown, JSON, CSV and LaTeX."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any

from ..intervals import FEWEST
from .chart import draw_differences
from .compare import PAPER_ROWS, PAPER_TOTALS, list_contradictions, list_mismatches, list_notes
from .paired import ALPHA, SAME, Difference
from .reading import write_json, write_plainly
from .report import TOTALS, Report
from .suite import DIMENSIONS
from .tables import Column, Table, count, percent, percents, points, span

Found = dict[str, dict[str, Difference]]  # by label and row, as compare_runs has it
TOTALS_CAPTION = "Totals in percent, with their 95 % intervals over prompts"


def tabulate_totals(runs: list[Report]) -> Table:
    """A row a run, beside the paper's where a run has the label of one of its rows."""
    columns = [
        Column("run", ("run",)),
        *(Column(name.capitalize(), (name, f"{name}_low", f"{name}_high"), _show_total, True) for name in TOTALS),
        Column(f"change of Total from {runs[0].name}", ("change",), lambda x: f"{x:+.1%}", True),
    ]
    rows = [_list_totals(runs[0], run) for run in runs]
    if any(run.name in PAPER_TOTALS for run in runs):
        columns.append(Column("Total in the paper (Wan2.1-1.3B)", ("paper",), percent, True))
        rows = [[*row, PAPER_TOTALS.get(run.name)] for row, run in zip(rows, runs, strict=True)]
    return Table(tuple(columns), rows)


def _list_totals(first: Report, run: Report) -> list[Any]:
    base, total, cells = first.totals.total, run.totals.total, []
    for name in TOTALS:
        found = run.intervals.get(name)
        cells.append((run.score(name), found and found.low, found and found.high))
    return [run.name, *cells, total / base - 1 if run is not first and base and total else None]


def _show_total(value: float, low: float | None, high: float | None) -> str:
    return percent(value) if low is None else f"{percent(value)} ({percents(low, high)})"


def tabulate_differences(first: Report, other: Report, found: dict[str, Difference]) -> Table:
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
    rows = []
    for name in (*DIMENSIONS, *TOTALS):
        scores = [run.score(name) for run in (first, other)]
        if name in found or any(score is not None for score in scores):
            rows.append([name, *scores, *_list_difference(found.get(name))])
    return Table(columns, rows)


def _list_difference(one: Difference | None) -> tuple[Any, ...]:
    if one is None:
        return (None,) * 8
    counts = one.videos, one.prompts, one.only_first, one.only_other
    return one.mean, (one.low, one.high), one.verdict, one.p, *counts


def stack_differences(runs: list[Report], found: Found) -> Table:
    """The differences of all runs in one table, each row with its run."""
    tables = {run.name: tabulate_differences(runs[0], run, found[run.name]) for run in runs[1:]}
    rows: list[list[Any]] = [[label, *row] for label, table in tables.items() for row in table.rows]
    return Table((Column("run", ("run",)), *next(iter(tables.values())).columns), rows)


def explain_totals(runs: list[Report]) -> list[str]:
    """Why runs have no total, and what else a reader has to know of them."""
    said = []
    for run in runs:
        if run.totals.total is None:
            reasons = (shorten(reason.split(";")[0], 90, placeholder=" ...") for reason in run.totals.reasons)
            said.append(f"{run.name} has no Total: {'; '.join(reasons)}.")
        if run.warnings:
            said.append(f"{run.name}: {'; '.join(run.warnings)}.")
    if tuple(run.name for run in runs) == PAPER_ROWS:
        said.append("The runs are called after the paper's rows, in its order: label=PATH calls one otherwise.")
    return said


def explain_pair(first: Report, other: Report, found: dict[str, Difference]) -> list[str]:
    """What the numbers are over, and what they are not."""
    if not found:
        return ["They have no scored video in common."]
    said = [_explain_intervals(found)]
    if contradictions := ", ".join(list_contradictions(first, other, found)):
        said.append(f"Signs differ in {contradictions}: the pairs say otherwise than the scores over all videos.")
    if mismatches := list_mismatches(first, other):
        said.append(f"Not the model's alone: {'; '.join(mismatches)}.")
    return [*said, *(f"Note: {note}." for note in list_notes(first, other))]


def _explain_intervals(found: dict[str, Difference]) -> str:
    if all(one.verdict == SAME for one in found.values()):
        return "Each video that both have scores the same in both: they may be one run's, and nothing is estimated."
    tested = sum(one.p is not None for one in found.values())
    rows = "one row" if tested == 1 else f"{tested} rows"
    return (
        "Scores are over all videos of a run, differences over the pairs, the videos that both have; intervals over "
        "prompts, as wide as Student's t and as lopsided as the bounds of scores make them (Korn and Graubard). A "
        f"verdict takes {FEWEST} prompts, and a p below {ALPHA}, which is corrected for the table's {rows} (Holm)."
    )


def describe_comparison(runs: list[Report], found: Found) -> str:
    """Markdown."""
    first, *others = runs
    lines = [f"# VBench: {' and '.join(run.name for run in runs)}", "", *tabulate_totals(runs).to_markdown()]
    lines += [line for said in explain_totals(runs) for line in ("", said)]
    for other in others:
        lines += ["", f"## {other.name} against {first.name}"]
        lines += ["", *tabulate_differences(first, other, found[other.name]).to_markdown()]
        lines += [line for said in explain_pair(first, other, found[other.name]) for line in ("", said)]
    return "\n".join(lines) + "\n"


def write_comparison(out: Path, runs: list[Report], found: Found) -> None:
    """compare.md, .json and .png; compare.csv, with a row for each run and score; and compare.tex."""
    said = {
        "runs": [
            {
                "label": run.name,
                **asdict(run.totals),
                "intervals": {name: asdict(x) for name, x in run.intervals.items()},
            }
            for run in runs
        ],
        "differences": {
            label: {name: asdict(one) for name, one in differences.items()} for label, differences in found.items()
        },
        "contradictions": {run.name: list_contradictions(runs[0], run, found[run.name]) for run in runs[1:]},
    }
    tables = [tabulate_totals(runs).to_tex(f"{TOTALS_CAPTION}.")]
    for run in runs[1:]:
        caption = f"{run.name} against {runs[0].name}. {explain_pair(runs[0], run, found[run.name])[0]}"
        tables.append(tabulate_differences(runs[0], run, found[run.name]).to_tex(caption))
    write_plainly(out / "compare.md", describe_comparison(runs, found))
    write_json(out / "compare.json", said)
    write_plainly(out / "compare.csv", stack_differences(runs, found).to_csv())
    write_plainly(out / "compare.tex", "\n".join(tables))
    draw_differences(out / "compare.png", runs[0].name, found)
