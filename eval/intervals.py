"""How certain means over prompts are: Student's t over prompts, and Holm's correction for many means at once.

Scores that can't leave bounds, such as shares of yes, get the interval of Korn and Graubard (1998, Survey Methodology
24): as wide as t's, but as lopsided as that of a share near its bound is (Clopper and Pearson's).

The videos of a prompt are alike, so what is drawn independently is the prompt. A bootstrap over few prompts is too
narrow: its 95 % interval held the mean in half of the cases with two prompts. tests/eval/test_intervals.py simulates
both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite, sqrt

import numpy as np
from scipy.stats import beta, norm
from scipy.stats import t as student

CONFIDENCE = 0.95
FEWEST = 10  # prompts that a verdict takes


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval.

    low, high: None where there is no interval: for one prompt, or all prompts equal without known bounds.
    p: of a mean of 0, two-sided, likewise. prompts, values: how many the mean is over.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    prompts: int
    values: int


@dataclass(frozen=True)
class Sample:
    """Values by prompt, one or more of each, and the bounds that such a value can't leave.

    The mean is over values, as VBench's is, so that a prompt with more of them weighs more. weights: of the values in
    it, likewise by prompt; empty where all weigh the same.
    """

    values: Mapping[str, list[float]]
    least: float = -inf
    most: float = inf
    weights: Mapping[str, list[float]] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        sums = self.sums().values()
        return sum(total for total, _ in sums) / sum(weight for _, weight in sums)

    @property
    def count(self) -> int:
        return sum(map(len, self.values.values()))

    def sums(self) -> dict[str, tuple[float, float]]:
        """Of a prompt's values, and of their weights."""
        if not self.weights:
            return {name: (sum(those), float(len(those))) for name, those in self.values.items()}
        pairs = {name: [*zip(those, self.weights[name], strict=True)] for name, those in self.values.items()}
        return {name: (sum(x * w for x, w in those), sum(w for _, w in those)) for name, those in pairs.items()}

    def pulls(self) -> dict[str, float]:
        """How far each prompt draws the mean from where the others have it; the sum of squares is its variance.

        Of as many values for each prompt this is the variance of prompt means over their number; else that of a ratio
        of sums (Cochran, Sampling Techniques, 6.5), since how many values there are is by chance too.
        """
        sums, mean = self.sums(), self.mean
        spread = sqrt(len(sums) / (len(sums) - 1)) if len(sums) > 1 else inf
        whole = sum(weight for _, weight in sums.values())
        return {name: spread * (total - mean * weight) / whole for name, (total, weight) in sums.items()}


def estimate(sample: Sample) -> Estimate:
    """Raises ValueError for a sample without values."""
    if not sample.count:
        raise ValueError("no values: there is no mean")
    return combine({"": sample}, {"": 1.0})


def combine(samples: Mapping[str, Sample], weights: Mapping[str, float], constant: float = 0.0) -> Estimate:
    """Of constant + the weighted sum of several samples' means, which may share prompts.

    A prompt's pulls on all of the means go together. The degrees of freedom are those of the sample with the fewest
    prompts, which is on the safe side.
    """
    mean = constant + sum(weights[name] * sample.mean for name, sample in samples.items())
    prompts = dict.fromkeys(prompt for sample in samples.values() for prompt in sample.values)  # in order: sums round
    values = sum(sample.count for sample in samples.values())
    fewest = min(len(sample.values) for sample in samples.values())
    if fewest < 2:
        return Estimate(mean, None, None, None, len(prompts), values)
    pull = dict.fromkeys(prompts, 0.0)
    for name, sample in samples.items():
        for prompt, distance in sample.pulls().items():
            pull[prompt] += weights[name] * distance
    error = sqrt(sum(x * x for x in pull.values()))
    least, most = _bounds(samples, weights, constant)
    if error <= 1e-12 * max(1.0, abs(mean)):
        return _of_equal(mean, least, most, fewest, len(prompts), values)
    p = 2 * float(student.sf(abs(mean) / error, fewest - 1))
    low, high = _interval(mean, error, fewest - 1, least, most)
    return Estimate(mean, low, high, p, len(prompts), values)


def _interval(mean: float, error: float, freedom: int, least: float, most: float) -> tuple[float, float]:
    """error: standard error of the mean. freedom: degrees of it."""
    upper = (1 + CONFIDENCE) / 2
    widths = float(student.ppf(upper, freedom))
    share = (mean - least) / (most - least) if isfinite(most - least) else None
    if share is None or not 0 < share < 1:
        return mean - widths * error, mean + widths * error
    draws = share * (1 - share) * ((most - least) / error * float(norm.ppf(upper)) / widths) ** 2
    low = float(beta.ppf(1 - upper, share * draws, (1 - share) * draws + 1))
    high = float(beta.ppf(upper, share * draws + 1, (1 - share) * draws))
    return least + low * (most - least), least + high * (most - least)


def _bounds(samples: Mapping[str, Sample], weights: Mapping[str, float], constant: float) -> tuple[float, float]:
    ends = [sorted((weights[name] * x.least, weights[name] * x.most)) for name, x in samples.items()]
    return constant + sum(low for low, _ in ends), constant + sum(high for _, high in ends)


def _of_equal(mean: float, least: float, most: float, fewest: int, prompts: int, values: int) -> Estimate:
    """Where no prompt differs from the mean, so that t's interval would be a point, though another could.

    p is the sign test's. As many equal draws are seen with a probability of 2.5 % where 0.025^(1 / prompts) of
    all prompts has that value. The others could lie at a bound; no farther than 0, once their number rules that out.
    """
    if not (isfinite(least) and isfinite(most)):
        return Estimate(mean, None, None, None, prompts, values)
    p = min(1.0, 2 * 0.5**fewest) if mean else 1.0
    if p < 1 - CONFIDENCE:
        least, most = max(least, mean - abs(mean)), min(most, mean + abs(mean))
    other = 1 - ((1 - CONFIDENCE) / 2) ** (1 / fewest)
    low, high = mean - other * max(0.0, mean - least), mean + other * max(0.0, most - mean)
    return Estimate(mean, low, high, p, prompts, values)


def holm(p_values: Iterable[float]) -> list[float]:
    """Adjusted so that, of all of them, one below 0.05 is by chance in at most 5 % of cases (Holm 1979)."""
    p = np.array([*p_values], dtype=float)
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted.tolist()
