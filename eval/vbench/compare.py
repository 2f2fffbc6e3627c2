"""Runs side by side, and their paired differences."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fps_flex.checks import at_home

from .aggregate import GROUPS
from .paired import Difference, compare
from .report import Report, collect

PAPER_ROWS = ("dense", "quantised", "sparse", "joint training-free", "joint trained")
PAPER_TOTALS = {"dense": 0.8019, "joint training-free": 0.6325, "joint trained": 0.8160}  # its Table 5, Wan2.1-1.3B
SLACK = 1.5e-4  # what rounding alone may do to the difference of two scores


def open_runs(given: list[str]) -> list[Report]:
    """given: paths, or label=path; five paths without a label are the paper's rows, in its order.

    Raises ValueError for fewer than two and more than five, and where one holds no scores.
    """
    if not 2 <= len(given) <= len(PAPER_ROWS):
        raise ValueError(f"{len(given)} runs to compare, expected 2 to {len(PAPER_ROWS)}: A B, or dense=A trained=B")
    pairs = [_split_label(text) for text in given]
    if len(pairs) == len(PAPER_ROWS) and not any(label for label, _ in pairs):
        pairs = [(label, path) for label, (_, path) in zip(PAPER_ROWS, pairs, strict=True)]
    labels = [label or path.resolve().name for label, path in pairs]
    if len(set(labels)) < len(labels):
        labels = [label or str(path) for label, path in pairs]
    if len(set(labels)) < len(labels):
        raise ValueError(f"runs are called {', '.join(labels)}: give them different labels, label=path")
    return [collect(path, label) for label, (_, path) in zip(labels, pairs, strict=True)]


def _split_label(text: str) -> tuple[str, Path]:
    whole = at_home(Path(text))
    label, _, path = text.partition("=")
    return ("", whole) if not path or os.path.exists(whole) else (label, at_home(Path(path)))


def compare_runs(runs: list[Report]) -> dict[str, dict[str, Difference]]:
    """By the name of each run but the first: its differences from the first."""
    return {run.name: _compare(runs[0], run) for run in runs[1:]}


def _compare(first: Report, other: Report) -> dict[str, Difference]:
    groups = tuple(x for x in GROUPS if first.score(x) is not None and other.score(x) is not None)
    quick = any(run.plan is not None and run.plan.quick is not None for run in (first, other))
    return compare(first.results.scores, other.results.scores, groups, quick)


def list_mismatches(first: Report, other: Report) -> list[str]:
    """In what the plans of two runs differ, so that their difference isn't the model's alone."""
    if first.plan is None or other.plan is None:
        return []
    names = ["suite", "prompt_map", "quick"]
    names += ["clip"] if first.plan.clip and other.plan.clip else []  # of videos made elsewhere none is known
    said = [f"{name} differs" for name in names if getattr(first.plan, name) != getattr(other.plan, name)]
    ours, theirs = ({video.name: video.seed for video in run.plan.videos} for run in (first, other))
    if first.plan.folder is None and other.plan.folder is None:
        different = sum(ours[name] != theirs[name] for name in ours.keys() & theirs.keys())
        said += [f"{different} {'videos have' if different > 1 else 'video has'} another seed"] if different else []
    return said


def list_contradictions(first: Report, other: Report, found: dict[str, Difference]) -> list[str]:
    """The rows whose paired difference has another sign than that of the two scores, as they are shown.

    Scores are over all videos of a run, differences over those that both have, and a score need not be a plain mean.
    """
    names = []
    for name, difference in found.items():
        scores = [run.score(name) for run in (first, other)]
        if None not in scores:
            shown, paired = round(scores[1], 4) - round(scores[0], 4), round(difference.mean, 4)
            if np.sign(round(shown, 4)) != np.sign(paired) and abs(shown - paired) > SLACK:
                names.append(name)
    return names


def list_notes(first: Report, other: Report) -> list[str]:
    """What one run's scores of a dimension are told with, and the other's aren't."""
    said = []
    for run, against in ((first, other), (other, first)):
        for name, result in run.results.scores.items():
            its = against.results.scores.get(name)
            if result.note and its and result.note != its.note:
                said.append(f"{name} of {run.name}: {result.note}")
    return said
