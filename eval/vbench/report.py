"""What came of a run, for people and for programs: Markdown, HTML, JSON, a chart, and the leaderboard's zip."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from train.pictures import save_figure
from train.whole import write_text

from .aggregate import Totals, aggregate, find_reasons, normalise
from .check import Findings, describe_findings, read_findings
from .reading import read_json, shape
from .results import Results, read_results
from .suite import DIMENSIONS, SEEDS, Plan, find_plan
from .values import Result

COLOURS = {"quality": "#3b6fb6", "semantic": "#d1813a"}


@dataclass(frozen=True)
class Report:
    """All that is known of a run. reasons: why a dimension doesn't count. settings: how its videos were made."""

    name: str
    results: Results
    totals: Totals
    reasons: dict[str, str]
    plan: Plan | None
    findings: Findings | None
    settings: dict[str, Any]


def collect(out: Path, name: str | None = None) -> Report:
    """Raises ValueError when there are no scores in `out`."""
    plan = find_plan(out)
    findings = read_findings(out / "check.json")
    results = read_results(out)
    totals, reasons = aggregate(results, plan, findings), find_reasons(results, plan, findings)
    return Report(name or out.resolve().name, results, totals, reasons, plan, findings, _read_settings(out, plan))


def _read_settings(out: Path, plan: Plan | None) -> dict[str, Any]:
    """Those of the first video that has a record: all of a run have the same."""
    for video in plan.videos if plan and not plan.folder else ():
        file = out / "records" / f"{video.name.removesuffix('.mp4')}.json"
        if file.is_file():
            said = shape(str(file), dict[str, Any], read_json(file))
            of_one = ("name", "prompt", "seed", "regimes", "seconds", "peak_gb", "sha256")
            return {name: value for name, value in said.items() if name not in of_one}
    return {}


def to_dict(report: Report) -> dict[str, Any]:
    """report.json; scores are 0 to 1."""
    plan = report.plan
    dimensions = {
        name: {
            "score": result.score,
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
    return {
        "name": report.name,
        "comparable": report.totals.total is not None and not report.totals.warnings,
        "totals": asdict(report.totals),
        "dimensions": dimensions,
        "plan": plan and {name: value for name, value in asdict(plan).items() if name not in ("videos", "folder")},
        "check": report.findings and asdict(report.findings),
        "settings": report.settings,
    }


def to_markdown(report: Report) -> str:
    lines = [f"# VBench: {report.name}", "", *describe_totals(report.totals), ""]
    lines += ["| dimension | group | score | normalised | videos | |", "|---|---|---:|---:|---:|---|"]
    for row in list_rows(report):
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", "Percent; normalised as VBench's leaderboard does it."]
    if report.findings:
        lines += ["", "## Videos", "", "```", *describe_findings(report.findings), "```"]
    if report.settings:
        lines += ["", "## How they were made", "", "```", *describe_settings(report.settings), "```"]
    return "\n".join(lines) + "\n"


def describe_totals(totals: Totals) -> list[str]:
    """The three figures, or what is missing for them, in words."""
    named = (("Total", totals.total), ("Quality", totals.quality), ("Semantic", totals.semantic))
    there = ", ".join(f"{name} {100 * value:.2f}" for name, value in named if value is not None)
    absent = ", ".join(name for name, value in named if value is None)
    lines = [f"**{there}** (percent)" if there else ""]
    lines += [f"**Withheld: {absent}**, because:", "", *(f"- {reason}" for reason in totals.reasons)] if absent else []
    lines += ["", *(f"- note: {warning}" for warning in totals.warnings)] if totals.warnings else []
    return lines if there else lines[1:]


def describe_report(report: Report) -> list[str]:
    """For the terminal."""
    lines = [f"{'dimension':<24}{'score':>8}{'normalised':>12}   videos"]
    for name, _, score, normalised, count, said in list_rows(report):
        lines.append(f"{name:<24}{score:>8}{normalised:>12}   {count}{f'  {said}' if said else ''}")
    return [*lines, "", *(line.replace("**", "") for line in describe_totals(report.totals))]


def list_rows(report: Report) -> list[list[str]]:
    """Dimension, group, score, normalised, videos, and what there is to say of it; a row for each of the sixteen."""
    rows = []
    for name, dimension in DIMENSIONS.items():
        result = report.results.scores.get(name)
        score = None if result is None else result.score
        figures = ["-", "-"] if score is None else [f"{100 * score:.2f}", f"{100 * normalise(name, score):.2f}"]
        expected = len(report.plan.expected(name)) if report.plan else dimension.prompts * SEEDS
        why = report.reasons.get(name, "")
        said = [why.partition(":")[0] if score is None else why]  # the whole of it is said with the totals
        if result and score is not None and result.note not in why:
            said.append(result.note)
        if result and result.filtered is False and "unfiltered" not in result.note:
            said.append("unfiltered")
        count = f"{len(result.videos) if result else 0:,} of {expected:,}"
        rows.append([name, dimension.group, *figures, count, "; ".join(filter(None, said))])
    return rows


def describe_settings(settings: dict[str, Any]) -> list[str]:
    return [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items()]


def draw_scores(path: Path, report: Report) -> None:
    """A bar a dimension, normalised; pale where it doesn't count."""
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    axes = figure.subplots()
    for row, (name, dimension) in enumerate(DIMENSIONS.items()):
        result = report.results.scores.get(name)
        if result is None or result.score is None:
            axes.text(1, row, "no score", va="center", fontsize=8, color="grey")
            continue
        value, counts = 100 * normalise(name, result.score), name not in report.reasons
        axes.barh(row, value, color=COLOURS[dimension.group], alpha=1.0 if counts else 0.35)
        label = f"{value:.1f}" if counts else f"{value:.1f}, partial"
        axes.text(max(value, 0) + 1, row, label, va="center", fontsize=8)
    axes.set_yticks(range(len(DIMENSIONS)), [name.replace("_", " ") for name in DIMENSIONS])
    axes.set_ylim(len(DIMENSIONS) - 0.4, -0.6)
    axes.set_xlim(min(0, axes.get_xlim()[0]), max(115, 1.08 * axes.get_xlim()[1]))
    axes.set_xlabel("normalised score, percent")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    handles = [Patch(color=colour, label=group) for group, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    save_figure(figure, path)


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
                write_text(out / f"eval_results/{name}_eval_results.json", text)
                archive.writestr(zipfile.ZipInfo(f"{name}_eval_results.json"), text)  # dated 1980: the same bytes again
    file = out / "leaderboard.zip"
    if report.totals.total is None:
        file.unlink(missing_ok=True)
        return "no leaderboard.zip: it needs all sixteen dimensions complete"
    aside = file.with_name(f".{file.name}.part")
    aside.write_bytes(packed.getvalue())
    aside.replace(file)
    return f"wrote {file}"
