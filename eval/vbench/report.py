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
from .check import Findings, describe_findings
from .making import Making, describe_making, describe_settings, read_making
from .ours import is_ours, read_written, writing
from .reading import plain, write_bytes, write_plainly
from .results import Results, read_results
from .source import open_source
from .suite import DIMENSIONS, SEEDS, Plan
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
    Column("videos", ("videos", "expected_videos"), lambda videos, of: f"{videos:,} of {of:,}", figure=True),
    Column("note", ("note",)),
)
ZIP = "leaderboard.zip"
CAPTION = "Scores in percent; normalised as VBench's leaderboard does it; intervals over prompts"


@dataclass(frozen=True)
class Report:
    """All that is known of a run, or of other scores, under the name that it has in the tables.

    path: the run's folder, or where the scores were read. reasons: why a dimension doesn't count. intervals: by
    dimension, and of totals.
    """

    path: Path
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

    @property
    def quick(self) -> bool:
        return bool(self.plan and self.plan.quick)

    def score(self, name: str) -> float | None:
        """Of a dimension or a total."""
        if name not in DIMENSIONS:
            return getattr(self.totals, name)
        result = self.results.scores.get(name)
        return result and result.score


def collect(path: Path, name: str | None = None) -> Report:
    """path: as of `read_results`. name: none takes the path's. Raises ValueError where there are no scores."""
    source = open_source(path)
    plan, findings, results = source.plan, source.findings, read_results(source)
    reasons = find_reasons(results, plan, findings)
    totals = aggregate(results, plan, reasons)
    intervals = {
        name: interval
        for name, interval in find_intervals(results).items()
        if name in DIMENSIONS or getattr(totals, name) is not None
    }
    name = plain(" ".join((name or path.resolve().name).split()))
    return Report(source.run, name, results, totals, reasons, intervals, plan, findings, read_making(source.run, plan))


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
        "intervals": {name: interval for name in TOTALS if (interval := _to_interval(report, name))},
        "dimensions": dimensions,
        "plan": plan and {name: value for name, value in asdict(plan).items() if name not in ("videos", "folder")},
        "check": report.findings and asdict(report.findings),
        "settings": making.pop("settings"),
        "making": making,
    }


def _to_interval(report: Report, name: str) -> dict[str, Any] | None:
    interval = report.intervals.get(name)
    return interval and {
        "low": interval.low,
        "high": interval.high,
        "prompts": interval.prompts,
        "values": interval.values,
    }


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
    intervals = {name: report.intervals[name] for name in SHOWN if name in report.intervals}
    told = [
        f"{name.capitalize()} {percents(x.low, x.high)} ({x.prompts:,} prompts)"
        for name, x in intervals.items()
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
        value, estimate = getattr(report.totals, name), report.intervals.get(name)
        if value is not None:
            interval = (estimate.low, estimate.high) if estimate else None
            rows.append([name.capitalize(), "total", value, interval, None, estimate and estimate.prompts, None, ""])
    return Table(COLUMNS, rows)


def _list_dimension(report: Report, name: str) -> list[Any]:
    result, interval, score = report.results.scores.get(name), report.intervals.get(name), report.score(name)
    expected = len(report.plan.expected(name)) if report.plan else DIMENSIONS[name].prompts * SEEDS
    return [
        name,
        DIMENSIONS[name].group,
        score,
        (interval.low, interval.high) if interval else None,
        None if score is None else normalise(name, score),
        interval and interval.prompts,
        (len(result.videos) if result else 0, expected),
        _explain(result, report.reasons.get(name, "")),
    ]


def _explain(result: Result | None, why: str) -> str:
    """What there is to say of a dimension's score; the whole of why it is missing is said with the totals."""
    if result is None or result.score is None:
        return why.partition(":")[0]
    parts = [hide_paths(why)]
    if result.note not in why:
        parts.append(hide_paths(result.note))
    if result.filtered is False and "unfiltered" not in result.note:
        parts.append("unfiltered")
    return "; ".join(filter(None, parts))


def write_tables(out: Path, report: Report) -> None:
    """scores.csv and scores.tex."""
    table = tabulate_scores(report)
    write_plainly(out / "scores.csv", table.to_csv())
    write_plainly(out / "scores.tex", table.to_tex(f"VBench: {report.name}. {CAPTION}."))


def to_official(result: Result, incomplete: bool) -> dict[str, Any]:
    """As the official package's *_eval_results.json has it, with what tells how the score comes of the videos."""
    marks = {"filtered": False} if result.filtered is False else {}
    marks |= {"incomplete": True} if incomplete else {}
    videos = []
    for name, value in result.videos.items():
        frames = {"frame_count": result.weights[name]} if result.weights else {}
        last = {"cur_sim": result.last[name]} if result.last else {}
        videos.append({"video_path": name, "video_results": value, **frames, **last, **marks})
    return {result.dimension: [result.score, videos]}


def list_official(report: Report) -> dict[str, str]:
    """The text of each file in the official format, by its name."""
    return {
        f"{name}_eval_results.json": json.dumps(
            to_official(result, report.quick or name in report.reasons), ensure_ascii=False, indent=4
        )
        + "\n"
        for name, result in report.results.scores.items()
        if result.score is not None
    }


def pack_leaderboard(texts: dict[str, str]) -> bytes:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(zipfile.ZipInfo(name), text)  # dated 1980: the same bytes again
    return packed.getvalue()


def write_leaderboard(out: Path, report: Report) -> str:
    """eval_results/ in the official format, and the leaderboard's zip of them where all sixteen are complete.

    There is no zip of less: the official script would take what is missing for 0. What is the user's is left alone.
    Returns what was done, in a line.
    """
    texts, whole = list_official(report), report.totals.total is not None
    files = {f"eval_results/{name}": text.encode() for name, text in texts.items()}
    files |= {ZIP: pack_leaderboard(texts)} if whole else {}
    written = read_written(out)
    theirs = [name for name in files if not is_ours(out / name, name, written)]
    with writing(out, (name for name in files if name not in theirs)):
        for name, data in files.items():
            if name not in theirs:
                write_bytes(out / name, data)
    if not whole and ZIP in written and is_ours(out / ZIP, ZIP, written):
        (out / ZIP).unlink(missing_ok=True)
    lines = [f"wrote {out / ZIP}"] if whole and ZIP not in theirs else []
    lines += [] if whole else [f"no {ZIP}: it needs all sixteen dimensions complete"]
    return "; ".join([*lines, *(f"{out / name} isn't this command's, and is left as it is" for name in theirs)])
