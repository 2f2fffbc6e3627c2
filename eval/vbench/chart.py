"""The charts: of a run's scores, which is also told in words, and of how runs differ."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from train.common.pictures import save_figure

from .aggregate import normalise
from .paired import Difference
from .report import TOTALS, Report
from .suite import DIMENSIONS

COLOURS = {"quality": "#3b6fb6", "semantic": "#d1813a"}
HATCH = "////"
LONGEST, WRAPPED = 50, 55  # characters of a model's name above the chart, and of a line below one


def draw_scores(path: Path, report: Report) -> None:
    """A bar a dimension, normalised, with its interval; hatched where it isn't the full official score."""
    figure = Figure(figsize=(5.6, 6.4), layout="constrained")
    axes = figure.subplots()
    marks = {name: mark for name in DIMENSIONS if (mark := find_mark(report, name)) is not None}
    for row, name in enumerate(DIMENSIONS):
        _draw_bar(axes, row, name, report, marks.get(name))
    axes.set_yticks(range(len(DIMENSIONS)), [name.replace("_", " ") for name in DIMENSIONS])
    axes.set_ylim(len(DIMENSIONS) - 0.4, -0.6)
    axes.set_xlim(min(0, axes.get_xlim()[0]), max(145 if any(marks.values()) else 120, 1.15 * axes.get_xlim()[1]))
    axes.set_xlabel("normalised, percent; lines: 95 % intervals over prompts", fontsize=9)
    name = report.name if len(report.name) <= LONGEST else f"{report.name[: LONGEST - 3]}..."
    axes.set_title(f"VBench: {name}\n{describe_counts(report)}", fontsize=10, parse_math=False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    handles = [Patch(color=colour, label=group) for group, colour in COLOURS.items()]
    if different := sorted({mark for mark in marks.values() if mark}):
        label = f"hatched: {', '.join(different)}"
        handles.append(Patch(facecolor="white", edgecolor="#333333", hatch=HATCH, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    save_figure(figure, path)


def _draw_bar(axes: Axes, row: int, name: str, report: Report, mark: str | None) -> None:
    if mark is None:
        axes.text(1, row, "no score", va="center", fontsize=8, color="#555555")
        return
    value, colour = 100 * normalise(name, report.results.scores[name].score), COLOURS[DIMENSIONS[name].group]
    style = {"facecolor": "white", "edgecolor": colour, "hatch": HATCH} if mark else {"color": colour}
    axes.barh(row, value, **style)
    end, interval = max(value, 0), report.intervals.get(name)
    if interval and interval.low is not None:
        low, high = (100 * normalise(name, x) for x in (interval.low, interval.high))
        axes.plot([low, high], [row, row], color="black", linewidth=1.2, marker="|", markersize=6)
        end = max(end, high)
    axes.text(end + 1.5, row, f"{value:.1f}{f', {mark}' if mark else ''}", va="center", fontsize=8)


def find_mark(report: Report, name: str) -> str | None:
    """What keeps a bar from being the full official score: '' for nothing; None where there is no score."""
    if report.score(name) is None:
        return None
    if report.quick:
        return "quick"
    unfiltered = report.results.scores[name].filtered is False
    return "partial" if name in report.reasons else "unfiltered" if unfiltered else ""


def describe_counts(report: Report) -> str:
    names = {name for result in report.results.scores.values() for name in result.videos}
    prompts = {name.rpartition("-")[0] for name in names}
    if not names:
        return "given without the scores of single videos"
    return f"{len(names):,} videos of {len(prompts):,} prompts" + ("; a quick run" if report.quick else "")


def describe_chart(report: Report) -> str:
    """The chart in words, for those who don't see it."""
    told = []
    for name in DIMENSIONS:
        mark, score = find_mark(report, name), report.score(name)
        value = "no score" if score is None else f"{100 * normalise(name, score):.1f}"
        told.append(f"{name.replace('_', ' ')} {value}{f' ({mark})' if mark else ''}")
    return f"Bar chart of {report.name}, normalised scores in percent: {', '.join(told)}."


def draw_differences(path: Path, first: str, runs: dict[str, dict[str, Difference]]) -> None:
    """A line a dimension: each run's paired difference from the one that is called `first`, with its interval."""
    names = [name for name in (*DIMENSIONS, *TOTALS) if any(name in x for x in runs.values())]
    figure = Figure(figsize=(5.6, 1.4 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    for i, differences in enumerate(runs.values()):
        known = {row: differences[name] for row, name in enumerate(names) if name in differences}
        means = np.array([100 * x.mean for x in known.values()])
        ends = [(x.mean, x.mean) if x.low is None else (x.low, x.high) for x in known.values()]
        bars = np.abs(100 * np.array(ends).reshape(-1, 2).T - means)
        rows = np.array([*known]) + 0.15 * (i - (len(runs) - 1) / 2)
        axes.errorbar(means, rows, xerr=bars, fmt="o", markersize=4, label=str(i))
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    label = f"paired difference from {first}, in percent points, with 95 % intervals"
    axes.set_xlabel(fill(label, WRAPPED), fontsize=9, parse_math=False)
    axes.grid(axis="x", alpha=0.3)
    legend = figure.legend(loc="outside upper center", ncols=1 if max(map(len, runs)) > 20 else 4)
    for text, name in zip(legend.get_texts(), runs, strict=True):  # as labels, "_x" would be hidden and "$" set
        text.set_text(fill(name, WRAPPED))
        text.set_parse_math(False)
    save_figure(figure, path)
