"""The share that can move is foretold from held-out answers."""

from __future__ import annotations

import numpy as np

from smallfirst.traffic.discovery.outlook import HeldOut, Outlook, foretell


def held_out(n: int, accuracy_of_sure: float, accuracy_of_unsure: float, share_sure: float = 0.5) -> HeldOut:
    rng = np.random.default_rng(0)
    sure = rng.random(n) < share_sure
    confidence = np.where(sure, 0.9, 0.3) + 0.01 * rng.random(n)
    return HeldOut(confidence, rng.random(n) < np.where(sure, accuracy_of_sure, accuracy_of_unsure))


def test_what_is_right_where_it_is_sure_can_move() -> None:
    found = foretell(held_out(1000, 0.995, 0.3), n_certifying=500).at(0.05)
    assert 0 <= found.low <= found.share <= found.high
    assert 0.4 < found.share < 0.6


def test_chance_cannot_move() -> None:
    found = foretell(held_out(1000, 0.4, 0.4), n_certifying=500)
    assert found.at(0.05).share == 0
    assert found.at(0.1).high < 0.05


def test_few_rows_show_less_than_many() -> None:
    one = held_out(1000, 0.98, 0.5)
    few, many = foretell(one, n_certifying=50).at(0.05), foretell(one, n_certifying=1000).at(0.05)
    assert few.share < many.share


def test_answers_of_another_form_do_not_move() -> None:
    one = held_out(1000, 0.995, 0.3)
    whole, half = foretell(one, n_certifying=500).at(0.05), foretell(one, n_certifying=500, in_format=0.5).at(0.05)
    assert abs(half.high - whole.high / 2) < 1e-4


def test_no_model_agrees_more_than_the_large_one_with_itself() -> None:
    one = held_out(1000, 0.8, 0.8)
    assert foretell(one, n_certifying=500, repeatable=0.8).at(0.05).high < 0.05
    assert foretell(one, n_certifying=500).at(0.2).high > 0.9


def test_what_is_asked_twice_varies_twice() -> None:
    """A model that says something else in 3 % of askings repeats itself in 0.97² of the cases: 5 % can be kept."""
    assert foretell(held_out(1000, 0.93, 0.93), n_certifying=2000, repeatable=0.97**2).at(0.05).high > 0.9


def test_shares_are_of_requests() -> None:
    """Sure cases are half of all; asked nine times as often as the others, they are nine tenths of the requests."""
    one = held_out(1000, 0.995, 0.3)
    found = foretell(one._replace(n=np.where(one.confidence > 0.5, 9, 1)), n_certifying=500).at(0.05)
    assert 0.85 < found.share < 0.95


def test_without_an_outlook_nothing_moves() -> None:
    assert Outlook(why="open text").at(0.05).high == 0
    assert not Outlook().can_show(0.05)
