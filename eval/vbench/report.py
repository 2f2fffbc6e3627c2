"""What came of a run, for people and for programs: Markdown, JSON, CSV, LaTeX, and the leaderboard's zip."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from fps_flex.checks import some

from ..intervals import Estimate
from ..making import Making, describe_making, summarise
from ..reading import NoFile, plain, read_json, write_plainly
from .aggregate import Totals, aggregate, find_intervals, find_reasons, normalise
from .check import Findings, describe_findings
from .ours import is_ours, read_written, writing
from .results import Results, read_results
from .source import open_source
from .suite import DIMENSIONS, SEEDS, Plan
from .tables import Column, Table, count, percent, percents
from .values import Result, add_note

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

    def interval(self, name: str) -> dict[str, Any] | None:
        one = self.intervals.get(name)
        return one and {part: getattr(one, part) for part in ("low", "high", "prompts", "values")}

    def figures(self) -> dict[str, float]:
        """The totals that there are."""
        return {name: value for name in SHOWN if (value := getattr(self.totals, name)) is not None}

    def withheld(self) -> str:
        """The names of the others."""
        return ", ".join(name.capitalize() for name in SHOWN if name not in self.figures())

    @property
    def quick(self) -> bool:
        return bool(self.plan and self.plan.quick)

    def score(self, name: str) -> float | None:
        if name not in DIMENSIONS:
            return getattr(self.totals, name)
        result = self.results.scores.get(name)
        return result and result.score


def collect(path: Path, name: str | None = None) -> Report:
    """path: as of `read_results`. name: none takes the path's. Raises ValueError where there are no scores."""
    source = open_source(path)
    plan, findings, results = source.plan, source.findings, read_results(source)
    reasons = find_reasons(results, plan, findings)
    totals, intervals = aggregate(results, plan, reasons), find_intervals(results)
    intervals = {name: x for name, x in intervals.items() if getattr(totals, name, 0) is not None}
    name = plain(" ".join((name or path.resolve().name).split()))
    return Report(source.run, name, results, totals, reasons, intervals, plan, findings, read_making(source.run, plan))


def read_making(out: Path, plan: Plan | None) -> Making:
    """Of the records in a run's folder; of videos made elsewhere nothing. What is no record is left out and counted."""
    records, broken = [], []
    for video in plan.videos if plan and not plan.folder else ():
        file = out / "records" / f"{video.name.removesuffix('.mp4')}.json"
        try:
            record = read_json(file, dict[str, Any])
        except NoFile:
            continue
        except ValueError:
            record = {}
        if "prompt" in record:
            records.append(record)
        else:
            broken.append(file.name)
    what = "record of a video is" if len(broken) == 1 else "records of videos are"
    problem = f"{len(broken):,} {what} broken and left out of how they were made: {some(broken)}"
    return summarise(records, [problem] if broken else [])


def to_dict(report: Report) -> dict[str, Any]:
    """report.json; scores are 0 to 1."""
    dimensions = {
        name: {
            "score": result.score,
            "interval": report.interval(name),
            "normalised": None if result.score is None else normalise(name, result.score),
            "videos": len(result.videos),
            "counts": name not in report.reasons,
            "why_not": report.reasons.get(name),
            **{part: getattr(result, part) for part in ("filtered", "scorer", "note")},
        }
        for name, result in report.results.scores.items()
    }
    return {
        "name": report.name,
        "comparable": report.totals.total is not None and not report.totals.warnings,
        "totals": asdict(report.totals),
        "intervals": {name: report.interval(name) for name in TOTALS if name in report.intervals},
        "dimensions": dimensions,
        "plan": report.plan
        and {name: x for name, x in asdict(report.plan).items() if name not in ("videos", "folder")},
        "check": report.findings and asdict(report.findings),
        "making": asdict(report.making),
    }


def to_markdown(report: Report) -> str:
    lines = describe_report(report)
    if report.findings:
        lines += ["", "## Videos", "", "```", *describe_findings(report.findings), "```"]
    if made := describe_making(report.making):
        lines += ["", "## How they were made", "", "```", *(f"{what}: {value}" for what, value in made.items()), "```"]
    return "\n".join(lines) + "\n"


def describe_report(report: Report) -> list[str]:
    """The totals and the scores, in lines of Markdown."""
    table = tabulate_scores(report).to_markdown()
    return [f"# VBench: {report.name}", "", *map(hide_paths, describe_totals(report)), *table, "", f"{CAPTION}."]


def hide_paths(text: str) -> str:
    """Without the folders of absolute paths: a report goes to others."""
    return re.sub(r"(?<![\w/:.])(?:/[^\s/:;,'\"()]+)+/(?=[^\s/])", ".../", text)


def describe_totals(report: Report) -> list[str]:
    """The three figures, or what is missing for them, in paragraphs of Markdown."""
    there = ", ".join(f"{name.capitalize()} {percent(value)}" for name, value in report.figures().items())
    lines = [f"**{there}** (percent)", ""] if there else []
    if intervals := describe_intervals(report):
        lines += [intervals, ""]
    if withheld := report.withheld():
        lines += [f"**Withheld: {withheld}**, because:", "", *(f"- {reason}" for reason in report.totals.reasons), ""]
    return lines + ([*(f"- note: {warning}" for warning in report.warnings), ""] if report.warnings else [])


def describe_intervals(report: Report) -> str:
    """Of the totals, in a line; empty where there are none."""
    told = [
        f"{name.capitalize()} {percents(x.low, x.high)} ({x.prompts:,} prompts)"
        for name in SHOWN
        if (x := report.intervals.get(name)) and x.low is not None
    ]
    return f"95 % intervals: {', '.join(told)}" if told else ""


def tabulate_scores(report: Report) -> Table:
    """A row for each of the sixteen, and for the totals that there are."""
    rows = []
    for name in (*DIMENSIONS, *(name for name in TOTALS if name in report.figures())):
        score, estimate = report.score(name), report.intervals.get(name)
        known = [score, estimate and (estimate.low, estimate.high)]
        prompts = estimate and estimate.prompts
        if name in TOTALS:
            rows.append([name.capitalize(), "total", *known, None, prompts, None, ""])
            continue
        result, normalised = report.results.scores.get(name), None if score is None else normalise(name, score)
        expected = len(report.plan.expected(name)) if report.plan else DIMENSIONS[name].prompts * SEEDS
        videos = len(result.videos) if result else 0, expected
        why = _explain(result, report.reasons.get(name, ""))
        rows.append([name, DIMENSIONS[name].group, *known, normalised, prompts, videos, why])
    return Table(COLUMNS, rows)


def _explain(result: Result | None, why: str) -> str:
    """What there is to say of a dimension's score; the whole of why it is missing is said with the totals."""
    if result is None or result.score is None:
        return why.partition(":")[0]
    note = "" if result.note in why else result.note
    unfiltered = result.filtered is False and "unfiltered" not in result.note
    return add_note(hide_paths(why), hide_paths(note), "unfiltered" if unfiltered else "")


def to_official(result: Result, incomplete: bool) -> str:
    """As the official package's *_eval_results.json has it, with what tells how the score comes of the videos."""
    marks = {"filtered": False} if result.filtered is False else {}
    marks |= {"incomplete": True} if incomplete else {}
    videos = []
    for name, value in result.videos.items():
        frames = {"frame_count": result.weights[name]} if result.weights else {}
        last = {"cur_sim": result.last[name]} if result.last else {}
        videos.append({"video_path": name, "video_results": value, **frames, **last, **marks})
    return json.dumps({result.dimension: [result.score, videos]}, ensure_ascii=False, indent=4) + "\n"


def zip_texts(texts: dict[str, str]) -> bytes:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(zipfile.ZipInfo(name), text)  # dated 1980: the same bytes again
    return packed.getvalue()


def tell_scores(report: Report, video: str, dimensions: Iterable[str] = ()) -> str:
    """A video's own score in each dimension that it is scored in, and those named."""
    values = {name: result.per_video().get(video) for name, result in report.results.scores.items()}
    scored = {name: "" if values.get(name) is None else f" {percent(values[name])}" for name in DIMENSIONS}
    return ", ".join(name.replace("_", " ") + text for name, text in scored.items() if text or name in dimensions)


def write_leaderboard(out: Path, report: Report) -> str:
    """eval_results/ in the official format, and the leaderboard's zip of them where all sixteen are complete.

    There is no zip of less: the official script would take what is missing for 0. What is the user's is left alone.
    Returns what was done, in a line.
    """
    texts = {
        f"{name}_eval_results.json": to_official(result, report.quick or name in report.reasons)
        for name, result in report.results.scores.items()
        if result.score is not None
    }
    whole = report.totals.total is not None
    files: dict[str, str | bytes] = {f"eval_results/{name}": text for name, text in texts.items()}
    files |= {ZIP: zip_texts(texts)} if whole else {}
    written = read_written(out)
    theirs = [name for name in files if not is_ours(out / name, name, written)]
    ours = {name: content for name, content in files.items() if name not in theirs}
    with writing(out, ours):
        for name, content in ours.items():
            write_plainly(out / name, content)
    if not whole and ZIP in written and is_ours(out / ZIP, ZIP, written):
        (out / ZIP).unlink(missing_ok=True)
    lines = [] if ZIP in theirs else [f"wrote {out / ZIP}"]
    lines = lines if whole else [f"no {ZIP}: it needs all sixteen dimensions complete"]
    return "; ".join([*lines, *(f"{out / name} isn't this command's, and is left as it is" for name in theirs)])
