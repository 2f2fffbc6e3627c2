"""The tables of a comparison: totals of each run, and each run's differences from the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.whole import write_text

from .compare import PAPER_TOTALS, Run
from .paired import Difference
from .report import TOTALS, find_intervals
from .suite import DIMENSIONS
from .tables import Column, Table, count, percent, percents, points, span

TOTALS_CAPTION = "Totals in percent, with their 95 % intervals over prompts"
DIFFERENCES_CAPTION = (
    "{other} against {first}, in percent: scores are over all videos of a run, differences over the videos that both "
    "have; 95 % intervals over prompts"
)
Found = dict[str, dict[str, Difference]]  # by label and row, as compare_runs has it


def tabulate_totals(runs: list[Run]) -> Table:
    """A row a run. Beside the paper's where a run has the label of one of its rows."""
    base = runs[0].totals.total
    columns = [Column("run", ("run",))]
    for name in TOTALS:
        columns.append(Column(name.capitalize(), (name,), percent, figure=True))
        columns.append(Column("interval", (f"{name}_low", f"{name}_high"), percents, figure=True))
    columns.append(Column(f"change from {runs[0].label}", ("change",), lambda x: f"{x:+.1%}", figure=True))
    columns.append(Column("Total in the paper (Wan2.1-1.3B)", ("paper",), percent, figure=True))
    rows = []
    for run in runs:
        totals, intervals, row = run.totals, find_intervals(run.results), [run.label]
        for name in TOTALS:
            value, found = getattr(totals, name), intervals.get(name)
            row += [value, (found.low, found.high) if found and value is not None else None]
        change = totals.total / base - 1 if run is not runs[0] and base and totals.total else None
        rows.append([*row, change, PAPER_TOTALS.get(run.label)])
    table = Table(tuple(columns), rows)
    return table if any(row[-1] is not None for row in rows) else _without_last(table)


def _without_last(table: Table) -> Table:
    return Table(table.columns[:-1], [row[:-1] for row in table.rows])


def tabulate_differences(first: Run, other: Run, found: dict[str, Difference]) -> Table:
    """A row for each dimension and total that one of the two has."""
    columns = (
        Column("score", ("row",)),
        Column(first.label, ("first",), percent, figure=True),
        Column(other.label, ("other",), percent, figure=True),
        Column("difference", ("difference",), points, figure=True),
        Column("95 % interval", ("low", "high"), span, figure=True),
        Column("p", ("p",), lambda p: f"{p:.2g}", figure=True),
        Column("videos", ("videos",), count, figure=True),
        Column("prompts", ("prompts",), count, figure=True),
        Column("verdict", ("verdict",)),
    )
    rows = []
    for name in (*DIMENSIONS, *TOTALS):
        scores, one = [find_score(run, name) for run in (first, other)], found.get(name)
        if one or any(score is not None for score in scores):
            said = (one.mean, (one.low, one.high), _p(one), one.videos, one.prompts, judge(one)) if one else (None,) * 6
            rows.append([name, *scores, *said])
    return Table(columns, rows)


def judge(found: Difference) -> str:
    if hasattr(found, "verdict"):
        return found.verdict
    return ("better" if found.mean > 0 else "worse") if found.certain else "not told apart"


def _p(found: Difference) -> float | None:
    return getattr(found, "p", None)


def find_score(run: Run, name: str) -> float | None:
    """Of a dimension or a total."""
    if name in TOTALS:
        return getattr(run.totals, name)
    result = run.results.scores.get(name)
    return result and result.score


def stack_differences(runs: list[Run], found: Found) -> Table:
    """The differences of all runs in one table, each row with its run."""
    tables = {run.label: tabulate_differences(runs[0], run, found[run.label]) for run in runs[1:]}
    rows: list[list[Any]] = [[label, *row] for label, table in tables.items() for row in table.rows]
    return Table((Column("run", ("run",)), *next(iter(tables.values())).columns), rows)


def write_compare_tables(out: Path, runs: list[Run], found: Found) -> None:
    """compare.csv, with a row for each run and score, and compare.tex, with a table for each run."""
    write_text(out / "compare.csv", stack_differences(runs, found).to_csv())
    tables = [tabulate_totals(runs).to_tex(f"{TOTALS_CAPTION}.")]
    for run in runs[1:]:
        caption = DIFFERENCES_CAPTION.format(other=run.label, first=runs[0].label)
        tables.append(tabulate_differences(runs[0], run, found[run.label]).to_tex(f"{caption}."))
    write_text(out / "compare.tex", "\n".join(tables))
