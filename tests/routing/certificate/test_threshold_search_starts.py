"""Where the search begins: starts in rows, and the choice on selection rows."""

from __future__ import annotations

import numpy as np
import pytest

from smallfirst.routing.certificate.threshold_search import DEFAULT_STARTS, choose_starts, start_rows


def test_starts_are_an_eighth_a_quarter_and_half_of_many_rows() -> None:
    assert start_rows(1600, 0.05, 0.05) == [(200, 0.25), (400, 0.25), (800, 0.5)]


def test_a_start_with_too_few_rows_to_show_anything_hands_its_level_on() -> None:
    # 86 rows show 5 % at a quarter of the level, 72 at half of it, 59 at all of it.
    assert start_rows(800, 0.05, 0.05) == [(100, 0.25), (200, 0.25), (400, 0.5)]
    assert start_rows(400, 0.05, 0.05) == [(86, 0.25), (100, 0.25), (200, 0.5)]
    assert start_rows(200, 0.05, 0.05) == [(72, 0.5), (100, 0.5)]
    assert start_rows(100, 0.05, 0.05) == [(59, 1.0)]


@pytest.mark.parametrize(("good", "start"), [(0.15, 1 / 8), (0.35, 1 / 4), (1.0, 5 / 8)])
def test_selection_rows_choose_the_start_that_keeps_most(good: float, start: float) -> None:
    scores = np.linspace(1, 0, 2000)
    right = np.where(scores > 1 - good, np.arange(2000) % 50 != 0, np.arange(2000) % 2 == 0)
    ((accepted, share),) = choose_starts(scores, right, 2000, 0.05, 0.05)
    assert share == 1.0
    assert accepted == pytest.approx(start, abs=0.07)


def test_without_enough_selection_rows_or_hope_the_starts_are_the_default() -> None:
    scores = np.linspace(1, 0, 200)
    assert choose_starts(scores[:19], np.ones(19, dtype=bool), 200, 0.05, 0.05) == DEFAULT_STARTS
    assert choose_starts(scores, np.arange(200) % 2 == 0, 200, 0.05, 0.05) == DEFAULT_STARTS
