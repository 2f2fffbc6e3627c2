"""A report as one HTML file, with its chart and thumbnails of its videos inside."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from train.videos import ClipError, probe, sample_frames

from .check import describe_findings
from .report import Report, describe_settings, list_rows
from .suite import Plan, Planned

STRIP, ROWS = 5, 96  # frames of a thumbnail, and their height in pixels
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: left; }
td.figure { text-align: right; font-variant-numeric: tabular-nums; } .totals { font-size: 1.5rem; }
.totals b { margin-right: 1.2rem; }
.partial { background: #fff4dc; border-left: 4px solid #d1813a; padding: .6rem 1rem; }
pre { background: #f6f6f6; padding: .7rem; overflow-x: auto; white-space: pre-wrap; }
img { max-width: 100%; } figure { margin: 0 0 1rem; } figcaption { font-size: .85rem; color: #555; }
"""


def to_html(report: Report, chart: Path, videos: Path | None) -> str:
    """videos: the folder that thumbnails are taken from; None leaves them out."""
    parts = [
        f"<h1>VBench: {escape(report.name)}</h1>",
        *_list_totals(report),
        _embed(chart.read_bytes(), "png", "chart"),
    ]
    parts.append("<table><tr><th>dimension<th>group<th>score<th>normalised<th>videos<th></tr>")
    for name, group, score, normalised, count, said in list_rows(report):
        figures = "".join(f'<td class="figure">{escape(text)}</td>' for text in (score, normalised, count))
        parts.append(f"<tr><td>{escape(name)}</td><td>{group}</td>{figures}<td>{escape(said)}</td></tr>")
    parts.append("</table><p>Percent; normalised as VBench's leaderboard does it.</p>")
    if videos and report.plan:
        parts += ["<h2>Videos</h2>", *_draw_thumbnails(videos, report.plan)]
    if report.findings:
        parts.append(f"<pre>{escape(chr(10).join(describe_findings(report.findings)))}</pre>")
    if report.settings:
        text = "\n".join(describe_settings(report.settings))
        parts.append(f"<h2>How they were made</h2><pre>{escape(text)}</pre>")
    head = f'<meta charset="utf-8"><title>VBench: {escape(report.name)}</title><style>{STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>\n" + "\n".join(parts) + "\n</body></html>\n"


def _list_totals(report: Report) -> Iterator[str]:
    totals = report.totals
    named = {"Total": totals.total, "Quality": totals.quality, "Semantic": totals.semantic}
    there = "".join(f"<b>{name} {100 * value:.2f}</b>" for name, value in named.items() if value is not None)
    if there:
        yield f'<p class="totals">{there}</p>'
    absent = ", ".join(name for name, value in named.items() if value is None)
    if absent:
        reasons = "".join(f"<li>{escape(reason)}</li>" for reason in totals.reasons)
        yield f'<div class="partial"><b>Withheld: {absent}</b>, because<ul>{reasons}</ul></div>'
    if totals.warnings:
        yield f"<ul>{''.join(f'<li>{escape(warning)}</li>' for warning in totals.warnings)}</ul>"


def _draw_thumbnails(folder: Path, plan: Plan) -> Iterator[str]:
    """The first video of each dimension that can be read; one of several dimensions is shown once."""
    for video, strip in draw_strips(folder, plan):
        caption = f"{video.prompt} ({', '.join(name.replace('_', ' ') for name in video.dimensions)})"
        data = BytesIO()
        strip.save(data, "jpeg", quality=85)
        picture = _embed(data.getvalue(), "jpeg", video.name)
        yield f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def draw_strips(folder: Path, plan: Plan) -> Iterator[tuple[Planned, Image.Image]]:
    shown: set[str] = set()
    for dimension in plan.dimensions:
        for video in plan.expected(dimension) if dimension not in shown else ():
            try:
                strip = draw_strip(folder / video.name)
            except ClipError:
                continue
            shown.update(video.dimensions)
            yield video, strip
            break


def draw_strip(path: Path) -> Image.Image:
    """Frames spread over a video, side by side. Raises ClipError."""
    frames = [frame for _, frame in sample_frames(path, STRIP / max(probe(path).seconds, 1e-3), ROWS)]
    if not frames:
        raise ClipError(f"{path}: has no frame")
    return Image.fromarray(np.concatenate(frames[:STRIP], axis=1))


def _embed(data: bytes, kind: str, title: str) -> str:
    return f'<img alt="{escape(title)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
