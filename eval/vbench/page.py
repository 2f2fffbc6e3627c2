"""A report as one HTML file, with its chart and frames of its videos inside."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

from ..making import describe_cost, describe_making
from .chart import describe_chart
from .check import describe_findings
from .document import draw_strips, embed, isolate, list_facts, list_items, show_strip, write_page
from .report import CAPTION, Report, describe_intervals, hide_paths, tabulate_scores, tell_scores
from .tables import percent


def to_html(report: Report, out: Path) -> str:
    """out: the folder of the run, which the page goes to, with the chart."""
    cost = describe_cost(report.making)  # what a video took, in a line beside the totals
    parts = [
        f"<h1>VBench: {isolate(report.name)}</h1>",
        *_list_totals(report),
        f'<p class="note">{escape("; ".join(f"{what}: {value}" for what, value in cost.items()))}</p>' if cost else "",
        f"<p>{embed((out / 'chart.png').read_bytes(), 'png', describe_chart(report))}</p>",
        tabulate_scores(report).to_html(CAPTION),
        *_list_videos(report, out),
    ]
    if report.findings:
        parts.append(f"<pre>{escape(chr(10).join(describe_findings(report.findings)))}</pre>")
    if made := describe_making(report.making):
        parts += ["<h2>How they were made</h2>", list_facts(made)]
    return write_page(f"VBench: {report.name}", parts)


def _list_totals(report: Report) -> Iterator[str]:
    if known := report.figures():
        items = (f"<li>{name.capitalize()} <b>{percent(value)}</b></li>" for name, value in known.items())
        yield f'<ul class="totals">{"".join(items)}</ul>'
    if intervals := describe_intervals(report):
        yield f'<p class="note">{intervals}</p>'
    if withheld := report.withheld():
        reasons = list_items(map(hide_paths, report.totals.reasons))
        yield f'<div class="partial"><b>Withheld: {withheld}</b>, because{reasons}</div>'
    if report.warnings:
        yield list_items(map(hide_paths, report.warnings))


def _list_videos(report: Report, out: Path) -> Iterator[str]:
    """Strips of the first video of each dimension that can be read."""
    if report.plan is None:
        return
    yield "<h2>Videos</h2>"
    folder = report.plan.find_videos(out)
    strips = draw_strips(folder, report.plan)
    for video, strip in strips.shown:
        caption = f"{isolate(video.prompt)} ({escape(tell_scores(report, video.name, video.dimensions))})"
        yield show_strip(strip, folder / video.name, out, video.prompt, caption)
    if strips.left_out:
        yield f"<p>{escape(hide_paths(strips.describe_left_out()))}</p>"
