"""The rows that are asked for, against the interval they are to satisfy and against simulation; shrinkage."""

from collections.abc import Callable

import numpy as np
import pytest
from fixtures.certificates import cascade
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.base.stats.intervals import Estimate, upper_bound, wilson
from smallfirst.base.stats.sample_size import (
    MAX_ROWS,
    RowsNeeded,
    chance_of_error_bound,
    chance_of_interval,
    chance_of_share,
    fewest_rows,
    round_up_to_two_digits,
    rows_for_error,
    rows_for_upper_bound,
    shrunk_means,
)
from smallfirst.routing.certificate.calibration_set import CalibrationSet
from smallfirst.routing.certificate.certificate import Guarantee
from smallfirst.routing.certificate.threshold_search import search_cascade


@pytest.mark.parametrize(
    ("chance", "rows", "said"),
    [
        (lambda n: float(n >= 100), 100, 1.0),
        (lambda n: min(0.9, n / 1000), 750, 0.75),
        (lambda n: min(0.5, n / 1000), 450, 0.45),  # nine tenths of what is possible
        (lambda n: 1.0, 0, 1.0),
    ],
)
def test_the_fewest_rows_that_are_likely_enough(chance: Callable[[int], float], rows: int, said: float) -> None:
    found = fewest_rows(chance)
    assert found.n_more == pytest.approx(rows, rel=0.05)
    assert found.chance == pytest.approx(said, rel=0.05)
    assert not found.unlikely


def test_only_what_no_number_of_rows_makes_likely_is_unlikely() -> None:
    assert fewest_rows(lambda n: 0.04).unlikely
    assert not fewest_rows(lambda n: 0.1 * n / MAX_ROWS).unlikely


def test_a_share_s_chance_is_that_of_simulated_measurements() -> None:
    draw, right, n, more, bar = np.random.default_rng(0), 88, 100, 300, 0.85
    truths = draw.beta(right + 1, n - right + 1, 4000)
    came = [wilson(right + draw.binomial(more, p), n + more).low >= bar for p in truths]
    assert chance_of_share(right, n, more, bar) == pytest.approx(np.mean(came), abs=0.03)
    fresh = [wilson(draw.binomial(more, p), more).low >= bar for p in truths]
    assert chance_of_share(right, n, more, bar, again=0.0) == pytest.approx(np.mean(fresh), abs=0.03)
    assert chance_of_share(right, n, 0, 0.9) == 0
    truths = draw.beta(right + 58 + 1, n - right + 2 + 1, 4000)  # 58 of 60 other rows were right as well
    came = [wilson(right + draw.binomial(more, p), n + more).low >= bar for p in truths]
    assert chance_of_share(right, n, more, bar, beside=(58, 60)) == pytest.approx(np.mean(came), abs=0.03)


def test_an_error_bound_s_chance_is_that_of_simulated_tests() -> None:
    draw, wrong, n, more, limit = np.random.default_rng(1), 1, 60, 200, 0.05
    truths = draw.beta(wrong + 0.8, n - wrong + 1, 4000)
    came = [upper_bound(wrong + draw.binomial(more, p), n + more) <= limit for p in truths]
    assert chance_of_error_bound(wrong, n, more, limit, level=0.05) == pytest.approx(np.mean(came), abs=0.03)
    assert chance_of_error_bound(0, 59, 0, limit, level=0.05) == 1  # 0.95**59 = 0.0485
    assert chance_of_error_bound(0, 58, 0, limit, level=0.05) == 0


def test_an_interval_s_chance_by_hand() -> None:
    found = Estimate(value=0.9, low=0.8, high=0.95, n=100)
    # Half of the width with four times the rows: the lower end lies at the value's distance, so one in two.
    assert chance_of_interval(found, 0.85, 300, z=1.96) == pytest.approx(0.5)
    assert chance_of_interval(found, 0.8, 0, z=1.96) == 1
    assert chance_of_interval(found, 0.96, 0, z=1.96, at_most=True) == 1
    assert chance_of_interval(found, 0.94, 0, z=1.96, at_most=True) == 0
    # A value one standard error below the threshold is above it in truth in one of six cases.
    assert chance_of_interval(found, 0.9 + 0.1 / 1.96, 10**9, z=1.96) == pytest.approx(0.159, abs=0.001)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 30), st.integers(10, 200))
def test_the_rows_for_upper_bound_are_enough_and_no_fewer_are(rate_permille: int, bar_permille: int) -> None:
    needed = rows_for_upper_bound(rate_permille / 1000, bar_permille / 1000, max_rows=1500)

    def enough(n: int) -> bool:
        errors = -(-rate_permille * n // 1000)  # whole numbers: nothing to round
        return upper_bound(errors, n) <= bar_permille / 1000

    assert needed == next((n for n in range(1, 1501) if enough(n)), None)


def test_a_whole_number_of_errors_is_not_rounded_up_to_the_next() -> None:
    # 0.035 * 200 is 7.000000000000001 to a computer; 7 errors in 200 show 6.5 %, 8 would not.
    assert rows_for_upper_bound(0.035, 0.065) == 200
    assert upper_bound(7, 200) <= 0.065 < upper_bound(8, 200)


@pytest.mark.parametrize(("rows", "rounded"), [(-3, 1), (7, 7), (99, 99), (131, 140), (1310, 1400), (1300, 1300)])
def test_rows_are_rounded_up_to_two_digits(rows: int, rounded: int) -> None:
    assert round_up_to_two_digits(rows) == rounded


def issued(rows: CalibrationSet) -> bool:
    return search_cascade(rows, Guarantee()).issued


def joined(one: CalibrationSet, two: CalibrationSet) -> CalibrationSet:
    return cascade(
        *(np.concatenate([getattr(rows, name)[0] for rows in (one, two)]) for name in ("confidence", "right"))
    )


def for_error(rows: CalibrationSet) -> RowsNeeded:
    return rows_for_error(rows.confidence[0], rows.right[0], 0.05, 0.05, refused_at=0.05)


def test_the_foretold_rows_suffice_as_often_as_stated() -> None:
    draw, n, enough, stated = np.random.default_rng(2), 0, 0, 0.0
    for _ in range(90):
        confidence = draw.random(100)
        wrong = draw.beta(1, 20)
        rows = cascade(confidence, draw.random(100) >= wrong * 2 * (1 - confidence))
        if issued(rows) or (found := for_error(rows)).unlikely:
            continue
        later = draw.random(found.n_more)
        more = cascade(later, draw.random(found.n_more) >= wrong * 2 * (1 - later))
        n, stated, enough = n + 1, stated + found.chance, enough + issued(joined(rows, more))
    assert n >= 24
    assert abs(enough - stated) / n < 0.2


def test_a_rate_above_the_limit_that_chance_explains_is_not_called_unlikely() -> None:
    # 6 of 100 wrong: at a limit of 5 % the measured rate shows nothing, but the true rate may be 3 %.
    right = np.ones(100, bool)
    right[::17] = False
    confidence = 1 - np.arange(100) / 200
    found = for_error(cascade(confidence, right))
    assert 0.1 < found.chance <= 0.8
    assert 100 < found.n_more < 20_000
    assert for_error(cascade(confidence, ~right)).unlikely


def test_before_anything_is_answered_all_rows_are_drawn() -> None:
    right = np.ones(1000, bool)
    confidence = np.linspace(1, 0.5, 1000)
    few = rows_for_error(confidence, right, 0.05, 0.04, again=0.0, n_new=40)
    assert 23 <= few.n_more <= 40  # 63 rows without an error show it at 4 %
    assert rows_for_error(confidence, right, 0.05, 0.04, again=0.0, n_new=400).n_more == 0


def test_rows_that_certify_only_once_are_known_but_not_counted_again() -> None:
    right, confidence = np.ones(100, bool), 1 - np.arange(100) / 200
    all_again = rows_for_error(confidence, right, 0.02, 0.05)  # 149 rows without an error show 2 %
    half_again = rows_for_error(confidence, right, 0.02, 0.05, again=0.5)
    assert all_again.n_more < half_again.n_more


def wrong(n_right: int, n: int) -> dict[str, float]:
    """Errors of a model that is right on the first rows: what is difficult for one is so for all."""
    return {str(i): float(i >= n_right) for i in range(n)}


def shrunk(*series: dict[str, float]) -> list[float]:
    return shrunk_means(series, least_spread=0.04, unknown=1.0)


def test_means_of_few_rows_are_shrunk_and_of_many_are_not() -> None:
    few = shrunk(*(wrong(right, 20) for right in (18, 19, 20)))
    assert few == sorted(few, reverse=True)
    assert 0 < few[2] < few[0] < 0.1
    many = shrunk(*(wrong(right, 20_000) for right in (18_000, 19_000, 20_000)))
    assert many == pytest.approx([0.1, 0.05, 0.0], abs=1e-3)
    assert shrunk(*[wrong(15, 20)] * 3) == pytest.approx([0.25] * 3)


def test_differences_by_row_tell_difficult_rows_from_a_better_model() -> None:
    """A tenth of the rows is wrong for both: they say nothing about the difference."""
    together = shrunk(wrong(85, 100), wrong(90, 100))
    apart = shrunk({str(i): float(i < 15) for i in range(100)}, wrong(90, 100))  # wrong on other rows
    assert together[0] - together[1] > 1.2 * (apart[0] - apart[1]) > 0
