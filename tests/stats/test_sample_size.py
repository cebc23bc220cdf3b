"""The rows that are asked for, against the interval they are to satisfy and against simulated measurements."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.stats.intervals import upper_bound, wilson
from smallfirst.stats.sample_size import round_up_to_two_digits, rows_for_lower_bound, rows_for_upper_bound

CALM = settings(max_examples=25, deadline=None)
"""A busy machine is no reason to fail."""


def test_a_perfect_record_by_hand() -> None:
    # Wilson's lower end for n of n is n / (n + z²): 0.9 needs n = 9 z² = 34.6, and 0.95 needs 19 z² = 72.99.
    assert rows_for_lower_bound(1.0, 0.9) == 35
    assert rows_for_lower_bound(1.0, 0.95) == 73
    assert rows_for_lower_bound(1.0, 0.9, confidence=0.99) == 60  # 9 * 2.5758²


@CALM
@given(st.integers(500, 1000), st.integers(10, 300))
def test_so_many_rows_reach_the_bar_and_no_fewer_do(permille: int, below: int) -> None:
    rate, bar, most = permille / 1000, (permille - below) / 1000, 2000

    def reached(n: int) -> bool:
        return wilson(permille * n // 1000, n).low >= bar - 1e-12  # whole numbers: nothing to round

    needed = rows_for_lower_bound(rate, bar, max_rows=most)
    assert needed == next((n for n in range(1, most + 1) if reached(n)), None)


def test_a_whole_number_of_successes_is_not_rounded_down_to_the_one_before() -> None:
    # 0.57 * 100 is 56.99999999999999 to a computer.
    needed = rows_for_lower_bound(0.57, wilson(57, 100).low - 1e-9)
    assert needed is not None
    assert needed <= 100


def test_a_rate_at_or_below_the_bar_never_shows_it() -> None:
    assert rows_for_lower_bound(0.9, 0.9) is None
    assert rows_for_lower_bound(0.8, 0.9) is None
    assert rows_for_lower_bound(0.91, 0.9, max_rows=1000) is None


def test_fifty_nine_rows_without_an_error_show_at_most_five_percent() -> None:
    # 0.95**59 = 0.0485 and 0.95**58 = 0.0510
    assert rows_for_upper_bound(0.0, 0.05) == 59
    assert upper_bound(0, 59) <= 0.05 < upper_bound(0, 58)
    assert rows_for_upper_bound(0.0, 0.01) == 299  # 0.99**299 = 0.0495


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


def test_a_rate_at_or_above_the_bar_can_never_be_shown() -> None:
    assert rows_for_upper_bound(0.05, 0.05) is None
    assert rows_for_upper_bound(0.049, 0.05, max_rows=1000) is None


@pytest.mark.parametrize(("rows", "rounded"), [(-3, 1), (7, 7), (99, 99), (131, 140), (1310, 1400), (1300, 1300)])
def test_rows_are_rounded_up_to_two_digits(rows: int, rounded: int) -> None:
    assert round_up_to_two_digits(rows) == rounded
