"""Of each dimension, the prompt whose videos lost most from one run to another."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean

from .aggregate import normalise
from .report import Report
from .suite import DIMENSIONS
from .values import find_prompt

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
    pairs = {name: found for name in DIMENSIONS if (found := _pair(first, other, name))}
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
