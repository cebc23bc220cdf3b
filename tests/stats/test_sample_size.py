"""The rows that are asked for, against the interval they are to satisfy and against simulated measurements."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.stats.intervals import paired_difference, wilson
from smallfirst.stats.sample_size import rows_to_show_difference, rows_to_show_share

CALM = settings(max_examples=25, deadline=None)
"""A busy machine is no reason to fail."""


def test_a_perfect_record_by_hand() -> None:
    # Wilson's lower end for n of n is n / (n + z²): 0.9 needs n = 9 z² = 34.6, and 0.95 needs 19 z² = 72.99.
    assert rows_to_show_share(1.0, 0.9) == 35
    assert rows_to_show_share(1.0, 0.95) == 73
    assert rows_to_show_share(1.0, 0.9, confidence=0.99) == 60  # 9 * 2.5758²


@CALM
@given(st.integers(500, 1000), st.integers(10, 300))
def test_so_many_rows_reach_the_bar_and_no_fewer_do(permille: int, below: int) -> None:
    rate, bar, most = permille / 1000, (permille - below) / 1000, 2000

    def reached(n: int) -> bool:
        return wilson(permille * n // 1000, n).low >= bar - 1e-12  # whole numbers: nothing to round

    needed = rows_to_show_share(rate, bar, most=most)
    assert needed == next((n for n in range(1, most + 1) if reached(n)), None)


def test_a_whole_number_of_successes_is_not_rounded_down_to_the_one_before() -> None:
    # 0.57 * 100 is 56.99999999999999 to a computer.
    needed = rows_to_show_share(0.57, wilson(57, 100).low - 1e-9)
    assert needed is not None
    assert needed <= 100


def test_a_rate_at_or_below_the_bar_never_shows_it() -> None:
    assert rows_to_show_share(0.9, 0.9) is None
    assert rows_to_show_share(0.8, 0.9) is None
    assert rows_to_show_share(0.91, 0.9, most=1000) is None


def test_two_models_that_never_differ_need_rows_for_the_width_alone() -> None:
    # Nothing differs: the interval is ± 1.96 / (n + 2), and 1.96 / 0.05 - 2 = 37.2.
    assert rows_to_show_difference(0.0, 0.0, 0.05) == 38
    n = 38
    assert paired_difference([True] * n, [True] * n).low >= -0.05 > paired_difference([True] * 37, [True] * 37).low


@pytest.mark.parametrize(
    ("only_first", "only_second", "margin"), [(0.05, 0.05, 0.03), (0.02, 0.04, 0.05), (0.12, 0.06, 0.0)]
)
def test_so_many_rows_show_a_difference_four_times_in_five(
    only_first: float, only_second: float, margin: float
) -> None:
    n = rows_to_show_difference(only_first, only_second, margin)
    assert n is not None
    draw = np.random.default_rng(0)
    counts = draw.multinomial(n, [only_first, only_second, 1 - only_first - only_second], 400)
    rows = np.arange(n)
    shown = [
        paired_difference((rows < a).tolist(), ((rows >= a) & (rows < a + b)).tolist()).low >= -margin
        for a, b, _ in counts.tolist()
    ]
    # Four standard errors of 400 draws at 80 % are 8 points.
    assert np.mean(shown) == pytest.approx(0.8, abs=0.08)


@CALM
@given(st.floats(0, 0.2), st.floats(0, 0.2), st.floats(0, 0.1))
def test_less_to_show_needs_no_more_rows(only_first: float, only_second: float, margin: float) -> None:
    needed = rows_to_show_difference(only_first, only_second, margin)
    wider = rows_to_show_difference(only_first, only_second, margin + 0.05)
    surer = rows_to_show_difference(only_first, only_second, margin, power=0.9)
    if needed is None:
        assert surer is None
        return
    assert wider is not None
    assert wider <= needed
    assert surer is None or surer >= needed


def test_a_difference_at_or_below_the_margin_is_never_shown() -> None:
    assert rows_to_show_difference(0.02, 0.05, 0.03) is None
    assert rows_to_show_difference(0.05, 0.05, 0.0) is None
    assert rows_to_show_difference(0.05, 0.05, 0.01, most=1000) is None
