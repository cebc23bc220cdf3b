"""The test of a low rate holds its level at every row, and finds what a fixed number of rows finds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from smallfirst.stats.low_rate import PRIOR_ROWS, evidence_upper_bound, low_rate_evidence, more_right_rows

LIMIT, LEVEL = 0.05, 0.05


def test_evidence_is_the_ratio_of_likelihoods_averaged_below_the_limit() -> None:
    prior = stats.beta(0.5, 0.5 + PRIOR_ROWS / LIMIT)

    def ratio(rate: float) -> float:
        return float(prior.pdf(rate)) * (rate / LIMIT) ** 2 * ((1 - rate) / (1 - LIMIT)) ** 98

    expected = integrate.quad(ratio, 0, LIMIT)[0] / prior.cdf(LIMIT)
    assert low_rate_evidence(2, 100, LIMIT) == pytest.approx(expected, rel=1e-6)
    assert low_rate_evidence(0, 0, LIMIT) == pytest.approx(1)


@pytest.mark.parametrize("rate", [0.05, 0.08, 0.5])
def test_one_more_row_brings_nothing_on_average_while_the_rate_is_too_high(rate: float) -> None:
    for errors, n in ((0, 0), (0, 50), (3, 80), (20, 200)):
        right, wrong = low_rate_evidence([errors, errors + 1], [n + 1, n + 1], LIMIT)
        assert (1 - rate) * right + rate * wrong <= low_rate_evidence(errors, n, LIMIT) * (1 + 1e-9)


def test_a_true_limit_is_rejected_at_any_row_at_most_at_the_level() -> None:
    wrong = (np.random.default_rng(0).random((2000, 600)) < LIMIT).cumsum(axis=1)
    ever = (low_rate_evidence(wrong, np.arange(1, 601), LIMIT) * LEVEL >= 1).any(axis=1).mean()
    assert 0.01 < ever <= LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / 2000)


def test_rows_without_an_error_show_the_limit_soon() -> None:
    n = more_right_rows(0, 0, LIMIT, level=LEVEL)
    assert 59 <= n <= 72  # the exact binomial test at a fixed number needs 59
    assert low_rate_evidence(0, n, LIMIT) * LEVEL >= 1 > low_rate_evidence(0, n - 1, LIMIT) * LEVEL
    assert more_right_rows(0, n - 12, LIMIT, level=LEVEL) == 12
    assert more_right_rows(400, 400, LIMIT, level=LEVEL, most=50) == 50


def test_the_bound_is_the_least_limit_that_the_rows_have_shown() -> None:
    n = more_right_rows(0, 0, LIMIT, level=LEVEL)
    assert evidence_upper_bound([0] * (n + 1), level=LEVEL) == pytest.approx(LIMIT, abs=0.001)
    assert evidence_upper_bound([0] * (n + 1), level=LEVEL) <= LIMIT
    assert evidence_upper_bound([0], level=LEVEL) == 1
    # What was shown stays shown, whatever comes later.
    assert evidence_upper_bound([*[0] * (n + 1), *range(1, 30)], level=LEVEL) <= LIMIT
