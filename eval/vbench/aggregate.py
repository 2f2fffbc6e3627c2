"""VBench's Quality, Semantic and Total, as its leaderboard computes them; or what is missing for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from .check import Findings
from .results import Results
from .suite import DIMENSIONS, FLICKER, Plan

QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4, 1
GROUPS = {
    group: tuple(name for name, dimension in DIMENSIONS.items() if dimension.group == group)
    for group in ("quality", "semantic")
}


@dataclass(frozen=True)
class Totals:
    """0 to 1; None where it is withheld, for the reasons given."""

    quality: float | None
    semantic: float | None
    total: float | None
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def normalise(name: str, score: float) -> float:
    """What the official script averages; it is not clipped to 0 to 1."""
    dimension = DIMENSIONS[name]
    return (score - dimension.minimum) / (dimension.maximum - dimension.minimum)


def combine(scores: Mapping[str, float]) -> Totals:
    """Official scores, 0 to 1, by dimension. A group is withheld unless all its dimensions are there."""
    quality, semantic = (_mean(scores, group) for group in ("quality", "semantic"))
    total = None
    if quality is not None and semantic is not None:
        total = (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)
    return Totals(quality, semantic, total, _list_reasons({x: "missing" for x in DIMENSIONS if x not in scores}))


def _list_reasons(reasons: Mapping[str, str]) -> tuple[str, ...]:
    """What is the same for several dimensions is said once."""
    names: dict[str, list[str]] = {}
    for name, why in reasons.items():
        names.setdefault(why, []).append(name)
    return tuple(f"{', '.join(those)}: {why}" for why, those in names.items())


def _mean(scores: Mapping[str, float], group: str) -> float | None:
    names = GROUPS[group]
    if any(name not in scores for name in names):
        return None
    weights = {name: DIMENSIONS[name].weight for name in names}
    return sum(weights[name] * normalise(name, scores[name]) for name in names) / sum(weights.values())


def aggregate(results: Results, plan: Plan | None = None, findings: Findings | None = None) -> Totals:
    """The totals of what is complete; none for a quick run.

    plan, findings: of the run that the results are of; None for results without a run.
    """
    reasons = find_reasons(results, plan, findings)
    totals = combine({name: result.score for name, result in results.scores.items() if name not in reasons})
    said = _list_reasons(reasons)
    warnings = list(results.problems)
    flicker = results.scores.get(FLICKER)
    if flicker and flicker.filtered is False:
        warnings.append(f"{FLICKER} is unfiltered: the official protocol scores only videos that are static")
    if plan and plan.quick:
        quick = f"a quick run has {plan.quick} prompts a dimension and one video each: it is not comparable"
        return Totals(None, None, None, (quick, *said), tuple(warnings))
    return Totals(totals.quality, totals.semantic, totals.total, said, tuple(warnings))


def find_reasons(results: Results, plan: Plan | None = None, findings: Findings | None = None) -> dict[str, str]:
    """The dimensions that can't count, and why."""
    faults = count_faults(plan, findings) if plan and findings else {}
    reasons = {}
    for name in DIMENSIONS:
        result = results.scores.get(name)
        if plan and name not in plan.dimensions:
            reasons[name] = "not asked for"
        elif result is None:
            reasons[name] = "not scored"
        elif faults.get(name):
            count = sum(faults[name].values())
            kinds = ", ".join(f"{number} {kind}" for kind, number in faults[name].items())
            reasons[name] = f"{count} of its {len(plan.expected(name))} videos can't count ({kinds})"
        elif not result.complete:
            many = f"{len(result.missing)} of its videos have no score" if result.missing else ""
            why = "; ".join(filter(None, (many, result.note))) or "not complete"
            reasons[name] = why if result.score is not None else f"not scored: {why}"
    return reasons


def count_faults(plan: Plan, findings: Findings) -> dict[str, Counter[str]]:
    """How many of each dimension's videos are missing, unreadable and so on."""
    kinds = {
        "missing": {*findings.missing},
        "unreadable": {*findings.unreadable},
        "of another length, size or rate": {*findings.wrong},
        "of one frame": {*findings.one_frame},
    }
    counts: dict[str, Counter[str]] = {}
    for kind, names in kinds.items():
        for video in plan.videos:
            if video.name in names:
                for dimension in video.dimensions:
                    counts.setdefault(dimension, Counter())[kind] += 1
    return counts
