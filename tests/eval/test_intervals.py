"""Confidence intervals: what they cover, simulated, and their edges by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from eval.intervals import Sample, combine, estimate, holm

RUNS = 1000


def draw_normal(random, prompts, videos):
    """Prompts differ more than the videos of a prompt do."""
    means = random.normal(0, 1, (prompts, 1))
    return means + random.normal(0, 0.5, (prompts, videos)), 0.0, (-math.inf, math.inf)


def draw_yes_or_no(random, prompts, videos):
    """Each prompt has a share of yes of its own; the mean of all is 0.8."""
    return (random.random((prompts, videos)) < random.beta(4, 1, (prompts, 1))).astype(float), 0.8, (0.0, 1.0)


def by_prompt(rows):
    return {f"prompt {i}": row.tolist() for i, row in enumerate(rows)}


def bootstrap(rows, random):
    means = rows.mean(1)
    return np.quantile(means[random.integers(len(means), size=(1000, len(means)))].mean(1), (0.025, 0.975))


@pytest.mark.parametrize("draw", [draw_normal, draw_yes_or_no])
@pytest.mark.parametrize("videos", [1, 5])
@pytest.mark.parametrize("prompts", [2, 4, 8, 16, 100])
def test_an_interval_holds_the_mean_in_95_percent_of_cases(draw, videos, prompts):
    random = np.random.default_rng(prompts)
    held = 0
    for _ in range(RUNS):
        rows, mean, bounds = draw(random, prompts, videos)
        found = estimate(Sample(by_prompt(rows), *bounds))
        held += found.low <= mean <= found.high
    assert held / RUNS >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / RUNS)  # three standard errors of what is simulated
    if prompts == 100:
        assert held / RUNS <= 0.985


def test_a_bootstrap_over_few_prompts_would_not():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(RUNS):
        rows, mean, _ = draw_normal(random, 4, 5)
        low, high = bootstrap(rows, random)
        held += low <= mean <= high
    assert held / RUNS < 0.85


def test_for_as_many_videos_of_each_prompt_it_is_students_t_over_prompt_means():
    rows = np.random.default_rng(1).normal(3, 1, (7, 5))
    found, test = estimate(Sample(by_prompt(rows))), stats.ttest_1samp(rows.mean(1), 0)
    expected = test.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((expected.low, expected.high, test.pvalue), rel=1e-9)
    assert (found.mean, found.prompts, found.values) == (pytest.approx(rows.mean()), 7, 35)


def test_one_prompt_has_no_interval():
    found = estimate(Sample({"a": [1.0, 2.0]}))
    assert (found.mean, found.low, found.high, found.p) == (1.5, None, None, None)


def test_equal_prompts_have_none_without_bounds_and_an_exact_one_with():
    assert estimate(Sample({"a": [2.0], "b": [2.0]})).low is None
    found = estimate(Sample({name: [1.0] for name in "abcd"}, 0.0, 1.0))
    assert (found.low, found.high) == (pytest.approx(0.025**0.25), 1.0)


@pytest.mark.parametrize(("prompts", "told"), [(2, False), (5, False), (6, True), (72, True)])
def test_the_same_difference_of_all_prompts_is_told_from_0_where_a_sign_test_tells_it(prompts, told):
    found = estimate(Sample({str(i): [-0.02] for i in range(prompts)}, -1.0, 1.0))
    assert found.p == pytest.approx(2 * 0.5**prompts) and (found.p < 0.05) == told == (found.high < 0)
    assert -1 <= found.low < found.mean < found.high <= 1


def test_weights_make_a_ratio_of_sums():
    """Of a prompt's weights only their share counts; equal ones are none."""
    random = np.random.default_rng(2)
    rows = by_prompt(random.random((12, 3)))
    weights = {name: [1.0, 2.0, 3.0] for name in rows}
    found = estimate(Sample(rows, weights=weights))
    test = stats.ttest_1samp([np.average(those, weights=[1, 2, 3]) for those in rows.values()], 0)
    expected = test.confidence_interval(0.95)
    assert (found.low, found.high, found.values) == (pytest.approx(expected.low), pytest.approx(expected.high), 36)
    even = estimate(Sample(rows, weights={name: [7.0] * 3 for name in rows}))
    plain = estimate(Sample(rows))
    assert (even.mean, even.low, even.high) == pytest.approx((plain.mean, plain.low, plain.high), rel=1e-12)


@pytest.mark.parametrize("prompts", [4, 16, 60])
def test_an_interval_of_weighted_values_holds_the_mean(prompts):
    """Videos of unequal length, whose length says nothing of their value."""
    random, held = np.random.default_rng(prompts), 0
    for _ in range(RUNS):
        rows, mean, _ = draw_normal(random, prompts, 2)
        weights = random.integers(1, 5, rows.shape).astype(float)
        found = estimate(Sample(by_prompt(rows), weights=by_prompt(weights)))
        held += found.low <= mean <= found.high
    assert 0.95 - 4 * math.sqrt(0.95 * 0.05 / RUNS) <= held / RUNS <= 0.985


def test_means_of_the_same_prompts_go_together():
    """The sum of a mean and its negative is certain; of independent means it would not be."""
    values = {name: [x] for name, x in zip("abcde", (0.1, 0.5, 0.2, 0.9, 0.4), strict=True)}
    one, two = Sample(values), Sample({name: [1 - x for x in those] for name, those in values.items()})
    found = combine({"one": one, "two": two}, {"one": 0.5, "two": 0.5}, constant=2.0)
    assert found.mean == pytest.approx(2.5) and found.low is None


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Wikipedia's example
    assert holm([]) == []


class Salted(str):
    """Text of another hash, as each process has it, for each salt."""

    salt = 0

    def __hash__(self):
        return hash((Salted.salt, str(self)))


def test_the_last_digits_of_an_estimate_do_not_vary_with_the_hashes_of_prompts(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(2, 2000)) * 10 ** np.random.default_rng(1).uniform(-9, 9, (2, 2000))
    found = set()
    for salt in range(8):
        monkeypatch.setattr(Salted, "salt", salt)
        samples = {
            name: Sample({Salted(f"p{i}"): [x] for i, x in enumerate(row)})
            for name, row in zip("ab", rows, strict=True)
        }
        found.add(combine(samples, {"a": 0.3, "b": 0.7}))
    assert len(found) == 1
