"""The rows that are foretold suffice as often as it is said, and what can be shown is never called unlikely."""

from __future__ import annotations

import numpy as np
from fixtures.certificates import cascade

from smallfirst.base.stats.sample_size import RowsNeeded, rows_for_error
from smallfirst.routing.certificate.calibration_set import CalibrationSet
from smallfirst.routing.certificate.certificate import Guarantee
from smallfirst.routing.certificate.threshold_search import search_cascade


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
    for _ in range(150):
        confidence = draw.random(100)
        wrong = draw.beta(1, 20)
        rows = cascade(confidence, draw.random(100) >= wrong * 2 * (1 - confidence))
        if issued(rows) or (found := for_error(rows)).unlikely:
            continue
        later = draw.random(found.n_more)
        more = cascade(later, draw.random(found.n_more) >= wrong * 2 * (1 - later))
        n, stated, enough = n + 1, stated + found.chance, enough + issued(joined(rows, more))
    assert n >= 40
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
