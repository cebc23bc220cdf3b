"""Every interval against a reference implementation, or by its coverage."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from scipy import stats as scipy_stats
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import proportion_confint

from smallfirst.base.stats.intervals import (
    Estimate,
    bootstrap,
    bootstrap_interval,
    bootstrap_share,
    clopper_pearson,
    cohen_kappa,
    holm,
    mcnemar,
    mean_interval,
    paired_difference,
    quantile_interval,
    ratio_interval,
    upper_bound,
    wilson,
)

COUNTS = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
CALM = settings(max_examples=50, deadline=None)
"""A busy machine is no reason to fail."""
LEVELS = st.sampled_from([0.8, 0.95, 0.975, 0.99])


@CALM
@given(COUNTS, LEVELS)
def test_wilson_agrees_with_statsmodels(counts: tuple[int, int], level: float) -> None:
    found = wilson(*counts, confidence=level)
    low, high = proportion_confint(*counts, alpha=1 - level, method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert (found.value, found.n) == (counts[0] / counts[1], counts[1])
    assert 0 <= found.low <= found.value <= found.high <= 1


@CALM
@given(COUNTS, LEVELS)
def test_clopper_pearson_agrees_with_statsmodels(counts: tuple[int, int], level: float) -> None:
    found = clopper_pearson(*counts, confidence=level)
    low, high = proportion_confint(*counts, alpha=1 - level, method="beta")
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert (found.value, found.n) == (counts[0] / counts[1], counts[1])


@pytest.mark.parametrize("interval", [wilson, clopper_pearson])
def test_the_end_at_nothing_and_at_everything_is_exact(interval: Callable[[int, int], Estimate]) -> None:
    for n in range(1, 300):
        none, every = interval(0, n), interval(n, n)
        assert (none.low, every.high) == (0.0, 1.0)
        assert 0 < none.high < 1 or n == 1
        assert every.low == pytest.approx(1 - none.high)


@CALM
@given(COUNTS, LEVELS)
def test_the_upper_bound_agrees_with_the_upper_end_of_a_two_sided_interval_at_twice_the_alpha(
    counts: tuple[int, int], level: float
) -> None:
    reference = proportion_confint(*counts, alpha=2 * (1 - level), method="beta")[1]
    assert upper_bound(*counts, confidence=level) == pytest.approx(reference, abs=1e-9)


@CALM
@given(COUNTS)
def test_the_upper_bound_is_the_rate_at_which_so_few_errors_have_probability_alpha(counts: tuple[int, int]) -> None:
    bound = upper_bound(*counts)
    if counts[0] < counts[1]:
        assert special.bdtr(*counts, bound) == pytest.approx(0.05, abs=1e-6)
    else:
        assert bound == 1.0


def test_nothing_measured_shows_nothing() -> None:
    assert wilson(0, 0) == Estimate(value=0.0, low=0.0, high=1.0, n=0)
    assert clopper_pearson(0, 0) == wilson(0, 0)
    assert upper_bound(0, 0) == 1.0
    assert mcnemar(0, 0) == 1.0
    assert paired_difference([], []) == Estimate(value=0.0, low=-1.0, high=1.0, n=0)
    assert bootstrap(lambda rows: 0.5, 0) == Estimate(value=0.0, low=0.0, high=1.0, n=0)
    assert bootstrap_share(lambda rows: 0.5, 0) == Estimate(value=0.0, low=0.0, high=1.0, n=0)
    assert cohen_kappa([], []) == Estimate(value=0.0, low=-1.0, high=1.0, n=0)
    assert holm([]) == ()


def test_an_estimate_prints_with_its_interval() -> None:
    assert str(wilson(547, 600)) == "0.912 [0.886, 0.932]"


@CALM
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_agrees_with_statsmodels(only_first: int, only_second: int) -> None:
    table = [[5, only_first], [only_second, 7]]
    if only_first + only_second:
        reference = float(statsmodels_mcnemar(table, exact=True).pvalue)
        assert mcnemar(only_first, only_second) == pytest.approx(min(1.0, reference), abs=1e-9)


def test_mcnemar_by_hand() -> None:
    # Five rows, all for the first: 2 * 0.5**5
    assert mcnemar(5, 0) == mcnemar(0, 5) == pytest.approx(0.0625)


def test_a_paired_difference_by_hand() -> None:
    first = [True] * 8 + [False] * 2
    second = [True] * 5 + [False] * 4 + [True]
    # Only first: 3 rows, only second: 1. Plus half a row each: 3.5/12 and 1.5/12, difference 2/12.
    half = 1.959964 * math.sqrt((5 / 12 - (2 / 12) ** 2) / 12)
    found = paired_difference(first, second)
    assert (found.value, found.n) == (pytest.approx(0.2), 10)
    assert (found.low, found.high) == pytest.approx((2 / 12 - half, 2 / 12 + half), abs=1e-6)


@CALM
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_a_paired_difference_changes_sign_with_the_order(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert -1 <= there.low <= there.value <= there.high <= 1


@pytest.mark.parametrize("shares", [(0.05, 0.02), (0.2, 0.2), (0.3, 0.05)])
def test_a_paired_difference_covers_the_truth_as_often_as_stated(shares: tuple[float, float]) -> None:
    draw, n, sets = np.random.default_rng(0), 120, 1500
    only_first, only_second = shares
    kinds = draw.choice(3, p=[only_first, only_second, 1 - only_first - only_second], size=(sets, n))
    covered = 0
    for row in kinds:
        found = paired_difference(row != 1, row != 0)
        covered += found.low <= only_first - only_second <= found.high
    # Four standard deviations of 1,500 draws at 95 % are 2.3 %.
    assert covered / sets >= 0.95 - 0.023


def test_a_paired_difference_of_scores_by_hand() -> None:
    found = paired_difference([0.9, 0.5, 1.0], [0.4, 0.5, 0.8])
    # Differences 0.5, 0 and 0.2; with two more pairs that bring a square of 1: (0.25 + 0.04 + 1) / 5 - (0.7 / 5)**2
    half = 1.959964 * math.sqrt((1.29 / 5 - 0.14**2) / 5)
    assert (found.value, found.n) == (pytest.approx(0.7 / 3), 3)
    assert (found.low, found.high) == pytest.approx((0.14 - half, 0.14 + half), abs=1e-6)


def test_rows_that_all_differ_alike_keep_the_value_inside_the_interval() -> None:
    found = paired_difference([1.0] * 5, [0.0] * 5)
    assert found.value == found.high == 1.0
    assert found.low < 0.8
    # A narrow interval about the centre, which the two added pairs pull towards 0, would leave the value out.
    found = paired_difference([0.5] * 50, [0.0] * 50, confidence=0.2)
    assert found.low < found.value == found.high == 0.5


def test_paired_rows_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="paired rows differ in number: 2 and 1"):
        paired_difference([True, False], [True])


@pytest.mark.parametrize("score", [1.5, math.nan])
def test_scores_beyond_0_and_1_are_refused(score: float) -> None:
    with pytest.raises(ValueError, match="must differ by at most 1"):
        paired_difference([score], [0.0])


def test_a_bootstrap_agrees_with_scipys_percentile_interval() -> None:
    values = np.random.default_rng(1).normal(3, 2, 200)
    found = bootstrap(lambda rows: float(values[rows].mean()), len(values), resamples=5000)
    reference = scipy_stats.bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=2)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval), abs=0.02)
    assert found == bootstrap(lambda rows: float(values[rows].mean()), len(values), resamples=5000)


def test_the_bias_corrected_interval_is_the_percentile_one_moved_towards_the_value() -> None:
    values = np.linspace(0.4, 0.6, 1001)
    # In the middle of the resamples there is nothing to correct; n is large, so that Wilson's interval is inside.
    found = bootstrap_interval(0.5, values, n=100_000)
    assert (found.low, found.high) == pytest.approx((0.405, 0.595), abs=1e-6)
    # 84.13 % of the resamples lie below 0.56827, one standard deviation: both ends move up by two of them, from the
    # quantiles at ±1.96 to those at 0.04 and 3.96.
    found = bootstrap_interval(0.568269, values, n=100_000)
    expected = 0.4 + 0.2 * scipy_stats.norm.cdf([2 - 1.959964, 2 + 1.959964])
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-3)


def test_a_share_without_an_error_is_as_open_as_wilson_says() -> None:
    right = np.ones(30)
    found = bootstrap_share(lambda rows: float(right[rows].mean()), 30)
    assert found == wilson(30, 30)


@CALM
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=60))
def test_kappa_agrees_with_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    found = cohen_kappa(first, second)
    if len({*first, *second}) > 1:
        assert found.value == pytest.approx(cohen_kappa_score(first, second))
    else:
        assert (found.value, found.low, found.high) == (0.0, -1.0, 1.0)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.n == len(pairs)


def test_kappa_by_hand() -> None:
    # Cohen's measure of two judges: agreement 0.7 (20 + 15 of 50), by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    found = cohen_kappa(first, second)
    assert found.value == pytest.approx(0.4)
    agreement = wilson(35, 50)
    assert (found.low, found.high) == pytest.approx((2 * agreement.low - 1, 2 * agreement.high - 1))
    with pytest.raises(ValueError, match="paired rows differ in number: 1 and 2"):
        cohen_kappa(["yes"], ["yes", "no"])


@given(st.lists(st.floats(0, 1), min_size=3, max_size=12), st.floats(0.001, 0.999))
def test_holm_rejects_what_its_steps_reject(p_values: list[float], level: float) -> None:
    left, rejected = list(range(len(p_values))), set()
    while left and p_values[least := min(left, key=p_values.__getitem__)] * len(left) <= level:
        rejected.add(least)
        left.remove(least)
    assert {i for i, p in enumerate(holm(p_values)) if p <= level} == rejected


def test_holm_by_hand() -> None:
    # Smallest times 3, next times 2, and no later one below an earlier one.
    assert holm([0.03, 0.01, 0.035]) == pytest.approx((0.06, 0.03, 0.06))


@pytest.mark.parametrize("n", [30, 200])
@pytest.mark.parametrize("p", [0.5, 0.9])
def test_intervals_of_a_share_cover_as_often_as_stated(n: int, p: float) -> None:
    chances = scipy_stats.binom.pmf(range(n + 1), n, p)
    for interval, least in ((wilson, 0.93), (clopper_pearson, 0.95)):
        ends = [interval(count, n) for count in range(n + 1)]
        assert chances[[each.low <= p <= each.high for each in ends]].sum() >= least
    assert chances[[upper_bound(n - count, n) >= 1 - p for count in range(n + 1)]].sum() >= 0.95


def test_a_paired_difference_covers_as_often_as_stated() -> None:
    # The first model is right on 2 points more of 60 rows; half of its errors are errors of both.
    n, covered, draws = 60, 0, 2000
    for a, b, _ in np.random.default_rng(0).multinomial(n, [0.07, 0.05, 0.88], draws).tolist():
        rows = np.arange(n)
        found = paired_difference((rows < a).tolist(), ((rows >= a) & (rows < a + b)).tolist())
        covered += found.low <= 0.02 + 1e-12 and found.high >= 0.02 - 1e-12
    assert covered / draws >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / draws)


def test_the_bootstrap_of_few_rows_without_errors_is_widened() -> None:
    # The mean of 30 rows, 97 % of them right: two samples in five have no error, which leaves nothing to resample.
    draw, n, p, draws = np.random.default_rng(0), 30, 0.97, 300
    plain = widened = 0
    for right in draw.binomial(n, p, draws).tolist():
        values = draw.binomial(n, right / n, 1000) / n
        low, high = np.quantile(values, [0.025, 0.975])
        found = bootstrap_interval(right / n, values, n=n)
        plain += low <= p <= high
        widened += found.low <= p <= found.high
    assert plain / draws < 0.75
    assert widened / draws >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / draws)


@pytest.mark.parametrize(("n", "q"), [(100, 0.95), (72, 0.95), (300, 0.95), (40, 0.5)])
def test_a_quantile_misses_as_seldom_as_the_binomial_says(n: int, q: float) -> None:
    found = quantile_interval(np.arange(1, n + 1), q)
    below = scipy_stats.binom(n, q)  # how many of n values lie below the quantile; value k is the k-th smallest
    assert below.cdf(found.low - 1) <= 0.025 < below.cdf(found.low)
    assert below.sf(found.high - 1) <= 0.025 < below.sf(found.high - 2)


def test_so_few_values_show_no_end_of_a_quantile() -> None:
    assert quantile_interval(range(71), 0.95).high == math.inf
    assert quantile_interval([], 0.5) == Estimate(value=0, low=-math.inf, high=math.inf, n=0)


def test_a_skewed_mean_is_covered_where_students_interval_is_too_low() -> None:
    draw, missed, students, draws = np.random.default_rng(11), 0, 0, 200
    for _ in range(draws):  # one request in fifty costs twenty times as much
        values = np.where(draw.random(200) < 0.02, 20.0, 1.0) * draw.uniform(0.9, 1.1, 200)
        found = mean_interval(values)
        missed += found.high < 1.38
        students += values.mean() + 1.972 * values.std(ddof=1) / math.sqrt(200) < 1.38
    assert missed / draws <= 0.04 < students / draws


def test_means_without_spread_or_without_values() -> None:
    assert mean_interval([0.1] * 7) == Estimate(value=0.1, low=0.1, high=0.1, n=7)
    assert mean_interval([2.0]) == Estimate(value=2, low=-math.inf, high=math.inf, n=1)
    assert mean_interval([]).n == 0


def test_a_ratio_over_units_covers_the_mean_of_a_population_drawn_with_unequal_chances() -> None:
    draw, inside, plain = np.random.default_rng(3), 0, 0
    for _ in range(400):
        costs = draw.gamma(2.0, 0.5, 300)
        chance = np.clip(0.05 + 0.2 * costs, 0, 1)  # dear ones are drawn more often
        drawn = draw.random(300) < chance
        weights = 1 / chance[drawn]
        found = ratio_interval(costs[drawn] * weights, weights)
        inside += found.low <= costs.mean() <= found.high
        plain += abs(costs[drawn].mean() - costs.mean()) < found.high - found.value
    assert plain / 400 < 0.6 < 0.91 <= inside / 400 <= 0.99


def test_a_ratio_of_sums_with_the_linearized_variance_by_hand() -> None:
    found = ratio_interval([3.0, 6.0, 0.0], [10, 10, 0])  # an empty day says nothing
    spread = math.sqrt(2 * (1.5**2 + 1.5**2)) / 20
    assert (found.value, found.n) == (0.45, 20)
    assert found.high - 0.45 == pytest.approx(scipy_stats.t.ppf(0.975, 1) * spread)
    assert math.isinf(ratio_interval([3.0], [10]).high)
    assert math.isinf(ratio_interval([], []).high)
