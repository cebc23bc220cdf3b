"""The advised number of rows suffices as often as it says, and a guarantee that can be shown is never out of reach."""

from __future__ import annotations

import numpy as np
from fixtures.certificates import cascade

from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import CascadeData
from smallfirst.routing.certificate.rows_needed import MIN_CHANCE, rows_needed
from smallfirst.routing.certificate.threshold_search import search_cascade


def issued(rows: CascadeData) -> bool:
    return search_cascade(rows, Guarantee()).issued


def test_the_advised_rows_suffice_as_often_as_stated() -> None:
    draw, advised, enough, stated = np.random.default_rng(2), 0, 0, 0.0
    for _ in range(50):
        rows = cascade(draw.random(100), draw.random(100) >= draw.beta(1, 30))
        wrong = 1 - rows.right.mean()
        if issued(rows) or not 0.01 <= wrong <= 0.07:
            continue
        found = rows_needed(rows, issued, n_worlds=20, max_rows=5000)
        if found.chance < MIN_CHANCE:
            continue
        advised, stated = advised + 1, stated + found.chance
        later = draw.beta(1 + 100 * wrong, 31 + 100 * (1 - wrong))  # the posterior of the rate
        more = cascade(draw.random(found.n_more), draw.random(found.n_more) >= later)
        both = cascade(
            np.concatenate([rows.confidence[0], more.confidence[0]]), np.concatenate([rows.right[0], more.right[0]])
        )
        enough += issued(both)
    assert advised >= 8
    assert abs(enough - stated) / advised < 0.25


def test_a_rate_above_the_limit_that_chance_explains_is_not_called_hopeless() -> None:
    # 6 of 100 wrong: at a limit of 5 % the measured rate shows nothing, but the true rate may be 3 %.
    right = np.ones(100, bool)
    right[::17] = False
    found = rows_needed(cascade(1 - np.arange(100) / 200, right), issued)
    assert (found.n_more, 0.05 < found.chance < MIN_CHANCE) == (20_000, True)
    hopeless = rows_needed(cascade(1 - np.arange(100) / 200, ~right), issued)
    assert hopeless.chance == 0
