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
from .values import Result, agrees, by_prompt, group

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


WEIGHTS = {group: sum(DIMENSIONS[name].weight for name in names) for group, names in GROUPS.items()}
# of each dimension in its group's mean, and in the total
SHARES = {group: {x: DIMENSIONS[x].weight / WEIGHTS[group] for x in names} for group, names in GROUPS.items()}
SHARES["total"] = {x: GROUP_SHARES[group] * share for group in GROUPS for x, share in SHARES[group].items()}


def normalise(name: str, score: float) -> float:
    """What the official script averages; it is not clipped to 0 to 1."""
    return (score - DIMENSIONS[name].minimum) / DIMENSIONS[name].range


def combine(scores: Mapping[str, float]) -> Totals:
    """Official scores, 0 to 1, by dimension. A group is withheld unless all its dimensions are there."""
    quality, semantic, total = (
        sum(share * normalise(x, scores[x]) for x, share in shares.items()) if shares.keys() <= scores.keys() else None
        for shares in SHARES.values()
    )
    return Totals(quality, semantic, total, _list_reasons({x: "missing" for x in DIMENSIONS if x not in scores}))


def find_intervals(results: Results) -> dict[str, Estimate]:
    """How certain the scores are, by dimension in the units of the official score, and the totals, 0 to 1.

    Over prompts, for those of one model's videos. Left out is what has no values by video, or whose score isn't the
    mean of these; a group and the total are there where all their dimensions are, and are complete.
    """
    samples = {name: take_sample(result) for name, result in results.scores.items() if agrees(result)}
    estimates = {name: intervals.estimate(sample) for name, sample in samples.items()}
    return estimates | combine_samples({name: x for name, x in samples.items() if results.scores[name].complete})


def take_sample(result: Result) -> Sample:
    """A dimension's values by prompt, in the score's unit."""
    weights = {name: result.weights[name] for name in result.videos} if result.weights else {}
    return Sample(by_prompt(result.per_video()), DIMENSIONS[result.dimension].least, 1.0, by_prompt(weights))


def combine_samples(samples: Mapping[str, Sample], differences: bool = False) -> dict[str, Estimate]:
    """Quality, semantic and total of those whose dimensions are all there. differences: of two runs' scores."""
    return {
        name: intervals.combine(
            {part: samples[part] for part in shares},
            {part: share / DIMENSIONS[part].range for part, share in shares.items()},
            0.0 if differences else sum(share * normalise(part, 0.0) for part, share in shares.items()),
        )
        for name, shares in SHARES.items()
        if shares.keys() <= samples.keys()
    }


def _list_reasons(reasons: Mapping[str, str]) -> tuple[str, ...]:
    """What is the same for several dimensions is said once."""
    names = group((why, name) for name, why in reasons.items())
    return tuple(f"{', '.join(those)}: {why}" for why, those in names.items())


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
    reasons = {name: _find_reason(name, results.scores.get(name), plan, findings) for name in DIMENSIONS}
    return {name: reason for name, reason in reasons.items() if reason}


def _find_reason(name: str, result: Result | None, plan: Plan | None, findings: Findings | None) -> str:
    """Empty for one that counts."""
    if plan and name not in plan.dimensions:
        return "not asked for"
    if result is None:
        return "not scored"
    if plan and findings and (faults := _describe_faults(name, plan, findings)):
        return faults
    if not result.complete:
        many = f"{len(result.missing)} of its videos have no score" if result.missing else ""
        why = "; ".join(filter(None, (many, result.note))) or "not complete"
        return why if result.score is not None else f"not scored: {why}"
    return _find_mismatch(result, plan) if plan else ""


def _describe_faults(name: str, plan: Plan, findings: Findings) -> str:
    """How many of a dimension's videos are missing, unreadable and so on."""
    names, planned = {video.name for video in plan.of(name)}, len(plan.expected(name))
    counts = {kind: len(names & faulty.keys()) for kind, faulty in findings.faults().items()}
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    of = "its one video" if planned == 1 else f"{sum(counts.values())} of its {planned} videos"
    return f"{of} can't count ({kinds})" if kinds else ""


def _find_mismatch(result: Result, plan: Plan) -> str:
    """In which way a result isn't of the videos that a plan has for its dimension; empty where it is.

    The static filter chooses from more than the official five of a prompt, and looks no further once it has five.
    """
    videos, wanted = plan.of(result.dimension), plan.expected(result.dimension)
    if result.filtered:
        kept = Counter(video.prompt for video in videos if video.name in result.videos)
        wanted = [video for video in videos if kept[video.prompt] < SEEDS]
    absent = {video.name for video in wanted} - result.videos.keys() - {*result.left_out}
    foreign = result.videos.keys() - {video.name for video in videos}
    parts = [f"{len(wanted) - len(absent)} of {len(wanted)} videos of the plan are scored"] if absent else []
    parts += [f"{len(foreign)} that are scored are not in the plan"] if foreign else []
    return f"{', '.join(parts)}: `score` goes on with it" if parts else ""
