"""VBench's Quality, Semantic and Total, as its leaderboard computes them; or what is missing for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .. import intervals
from ..intervals import Estimate, Sample
from .check import Findings
from .results import Results
from .suite import DIMENSIONS, SEEDS, Plan
from .values import Result, agrees, by_prompt

GROUP_SHARES = {"quality": 0.8, "semantic": 0.2}  # of the total
GROUPS = {
    group: tuple(name for name, dimension in DIMENSIONS.items() if dimension.group == group) for group in GROUP_SHARES
}


@dataclass(frozen=True)
class Totals:
    """0 to 1; None where it is withheld, for the reasons given."""

    quality: float | None
    semantic: float | None
    total: float | None
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def _range(name: str) -> float:
    return DIMENSIONS[name].maximum - DIMENSIONS[name].minimum


def normalise(name: str, score: float) -> float:
    """What the official script averages; it is not clipped to 0 to 1."""
    return (score - DIMENSIONS[name].minimum) / _range(name)


def _share(group: str) -> dict[str, float]:
    """Of each dimension in its group's mean."""
    whole = sum(DIMENSIONS[name].weight for name in GROUPS[group])
    return {name: DIMENSIONS[name].weight / whole for name in GROUPS[group]}


SHARES = {group: _share(group) for group in GROUPS}
SHARES["total"] = {x: GROUP_SHARES[group] * share for group in GROUPS for x, share in SHARES[group].items()}


def combine(scores: Mapping[str, float]) -> Totals:
    """Official scores, 0 to 1, by dimension. A group is withheld unless all its dimensions are there."""
    quality, semantic, total = (_mean(scores, name) for name in SHARES)
    return Totals(quality, semantic, total, _list_reasons({x: "missing" for x in DIMENSIONS if x not in scores}))


def find_intervals(results: Results) -> dict[str, Estimate]:
    """How certain the scores are, by dimension in the units of the official score, and the totals, 0 to 1.

    Over prompts, for those of one model's videos. Left out is what has no values by video, or whose score isn't the
    mean of these; a group and the total are there where all their dimensions are, and are complete.
    """
    samples = {name: take_sample(result) for name, result in results.scores.items() if agrees(result)}
    estimates = {name: intervals.estimate(sample) for name, sample in samples.items()}
    whole = {name: sample for name, sample in samples.items() if results.scores[name].complete}
    return {**estimates, **combine_samples(whole)}


def take_sample(result: Result) -> Sample:
    """A dimension's values by prompt, in the score's unit."""
    weights = {name: result.weights[name] for name in result.videos} if result.weights else {}
    return Sample(by_prompt(result.per_video()), DIMENSIONS[result.dimension].least, 1.0, by_prompt(weights))


def combine_samples(samples: Mapping[str, Sample], differences: bool = False) -> dict[str, Estimate]:
    """Quality, semantic and total of those whose dimensions are all there. differences: of two runs' scores."""
    return {
        name: intervals.combine(
            {part: samples[part] for part in shares},
            {part: share / _range(part) for part, share in shares.items()},
            0.0 if differences else -sum(share * DIMENSIONS[x].minimum / _range(x) for x, share in shares.items()),
        )
        for name, shares in SHARES.items()
        if shares.keys() <= samples.keys()
    }


def _list_reasons(reasons: Mapping[str, str]) -> tuple[str, ...]:
    """What is the same for several dimensions is said once."""
    names: dict[str, list[str]] = {}
    for name, why in reasons.items():
        names.setdefault(why, []).append(name)
    return tuple(f"{', '.join(those)}: {why}" for why, those in names.items())


def _mean(scores: Mapping[str, float], name: str) -> float | None:
    """Of a group, or the total."""
    shares = SHARES[name]
    if not shares.keys() <= scores.keys():
        return None
    return sum(share * normalise(part, scores[part]) for part, share in shares.items())


def aggregate(results: Results, plan: Plan | None, reasons: Mapping[str, str]) -> Totals:
    """The totals of what is complete; none for a quick run.

    plan: of the run that the results are of; None for results without a run. reasons: as `find_reasons` has them.
    """
    totals = combine({name: result.score for name, result in results.scores.items() if name not in reasons})
    why, warnings = _list_reasons(reasons), (*results.problems, *_list_warnings(results))
    if plan and plan.quick:
        many = "1 prompt" if plan.quick == 1 else f"{plan.quick} prompts"
        quick = f"a quick run has {many} a dimension and one video each: it is not comparable"
        return Totals(None, None, None, (quick, *why), warnings)
    return Totals(totals.quality, totals.semantic, totals.total, why, warnings)


def _list_warnings(results: Results) -> Iterator[str]:
    """What keeps scores that count from being comparable."""
    for name, result in results.scores.items():
        if result.filtered is False:
            yield f"{name} is unfiltered: the official protocol scores only videos that are static"
        if result.score is not None and result.videos and not result.last and not agrees(result):
            yield f"{name} can't be checked: {result.note}"


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
            planned = len(plan.expected(name))
            of = "its one video" if planned == 1 else f"{count} of its {planned} videos"
            reasons[name] = f"{of} can't count ({kinds})"
        elif not result.complete:
            many = f"{len(result.missing)} of its videos have no score" if result.missing else ""
            why = "; ".join(filter(None, (many, result.note))) or "not complete"
            reasons[name] = why if result.score is not None else f"not scored: {why}"
        elif plan and (other := find_mismatch(result, plan)):
            reasons[name] = other
    return reasons


def find_mismatch(result: Result, plan: Plan) -> str:
    """In which way a result isn't of the videos that a plan has for its dimension; empty where it is.

    The static filter chooses from more than the official five of a prompt, and looks no further once it has five.
    """
    videos = [video for video in plan.videos if result.dimension in video.dimensions]
    kept = Counter(video.prompt for video in videos if video.name in result.videos)
    wanted = [
        video.name
        for video in (videos if result.filtered else plan.expected(result.dimension))
        if not (result.filtered and kept[video.prompt] >= SEEDS)
    ]
    known = result.videos.keys() | {*result.left_out}
    absent, foreign = {*wanted} - known, result.videos.keys() - {video.name for video in videos}
    parts = [f"{len(wanted) - len(absent)} of {len(wanted)} videos of the plan are scored"] if absent else []
    parts += [f"{len(foreign)} that are scored are not in the plan"] if foreign else []
    return f"{', '.join(parts)}: `score` goes on with it" if parts else ""


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
