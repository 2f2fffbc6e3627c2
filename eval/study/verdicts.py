"""Each claim's verdict, by a rule that was written down before the numbers were there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import exp, log

import numpy as np

from ..intervals import Estimate
from ..sensitivity.result import Sensitivity
from .config import HIGH
from .results import Results, over

BREAKS, RECOVERS, WITHIN, HARMLESS, CRITICAL, CLEAR = 0.10, 0.80, 0.02, 1.10, 2.0, 1.25
EARLY, LATE = 0.3, 0.7  # progress of denoising at which the middle steps begin and end
HOLDS, FAILS, UNKNOWN, MISSING = "holds here", "doesn't hold here", "can't be told", "not run yet"
ABSENT = "not asked here"  # of rows that a study doesn't have
MEASURES = {"loss_high": f"validation loss at sigma >= {HIGH}", "frechet": "Fréchet distance"}


@dataclass(frozen=True)
class Verdict:
    """numbers: what the rule was asked of, in words."""

    claim: str
    rule: str
    numbers: str
    answer: str


def decide(found: Estimate, threshold: float, below: bool = False) -> str:
    """Whether a mean is the threshold or more (or less), by all of its 95 % interval; of one draw nothing is told."""
    if found.low is None or found.high is None:
        return UNKNOWN
    low, high, least = (-found.high, -found.low, -threshold) if below else (found.low, found.high, threshold)
    return HOLDS if low >= least else FAILS if high < least else UNKNOWN


def judge(results: Results, searched: Sensitivity | None) -> list[Verdict]:
    of_training = [verdict for name in ("loss_high", "frechet") for verdict in _of_gap(results, name)]
    return [*of_training, *_of_rows(results), *_of_search(searched), _of_values(results)]


def _of_gap(results: Results, name: str) -> Iterator[Verdict]:
    """Whether joint breaks without training, and what training gives back of it."""
    rows, least, what = ("dense", "joint-free", "joint"), BREAKS if name == "loss_high" else 0.0, MEASURES[name]

    def gap(seed: int) -> float:
        return results.number("joint-free", seed, name) - results.number("dense", seed, name)

    def recovered(seed: int) -> float:
        return (results.number("joint-free", seed, name) - results.number("joint", seed, name)) / (gap(seed) or 1e-12)

    def rise(seed: int) -> float:
        return gap(seed) / (results.number("dense", seed, name) or 1e-12)

    claim = f"Without training, joint breaks: {what}"
    rule = f"joint-free's is {least:.0%} above dense's or more" if least else "joint-free's is above dense's"
    yield _over_seeds(results, rows[:2], claim, rule, least, rise)
    claim = f"Training gives it back: {what}"
    rule = f"joint recovers {RECOVERS:.0%} or more of the gap between joint-free and dense, where that is above 0"
    seeds = results.seeds(*rows)
    verdict = _over_seeds(results, rows, claim, rule, RECOVERS, recovered)
    there = len(seeds) < 2 or decide(over({seed: gap(seed) for seed in seeds}), 0.0) == HOLDS
    yield verdict if there else Verdict(claim, rule, "there is no gap to be sure of", UNKNOWN)


RIVALS = {  # a row, and one whose loss should be less at high noise
    ("joint-free", "joint"): "Training for it beats applying it",
    ("uniform", "joint"): "Strength by step beats uniform",
    ("joint", "proposed"): "A measured schedule beats ours",
    ("joint", "distilled"): "Distillation beats the flow loss",
}


def _of_rows(results: Results) -> Iterator[Verdict]:
    def ratio(seed: int, row: str, other: str, name: str) -> float:
        return results.number(row, seed, name) / results.number(other, seed, name) - 1

    claim, rule = "Trained as long, joint is as good as dense", f"joint's loss is {WITHIN:.0%} above dense's at most"
    number = partial(ratio, row="joint", other="dense", name="loss")
    yield _over_seeds(results, ("joint", "dense"), claim, rule, WITHIN, number, below=True)
    for (row, other), claim in RIVALS.items():
        rule, number = f"{row}'s is above {other}'s", partial(ratio, row=row, other=other, name="loss_high")
        yield _over_seeds(results, (row, other), claim, f"{MEASURES['loss_high']}: {rule}", 0.0, number)


def _over_seeds(
    results: Results, rows: tuple[str, ...], claim: str, rule: str, threshold: float, number: Callable[[int], float],
    below: bool = False,
) -> Verdict:  # fmt: skip
    seeds = results.seeds(*rows)
    if not seeds:
        alone = {*rows} <= {*results.of}
        answer = UNKNOWN if alone else MISSING if {*rows} <= {*results.plan.rows} else ABSENT
        return Verdict(claim, rule, "no seed has all of these rows" if alone else "", answer)
    found = over({seed: number(seed) for seed in seeds})
    return Verdict(claim, rule, f"{_tell(found)} of seeds {seeds}", decide(found, threshold, below))


def _of_search(searched: Sensitivity | None) -> Iterator[Verdict]:
    """Of the base's velocity, by what eval.sensitivity measured."""
    parts = f"(early, middle and late change at progress {EARLY} and {LATE})"
    for claim, rule, answer in (
        ("Middle steps are the most sensitive", f"joint error is {CLEAR} times others' or more {parts}", _of_middle),
        ("Early steps may be the sparsest", f"sparse error is {1 / CLEAR} times others' or less {parts}", _of_early),
        ("Coarser scales of Q and K don't hurt", f"error of 64 tiles a scale is {HARMLESS} times one's", _of_scales),
    ):  # fmt: skip
        numbers, told = ("", MISSING) if searched is None else answer(searched)
        yield Verdict(claim, f"the velocity's {rule}", numbers, told)


def _of_middle(searched: Sensitivity) -> tuple[str, str]:
    errors = log_errors(searched, "joint")
    return _both([over(dict(enumerate(errors[:, 1] - errors[:, other]))) for other in (0, 2)], CLEAR)


def _of_early(searched: Sensitivity) -> tuple[str, str]:
    errors = log_errors(searched, "sparse")
    return _both([over(dict(enumerate(errors[:, 0] - errors[:, other]))) for other in (1, 2)], 1 / CLEAR, below=True)


def _of_scales(searched: Sensitivity) -> tuple[str, str]:
    of = {one.regime.granularity: i for i, one in enumerate(searched.list_candidates()) if one.kind == "quantised"}
    if not {1, 4} <= of.keys():
        return "4 and 1 were not both measured", UNKNOWN
    errors = np.log(np.array(searched.by_video).mean(1))
    return _both([over(dict(enumerate(errors[:, of[4]] - errors[:, of[1]])))], HARMLESS, below=True)


def _both(found: list[Estimate], threshold: float, below: bool = False) -> tuple[str, str]:
    """Numbers and answer, which holds where it does of each. found: of logarithms."""
    answers = [decide(x, log(threshold), below) for x in found]
    return f"{' and '.join(map(_tell_ratio, found))} times", next((x for x in (FAILS, UNKNOWN) if x in answers), HOLDS)


def log_errors(searched: Sensitivity, kind: str) -> np.ndarray:
    """[video, early middle late]: mean over steps, and candidates of a kind, of the relative MSE's logarithm."""
    candidates = [i for i, one in enumerate(searched.list_candidates()) if one.kind == kind]
    part = np.digitize(searched.progress()[searched.steps], (EARLY, LATE))
    logs = np.log(np.array(searched.by_video)[:, :, candidates].clip(1e-12)).mean(-1)
    return np.stack([logs[:, part == i].mean(1) for i in range(3)], axis=1)


def _of_values(results: Results) -> Verdict:
    claim = "A scale for each channel of V is critical"
    rule = f"with one for each tile attention's output has {CRITICAL:g} times the error or more, over clips of the base"
    if not (measured := results.get("base", 0)):
        return Verdict(claim, rule, "", MISSING)
    errors = measured.scales_of_v or {}
    found = over({i: log(x / y) for i, (x, y) in enumerate(zip(errors["tile"], errors["channel"], strict=True))})
    return Verdict(claim, rule, *_both([found], CRITICAL))


def _tell(found: Estimate) -> str:
    between = "" if found.low is None else f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"{100 * found.mean:+.1f} %{between}"


def _tell_ratio(found: Estimate) -> str:
    """found: of logarithms."""
    return f"{exp(found.mean):.2f}" + ("" if found.low is None else f" [{exp(found.low):.2f}, {exp(found.high):.2f}]")
