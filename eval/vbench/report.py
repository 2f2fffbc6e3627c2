"""What came of a run, for people and for programs: Markdown, JSON, CSV, LaTeX, and the leaderboard's zip."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from ..intervals import Estimate
from .aggregate import Totals, aggregate, find_intervals, find_reasons, normalise
from .check import Findings, describe_findings, read_findings
from .making import Making, describe_making, describe_settings, read_making
from .reading import write_plainly
from .results import Results, read_results
from .suite import DIMENSIONS, SEEDS, Plan, find_plan
from .tables import Column, Table, count, percent, percents
from .values import Result

TOTALS = ("quality", "semantic", "total")
SHOWN = ("total", "quality", "semantic")  # in the order of a headline
COLUMNS = (
    Column("dimension", ("dimension",)),
    Column("group", ("group",)),
    Column("score", ("score",), percent, figure=True),
    Column("95 % interval", ("low", "high"), percents, figure=True),
    Column("normalised", ("normalised",), percent, figure=True),
    Column("prompts", ("prompts",), count, figure=True),
    Column("videos", ("videos", "expected_videos"), lambda found, of: f"{found:,} of {of:,}", figure=True),
    Column("note", ("note",)),
)
CAPTION = "Scores in percent; normalised as VBench's leaderboard does it; intervals over prompts"


@dataclass(frozen=True)
class Report:
    """All that is known of a run. reasons: why a dimension doesn't count. intervals: by dimension, and of totals."""

    name: str
    results: Results
    totals: Totals
    reasons: dict[str, str]
    intervals: dict[str, Estimate]
    plan: Plan | None
    findings: Findings | None
    making: Making

    @property
    def warnings(self) -> tuple[str, ...]:
        return (*self.totals.warnings, *self.making.problems)


def collect(out: Path, name: str | None = None) -> Report:
    """Raises ValueError when there are no scores in `out`."""
    plan = find_plan(out)
    findings = read_findings(out / "check.json")
    results = read_results(out)
    totals, reasons = aggregate(results, plan, findings), find_reasons(results, plan, findings)
    intervals = {
        name: found
        for name, found in find_intervals(results).items()
        if name in DIMENSIONS or getattr(totals, name) is not None
    }
    name = name or out.resolve().name
    return Report(name, results, totals, reasons, intervals, plan, findings, read_making(out, plan))


def to_dict(report: Report) -> dict[str, Any]:
    """report.json; scores are 0 to 1."""
    plan = report.plan
    dimensions = {
        name: {
            "score": result.score,
            "interval": _to_interval(report, name),
            "normalised": None if result.score is None else normalise(name, result.score),
            "videos": len(result.videos),
            "counts": name not in report.reasons,
            "why_not": report.reasons.get(name),
            "filtered": result.filtered,
            "scorer": result.scorer,
            "note": result.note,
        }
        for name, result in report.results.scores.items()
    }
    making = asdict(report.making)
    return {
        "name": report.name,
        "comparable": report.totals.total is not None and not report.totals.warnings,
        "totals": asdict(report.totals),
        "intervals": {name: found for name in TOTALS if (found := _to_interval(report, name))},
        "dimensions": dimensions,
        "plan": plan and {name: value for name, value in asdict(plan).items() if name not in ("videos", "folder")},
        "check": report.findings and asdict(report.findings),
        "settings": making.pop("settings"),
        "making": making,
    }


def _to_interval(report: Report, name: str) -> dict[str, Any] | None:
    found = report.intervals.get(name)
    return found and {"low": found.low, "high": found.high, "prompts": found.prompts, "values": found.values}


def to_markdown(report: Report) -> str:
    lines = [f"# VBench: {report.name}", "", *map(hide_paths, describe_totals(report)), ""]
    lines += [*tabulate_scores(report).to_markdown(), "", f"{CAPTION}."]
    if report.findings:
        lines += ["", "## Videos", "", "```", *describe_findings(report.findings), "```"]
    made = [*describe_making(report.making), *describe_settings(report.making.settings)]
    if made:
        lines += ["", "## How they were made", "", "```", *(f"{what}: {value}" for what, value in made), "```"]
    return "\n".join(lines) + "\n"


def hide_paths(text: str) -> str:
    """Without the folders of absolute paths: a report goes to others."""
    return re.sub(r"(?<![\w/:.])(?:/[^\s/:;,'\"()]+)+/(?=[^\s/])", ".../", text)


def describe_totals(report: Report) -> list[str]:
    """The three figures, or what is missing for them, in words."""
    totals = report.totals
    named = {name.capitalize(): getattr(totals, name) for name in SHOWN}
    there = ", ".join(f"{name} {percent(value)}" for name, value in named.items() if value is not None)
    absent = ", ".join(name for name, value in named.items() if value is None)
    lines = [f"**{there}** (percent)" if there else ""]
    intervals = describe_intervals(report)
    lines += ["", intervals] if intervals else []
    lines += [f"**Withheld: {absent}**, because:", "", *(f"- {reason}" for reason in totals.reasons)] if absent else []
    lines += ["", *(f"- note: {warning}" for warning in report.warnings)] if report.warnings else []
    return lines if there else lines[1:]


def describe_intervals(report: Report) -> str:
    """Of the totals, in a line; empty where there are none."""
    found = {name: report.intervals[name] for name in SHOWN if name in report.intervals}
    told = [
        f"{name.capitalize()} {percents(x.low, x.high)} ({x.prompts:,} prompts)"
        for name, x in found.items()
        if x.low is not None
    ]
    return f"95 % intervals: {', '.join(told)}" if told else ""


def describe_report(report: Report) -> list[str]:
    """For the terminal."""
    totals = (line.replace("**", "") for line in describe_totals(report))
    return [*tabulate_scores(report).to_lines(), "", *totals]


def tabulate_scores(report: Report) -> Table:
    """A row for each of the sixteen, and for the totals that there are."""
    rows = [_list_dimension(report, name) for name in DIMENSIONS]
    for name in TOTALS:
        value, found = getattr(report.totals, name), report.intervals.get(name)
        if value is not None:
            interval = (found.low, found.high) if found else None
            rows.append([name.capitalize(), "total", value, interval, None, found and found.prompts, None, ""])
    return Table(COLUMNS, rows)


def _list_dimension(report: Report, name: str) -> list[Any]:
    result, found = report.results.scores.get(name), report.intervals.get(name)
    score = None if result is None else result.score
    expected = len(report.plan.expected(name)) if report.plan else DIMENSIONS[name].prompts * SEEDS
    return [
        name,
        DIMENSIONS[name].group,
        score,
        (found.low, found.high) if found else None,
        None if score is None else normalise(name, score),
        found and found.prompts,
        (len(result.videos) if result else 0, expected),
        _explain(result, report.reasons.get(name, "")),
    ]


def _explain(result: Result | None, why: str) -> str:
    """What there is to say of a dimension's score; the whole of why it is missing is said with the totals."""
    if result is None or result.score is None:
        return why.partition(":")[0]
    said = [hide_paths(why)]
    if result.note not in why:
        said.append(hide_paths(result.note))
    if result.filtered is False and "unfiltered" not in result.note:
        said.append("unfiltered")
    return "; ".join(filter(None, said))


def write_tables(out: Path, report: Report) -> None:
    """scores.csv and scores.tex."""
    table = tabulate_scores(report)
    write_plainly(out / "scores.csv", table.to_csv())
    write_plainly(out / "scores.tex", table.to_tex(f"VBench: {report.name}. {CAPTION}."))


def to_official(result: Result) -> dict[str, Any]:
    """As the official package's *_eval_results.json has it."""
    videos = [{"video_path": name, "video_results": value} for name, value in result.videos.items()]
    return {result.dimension: [result.score, videos]}


def write_leaderboard(out: Path, report: Report) -> str:
    """eval_results/ in the official format, and the leaderboard's zip of them where all sixteen are complete.

    There is no zip of less: the official script would take what is missing for 0. Returns what was done, in a line.
    """
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, result in report.results.scores.items():
            if result.score is not None:
                text = json.dumps(to_official(result), ensure_ascii=False, indent=4) + "\n"
                write_plainly(out / f"eval_results/{name}_eval_results.json", text)
                archive.writestr(zipfile.ZipInfo(f"{name}_eval_results.json"), text)  # dated 1980: the same bytes again
    file = out / "leaderboard.zip"
    if report.totals.total is None:
        file.unlink(missing_ok=True)
        return "no leaderboard.zip: it needs all sixteen dimensions complete"
    temporary = file.with_name(f".{file.name}.part")
    temporary.write_bytes(packed.getvalue())
    temporary.replace(file)
    return f"wrote {file}"
