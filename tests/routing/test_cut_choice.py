"""The cut and the number of labels follow what labelled rows let expect."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from smallfirst.routing.cut_choice import BANDS, CutChooser


def chooser(half_wrong_at: float, n: int = 200) -> CutChooser:
    """Rows whose chance to be wrong grows with the rank, to a half at one rank."""
    rank = (np.arange(n) + 0.5) / n
    right = np.random.default_rng(0).random(n) > special.expit(12 * (rank - half_wrong_at))
    return CutChooser(rank, right, limit=0.05, level=0.05)


def test_no_label_is_spent_where_answers_are_wrong() -> None:
    found = chooser(0.8).best(200, n_traffic=10_000)
    assert 0.35 <= found.shares[-1] <= 0.75
    assert found.likely_share <= found.expected_share <= found.shares[-1]
    assert list(found.bands) == list(range(found.bands[0], found.bands[-1] + 1))


def test_a_better_model_gets_a_looser_cut() -> None:
    loose, strict = (chooser(where).best(200, n_traffic=10_000) for where in (1.0, 0.7))
    assert loose.shares[-1] > strict.shares[-1]
    assert loose.expected_share > strict.expected_share


def test_more_labels_bring_no_less_and_the_usual_number_brings_most() -> None:
    of = chooser(0.9)
    shares = [of.best(n, n_traffic=10_000).expected_share for n in (60, 100, 200, 400, 1000)]
    assert shares == sorted(shares)
    assert of.usual(n_traffic=10_000).expected_share >= 0.9 * shares[-1]


def test_a_wanted_share_takes_the_strictest_cut_and_the_fewest_labels() -> None:
    of = chooser(1.5)  # nearly always right, so a looser cut would be shown as well
    half = of.for_share(0.5, n_traffic=10_000)
    assert half.shares[-1] == pytest.approx(0.5)
    assert half.n_labels <= 200
    assert half.likely_share >= 0.5
    more = of.for_share(0.75, n_traffic=10_000)
    assert more.n_labels >= half.n_labels


def test_no_more_labels_are_planned_than_there_are_requests() -> None:
    found = chooser(1.0).for_share(0.5, n_traffic=100)
    assert found.n_labels <= found.bands[-1] * 100 // BANDS
    assert chooser(1.0).usual(n_traffic=100).n_labels <= 100
    assert chooser(1.0).best(500, n_traffic=100).n_labels <= 100
