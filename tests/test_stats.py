"""Every interval against a reference implementation, or against what it promises to cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.metrics import f1_score
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import proportion_confint

from smallfirst.stats import (
    Estimate,
    binomial_tail,
    bootstrap,
    macro_f1,
    mcnemar,
    paired_difference,
    rows_needed,
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


@CALM
@given(COUNTS, LEVELS)
def test_the_upper_bound_agrees_with_the_upper_end_of_a_two_sided_interval_at_twice_the_alpha(
    counts: tuple[int, int], level: float
) -> None:
    reference = proportion_confint(*counts, alpha=2 * (1 - level), method="beta")[1]
    assert upper_bound(*counts, confidence=level) == pytest.approx(reference, abs=1e-9)


@CALM
@given(COUNTS)
def test_the_upper_bound_is_the_rate_at_which_so_few_errors_are_as_rare_as_promised(counts: tuple[int, int]) -> None:
    bound = upper_bound(*counts)
    if counts[0] < counts[1]:
        assert binomial_tail(*counts, bound) == pytest.approx(0.05, abs=1e-6)
    else:
        assert bound == 1.0


def test_nothing_measured_shows_nothing() -> None:
    assert wilson(0, 0) == Estimate(value=0.0, low=0.0, high=1.0, n=0)
    assert upper_bound(0, 0) == 1.0
    assert mcnemar(0, 0) == 1.0
    assert paired_difference([], []) == Estimate(value=0.0, low=-1.0, high=1.0, n=0)
    assert bootstrap(lambda rows: 0.5, 0) == Estimate(value=0.0, low=0.0, high=1.0, n=0)


def test_an_estimate_prints_with_its_interval() -> None:
    assert str(wilson(547, 600)) == "0.912 [0.886, 0.932]"


def test_fifty_nine_rows_without_an_error_show_at_most_five_percent() -> None:
    # 0.95**59 = 0.0485 and 0.95**58 = 0.0510
    assert rows_needed(0.0, 0.05) == 59
    assert upper_bound(0, 59) <= 0.05 < upper_bound(0, 58)
    assert rows_needed(0.0, 0.01) == 299  # 0.99**299 = 0.0495


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 30), st.integers(10, 200))
def test_the_rows_needed_are_enough_and_no_fewer_are(rate_permille: int, bar_permille: int) -> None:
    needed = rows_needed(rate_permille / 1000, bar_permille / 1000, most=1500)

    def enough(n: int) -> bool:
        errors = -(-rate_permille * n // 1000)  # whole numbers: nothing to round
        return upper_bound(errors, n) <= bar_permille / 1000

    assert needed == next((n for n in range(1, 1501) if enough(n)), None)


def test_a_whole_number_of_errors_is_not_rounded_up_to_the_next() -> None:
    # 0.035 * 200 is 7.000000000000001 to a computer; 7 errors in 200 show 6.5 %, 8 would not.
    assert rows_needed(0.035, 0.065) == 200
    assert upper_bound(7, 200) <= 0.065 < upper_bound(8, 200)


def test_a_rate_at_or_above_the_bar_can_never_be_shown() -> None:
    assert rows_needed(0.05, 0.05) is None
    assert rows_needed(0.049, 0.05, most=1000) is None


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
def test_a_paired_difference_covers_the_truth_as_often_as_promised(shares: tuple[float, float]) -> None:
    draw, n, sets = np.random.default_rng(0), 120, 1500
    only_first, only_second = shares
    kinds = draw.choice(3, p=[only_first, only_second, 1 - only_first - only_second], size=(sets, n))
    covered = 0
    for row in kinds:
        found = paired_difference(row != 1, row != 0)
        covered += found.low <= only_first - only_second <= found.high
    # Four standard deviations of 1,500 draws at 95 % are 2.3 %.
    assert covered / sets >= 0.95 - 0.023


def test_paired_rows_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="paired rows differ in number: 2 and 1"):
        paired_difference([True, False], [True])


def test_a_bootstrap_agrees_with_scipys_percentile_interval() -> None:
    values = np.random.default_rng(1).normal(3, 2, 200)
    found = bootstrap(lambda rows: float(values[rows].mean()), len(values), resamples=5000)
    reference = scipy_stats.bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=2)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval), abs=0.02)
    assert found == bootstrap(lambda rows: float(values[rows].mean()), len(values), resamples=5000)


@CALM
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 4)), min_size=1, max_size=60))
def test_macro_f1_agrees_with_scikit_learn_and_no_answer_is_a_wrong_one(pairs: list[tuple[int, int]]) -> None:
    gold, answer = np.array([g for g, _ in pairs]), np.array([a for _, a in pairs])
    there = sorted({*gold.tolist(), *answer[answer >= 0].tolist()})
    reference = f1_score(gold, answer, labels=there, average="macro", zero_division=0)
    assert macro_f1(gold, answer, 5) == pytest.approx(reference)


def test_macro_f1_of_no_rows_is_zero() -> None:
    nothing = np.array([], dtype=int)
    assert macro_f1(nothing, nothing, 3) == 0.0
