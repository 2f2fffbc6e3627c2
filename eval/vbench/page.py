"""A report, and a comparison of runs, as one HTML file each, with charts and frames of videos inside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean

from train.common.videos import ClipError

from ..making import describe_cost, describe_making
from .chart import describe_chart
from .check import describe_findings
from .compare import TOTALS_CAPTION, Differences, explain_pair, explain_totals, tabulate_differences, tabulate_totals
from .document import embed, isolate, list_items, show_strip, take_strip, take_strips, write_page
from .paired import Difference, find_both, match
from .report import CAPTION, Report, describe_intervals, hide_paths, tabulate_scores, tell_scores
from .suite import DIMENSIONS
from .tables import percent, points
from .values import by_prompt


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
        facts = "".join(f"<dt>{escape(what)}</dt><dd>{escape(value)}</dd>" for what, value in made.items())
        parts += ["<h2>How they were made</h2>", f"<dl>{facts}</dl>"]
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
    strips, left_out = take_strips(folder, report.plan)
    for video, strip in strips:
        caption = f"{isolate(video.prompt)} ({escape(tell_scores(report, video.name, video.dimensions))})"
        yield show_strip(strip, folder / video.name, out, video.prompt, caption)
    if left_out:
        yield f"<p>{escape(hide_paths(left_out))}</p>"


def compare_to_html(runs: list[Report], differences: Differences, out: Path) -> str:
    """out: the folder that the page goes to, with the chart."""
    title = f"VBench: {' and '.join(run.name for run in runs)}"
    chart = embed((out / "compare.png").read_bytes(), "png", _describe_chart(runs[0], differences))
    parts = [
        f"<h1>VBench: {' and '.join(isolate(run.name) for run in runs)}</h1>",
        tabulate_totals(runs).to_html(TOTALS_CAPTION),
    ]
    parts += [f"<p>{escape(hide_paths(text))}</p>" for text in explain_totals(runs)]
    parts.append(f"<p>{chart}</p>")
    for run in runs[1:]:
        parts += _compare_pair(out, runs[0], run, differences[run.name])
    return write_page(title, parts)


def _describe_chart(first: Report, runs: Differences) -> str:
    parts = [
        f"{label}: "
        + ", ".join(f"{name.replace('_', ' ')} {points(one.mean)} ({one.verdict})" for name, one in differences.items())
        for label, differences in runs.items()
    ]
    return f"Chart of paired differences from {first.name}, in percent points. {'. '.join(parts)}."


def _compare_pair(out: Path, first: Report, other: Report, differences: dict[str, Difference]) -> Iterator[str]:
    yield f"<h2>{isolate(other.name)} against {isolate(first.name)}</h2>"
    caption, *more = explain_pair(first, other, differences)
    yield tabulate_differences(first, other, differences).to_html(caption)
    yield from (f"<p>{escape(one)}</p>" for one in more)
    losses = find_losses(first, other)
    if losses:
        yield f"<h3>Prompts that lost most in {isolate(other.name)}</h3>"
        yield (
            '<p class="note">Of each dimension, the prompt with the lowest mean difference of its videos, and of these '
            "the video that lost most; normalised as VBench does it, the greatest loss first.</p>"
        )
    for loss in losses:
        yield _show_loss(out, first, other, loss)


def _show_loss(out: Path, first: Report, other: Report, loss: Loss) -> str:
    planned = (x.prompt for run in (first, other) if run.plan for x in run.plan.videos if x.name == loss.video)
    prompt = next(planned, loss.prompt)  # else as the file's name has it
    scores = "; ".join(
        f"{name.replace('_', ' ')} {percent(ours)} to {percent(theirs)}" for name, (ours, theirs) in loss.scores.items()
    )
    figures = "".join(_show_video(out, run, loss.video, prompt) for run in (first, other))
    return (
        f"<section><h4>{loss.dimension.replace('_', ' ')} {points(loss.change)}: {isolate(prompt)}</h4>"
        f'<p>{escape(scores)}</p><div class="pair">{figures}</div></section>'
    )


def _show_video(out: Path, run: Report, name: str, prompt: str) -> str:
    """A figure; a word where there is a video that can't be read, and nothing where there is none."""
    file = run.plan.find_videos(run.path) / name if run.plan else None
    if file is None or not file.exists():
        return ""
    try:
        return show_strip(take_strip(file), file, out, prompt, escape(f"{run.name}: {tell_scores(run, name)}"))
    except ClipError as error:
        return f"<p>{escape(run.name)}: {escape(hide_paths(str(error)))}</p>"


@dataclass(frozen=True)
class Loss:
    """A prompt whose videos score lower in the other run than in the first, by more than any other of a dimension.

    change: the mean difference of the videos that both runs have, where 1 is the range that VBench maps to 0 to 1.
    scores: the means of both runs in each of the prompt's dimensions. video: file name of the one that lost most.
    """

    dimension: str
    prompt: str
    change: float
    scores: dict[str, tuple[float, float]]
    video: str


def find_losses(first: Report, other: Report) -> list[Loss]:
    """The greatest first; none of a dimension where no prompt lost."""
    pairs = {name: match(*both) for name, both in find_both(first.results.scores, other.results.scores).items()}
    prompts = {name: by_prompt({x: (b - a, x, a, b) for x, (a, b) in those.items()}) for name, those in pairs.items()}
    losses = []
    for name, those in prompts.items():
        changes = {prompt: fmean(change for change, *_ in videos) for prompt, videos in those.items()}
        prompt = min(sorted(changes), key=changes.get, default=None)
        if prompt is not None and changes[prompt] < 0:
            shared = {x: [*zip(*each[prompt], strict=True)] for x, each in prompts.items() if prompt in each}
            scores = {x: (fmean(ours), fmean(theirs)) for x, (_, _, ours, theirs) in shared.items()}
            losses.append(Loss(name, prompt, changes[prompt] / DIMENSIONS[name].range, scores, min(those[prompt])[1]))
    return sorted(losses, key=lambda loss: loss.change)
