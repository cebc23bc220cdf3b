"""What shows a limit on errors while some requests are foreign: by hand, and by simulation on the edge."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fixtures.certificates import cascade

from smallfirst.base.stats.intervals import upper_bound
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import (
    MIXTURE_LEVELS,
    CascadeData,
    is_shown,
    max_outside,
    measure_risk,
    mixture,
)
from smallfirst.routing.certificate.threshold_search import search_cascade

MIXED = Guarantee(max_error=0.1, max_foreign_share=0.5)


def mixed(own: np.ndarray, right: np.ndarray, foreign: np.ndarray, share: float = 0.5) -> CascadeData:
    return dataclasses.replace(cascade(own[None], right[None]), foreign=foreign[None], foreign_share=share)


def test_a_foreign_request_that_is_accepted_counts_as_wrong() -> None:
    own, right = np.array([0.9] * 80 + [0.1] * 20), np.array([True] * 76 + [False] * 4 + [True] * 20)
    outcome = mixed(own, right, np.array([0.9] * 2 + [0.1] * 98)).outcome((0.5,))
    shown = measure_risk("error", outcome, 0.1, 0.05)
    assert shown.value == pytest.approx((0.04 + 0.02) / (0.80 + 0.02))
    assert measure_risk("error", mixed(own, right, np.array([0.1]), 0.0).outcome((0.5,)), 0.1, 0.05).value == 4 / 80
    loose, tight = (is_shown("error", outcome, shown.bound + more, 0.05) for more in (1e-9, -1e-9))
    assert (loose, tight, sum(MIXTURE_LEVELS)) == (True, False, 1.0)


def test_the_bound_is_that_of_the_worst_rates_which_the_rows_allow_for() -> None:
    counts = ((3, 80), (20, 100), (1, 200))
    parts = [upper_bound(*one, confidence=1 - 0.05 * p) for one, p in zip(counts, MIXTURE_LEVELS, strict=True)]
    _, found = mixture(3, 80, 100, (1, 200), 0.3, 0.05)
    own, others = 0.7 * (1 - parts[1]), 0.3 * parts[2]
    assert found == pytest.approx((parts[0] * own + others) / (own + others))
    assert mixture(3, 80, 100, (1, 200), 0.2, 0.05)[1] < found  # a smaller share is easier
    assert mixture(0, 80, 100, (0, 0), 0.3, 0.05)[1] > 0.3  # unknown foreign rows are all accepted


def test_the_promise_is_broken_at_most_as_often_as_it_says_and_without_foreign_rows_always() -> None:
    draws, issued, broken = 100, {0.0: 0, 0.5: 0}, {0.0: 0, 0.5: 0}
    for seed in range(draws):
        draw = np.random.default_rng(seed)
        own, foreign = draw.random(800), 0.4 * draw.random(400)
        right = draw.random(800) > 0.15 * (1 - own)
        for share in issued:
            rows = mixed(own, right, foreign, share) if share else cascade(own[None], right[None])
            (threshold,) = search_cascade(rows, MIXED).thresholds
            issued[share] += threshold <= 1
            accepted, wrong, others = 1 - threshold, 0.075 * (1 - threshold) ** 2, max(0.0, 1 - threshold / 0.4)
            broken[share] += threshold <= 1 and (wrong + others) / (accepted + others) > 0.1
    assert (issued[0.0], broken[0.0]) == (draws, draws)
    assert issued[0.5] > 0.6 * draws
    assert broken[0.5] <= 0.05 * draws


def test_what_may_look_foreign_is_bounded_by_both_kinds_of_rows() -> None:
    own, foreign = upper_bound(3, 100, confidence=0.975), upper_bound(150, 200, confidence=0.975)
    assert max_outside(0.25, (3, 100), (150, 200)) == pytest.approx(0.75 * own + 0.25 * foreign)
    assert max_outside(0.5, (3, 100), (150, 200)) > max_outside(0.25, (3, 100), (150, 200))


def test_where_nothing_is_promised_about_foreign_requests_few_are_accepted_all_the_same() -> None:
    draw = np.random.default_rng(0)
    own, right, foreign = draw.random(400), np.ones(400, dtype=bool), 0.4 * draw.random(300)
    (loose,) = search_cascade(cascade(own[None], right[None]), Guarantee(max_error=0.1)).thresholds
    (strict,) = search_cascade(mixed(own, right, foreign, 0.0), Guarantee(max_error=0.1)).thresholds
    assert loose < 0.01
    assert 0.3 < strict < 0.4
    assert (foreign >= strict).mean() <= 0.05
    (any_other,) = search_cascade(mixed(own, right, np.ones(300), 0.0), Guarantee(max_error=0.1)).thresholds
    assert any_other <= 1  # if every foreign row is accepted everywhere, own requests are answered all the same
