"""The cut and the number of labels follow what labelled rows let expect."""

from __future__ import annotations

import numpy as np
import pytest

from smallfirst.routing.cut_choice import BANDS, CutChooser


def chooser(error_from: float, n: int = 200, *, error: float = 0.5) -> CutChooser:
    """Rows that are all right up to a rank, and wrong at the rate `error` from there."""
    random = np.random.default_rng(0)
    rank = (np.arange(n) + 0.5) / n
    right = (rank < error_from) | (random.random(n) > error)
    return CutChooser(rank, right, limit=0.05, level=0.05)


def test_no_label_is_spent_where_answers_are_wrong() -> None:
    found = chooser(0.6).best(200, n_traffic=10_000)
    assert 0.4 <= found.shares[-1] <= 0.75
    assert found.likely_share <= found.expected_share <= found.shares[-1]
    assert list(found.bands) == list(range(found.bands[0], found.bands[-1] + 1))


def test_a_better_model_gets_a_looser_cut() -> None:
    loose, strict = (chooser(where).best(200, n_traffic=10_000) for where in (0.9, 0.4))
    assert loose.shares[-1] > strict.shares[-1]
    assert loose.expected_share > strict.expected_share


def test_more_labels_bring_no_less_and_the_usual_number_brings_most() -> None:
    of = chooser(0.7)
    shares = [of.best(n, n_traffic=10_000).expected_share for n in (60, 100, 200, 400, 1000)]
    assert shares == sorted(shares)
    assert of.usual(n_traffic=10_000).expected_share >= 0.9 * shares[-1]


def test_a_wanted_share_takes_the_strictest_cut_and_the_fewest_labels() -> None:
    of = chooser(0.9)
    half = of.for_share(0.5, n_traffic=10_000)
    assert half.shares[-1] == pytest.approx(0.5)
    assert half.n_labels <= 200
    assert half.likely_share >= 0.5
    more = of.for_share(0.75, n_traffic=10_000)
    assert more.n_labels >= half.n_labels


def test_no_more_labels_are_planned_than_there_are_requests() -> None:
    found = chooser(0.9).for_share(0.5, n_traffic=100)
    assert found.n_labels <= found.bands[-1] * 100 // BANDS
