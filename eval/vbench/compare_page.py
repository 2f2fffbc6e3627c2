"""A comparison as one HTML file: tables, the chart, and the prompts that lost most with both runs' videos."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean

from train.common.videos import ClipError

from .aggregate import normalise
from .compare import TOTALS_CAPTION, Differences, explain_pair, explain_totals, tabulate_differences, tabulate_totals
from .document import draw_strip, embed, isolate, show_strip, write_page
from .paired import Difference
from .reading import write_plainly
from .report import Report, hide_paths
from .suite import DIMENSIONS
from .tables import percent, points
from .values import find_prompt


def write_compare_page(out: Path, runs: list[Report], differences: Differences) -> None:
    """compare.html. out: folder that has compare.png."""
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
    write_plainly(out / "compare.html", write_page(title, parts))


def _describe_chart(first: Report, runs: Differences) -> str:
    """In words."""
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
    prompt = _find_prompt((first, other), loss)
    scores = "; ".join(
        f"{name.replace('_', ' ')} {percent(ours)} to {percent(theirs)}" for name, (ours, theirs) in loss.scores.items()
    )
    figures = [figure for run in (first, other) if (figure := _show_video(out, run, loss.video, prompt))]
    return (
        f"<section><h4>{loss.dimension.replace('_', ' ')} {points(loss.change)}: {isolate(prompt)}</h4>"
        f'<p>{escape(scores)}</p><div class="pair">{"".join(figures)}</div></section>'
    )


def _find_prompt(runs: tuple[Report, ...], loss: Loss) -> str:
    """As a plan has it; else as the file's name does."""
    for run in runs:
        for video in run.plan.videos if run.plan else ():
            if video.name == loss.video:
                return video.prompt
    return loss.prompt


def _show_video(out: Path, run: Report, name: str, prompt: str) -> str:
    """A figure; a word where there is a video that can't be read, and nothing where there is none."""
    folder = run.plan.find_videos(run.path) if run.plan else None
    if folder is None or not os.path.exists(folder / name):
        return ""
    values = {dimension: result.per_video().get(name) for dimension, result in run.results.scores.items()}
    scores = ", ".join(f"{one.replace('_', ' ')} {percent(x)}" for one, x in values.items() if x is not None)
    try:
        return show_strip(draw_strip(folder / name), folder / name, out, prompt, escape(f"{run.name}: {scores}"))
    except ClipError as error:
        return f"<p>{escape(run.name)}: {escape(hide_paths(str(error)))}</p>"


Pairs = dict[str, tuple[float, float]]  # both runs' scores, by the video's file name


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
    pairs = {name: prompts for name in DIMENSIONS if (prompts := _pair(first, other, name))}
    losses = []
    for name, prompts in pairs.items():
        changes = {prompt: _change(name, videos) for prompt, videos in prompts.items()}
        prompt = min(sorted(changes), key=changes.get)
        if changes[prompt] < 0:
            scores = {x: _means(those[prompt]) for x, those in pairs.items() if prompt in those}
            worst = min(sorted(prompts[prompt]), key=lambda video, of=prompts[prompt]: of[video][1] - of[video][0])
            losses.append(Loss(name, prompt, changes[prompt], scores, worst))
    return sorted(losses, key=lambda loss: loss.change)


def _pair(first: Report, other: Report, name: str) -> dict[str, Pairs]:
    """A dimension's videos that both runs have, by prompt."""
    if name not in first.results.scores or name not in other.results.scores:
        return {}
    ours, theirs = (run.results.scores[name].per_video() for run in (first, other))
    prompts: dict[str, Pairs] = defaultdict(dict)
    for video in ours.keys() & theirs.keys():
        prompts[find_prompt(video)][video] = ours[video], theirs[video]
    return prompts


def _means(videos: Pairs) -> tuple[float, float]:
    ours, theirs = zip(*(videos[name] for name in sorted(videos)), strict=True)
    return fmean(ours), fmean(theirs)


def _change(name: str, videos: Pairs) -> float:
    ours, theirs = _means(videos)
    return normalise(name, theirs) - normalise(name, ours)
