"""Where the search begins: starts in rows, and the choice on selection rows."""

from __future__ import annotations

import numpy as np
import pytest

from smallfirst.routing.certificate.threshold_search import DEFAULT_STARTS, choose_starts, search_rows, start_rows


def test_starts_are_an_eighth_a_quarter_and_half_of_many_rows() -> None:
    assert start_rows(1600, 0.05, 0.05) == [(200, 0.25), (400, 0.25), (800, 0.5)]


def test_a_start_with_too_few_rows_to_show_anything_hands_its_level_on() -> None:
    # 86 rows show 5 % at a quarter of the level, 72 at half of it, 59 at all of it.
    assert start_rows(800, 0.05, 0.05) == [(100, 0.25), (200, 0.25), (400, 0.5)]
    assert start_rows(400, 0.05, 0.05) == [(86, 0.25), (100, 0.25), (200, 0.5)]
    assert start_rows(200, 0.05, 0.05) == [(72, 0.5), (100, 0.5)]
    assert start_rows(100, 0.05, 0.05) == [(59, 1.0)]


@pytest.mark.parametrize(("good", "start"), [(0.15, 1 / 8), (0.35, 1 / 4), (1.0, 5 / 8)])
def test_selection_rows_choose_the_start_that_has_most_of_the_level(good: float, start: float) -> None:
    scores = np.linspace(1, 0, 2000)
    right = np.where(scores > 1 - good, np.arange(2000) % 50 != 0, np.arange(2000) % 2 == 0)
    found = choose_starts(scores, right, 2000, 0.05, 0.05)
    accepted, share = max(found, key=lambda one: one[1])
    assert accepted == pytest.approx(start, abs=0.07)
    assert share > 0.99
    assert sum(part for _, part in found) == pytest.approx(1)


def test_without_selection_rows_or_hope_the_starts_are_the_default() -> None:
    scores = np.linspace(1, 0, 200)
    assert choose_starts(scores[:0], np.ones(0, dtype=bool), 200, 0.05, 0.05) == DEFAULT_STARTS
    assert choose_starts(scores, np.arange(200) % 2 == 0, 200, 0.05, 0.05) == DEFAULT_STARTS


def test_a_start_that_few_rows_chose_and_that_fails_does_not_ruin_the_certificate() -> None:
    # 24 selection rows that are all right choose three quarters of 97 rows, of which the third error is the 73rd.
    starts = choose_starts(np.linspace(1, 0, 24), np.ones(24, dtype=bool), 97, 0.1, 0.04)
    assert max(starts, key=lambda one: one[1])[0] == 3 / 4
    confidence, right = np.linspace(1, 0, 97), np.ones(97, dtype=bool)
    right[[61, 68, 72, 75, 80, 88]] = False
    alone = search_rows(confidence, right, 0.1, 0.04, [(73, 1.0)])
    found = search_rows(confidence, right, 0.1, 0.04, start_rows(97, 0.1, 0.04, starts))
    assert (alone.n_accepted, found.n_accepted, found.n_errors) == (0, 68, 1)


@pytest.mark.parametrize("m", [5, 24, 300])
def test_weighted_starts_break_the_promise_no_more_often_than_stated(m: int) -> None:
    draws, broken = 400, 0
    for seed in range(draws):  # at every threshold a little more than 10 % is wrong
        draw = np.random.default_rng(seed)
        selection, rows = draw.random(m) >= 0.05, draw.random((2, 150))
        starts = choose_starts(draw.random(m), selection, 150, 0.1, 0.04)
        broken += search_rows(rows[0], rows[1] >= 0.1001, 0.1, 0.04, start_rows(150, 0.1, 0.04, starts)).n_accepted > 0
    assert broken / draws <= 0.04 + 2 * (0.04 * 0.96 / draws) ** 0.5
