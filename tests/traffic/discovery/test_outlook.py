"""The share that can move is foretold from held-out answers."""

from __future__ import annotations

import random

import numpy as np
import pytest
from fixtures.traffic import QUEUES, ticket

from smallfirst.base.stats.intervals import Estimate
from smallfirst.models.linear.tfidf import FOLDS
from smallfirst.traffic.discovery import outlook
from smallfirst.traffic.discovery.outlook import HeldOutAnswers, drawn_cases, foretell, hold_out_labels


def held_out(n: int, accuracy_of_sure: float, accuracy_of_unsure: float, share_sure: float = 0.5) -> HeldOutAnswers:
    rng = np.random.default_rng(0)
    sure = rng.random(n) < share_sure
    confidence = np.where(sure, 0.9, 0.3) + 0.01 * rng.random(n)
    return HeldOutAnswers(confidence, rng.random(n) < np.where(sure, accuracy_of_sure, accuracy_of_unsure))


def moves(one: HeldOutAnswers, max_error: float = 0.05, **more: float) -> Estimate:
    found = foretell(one, max_error, **more).moves  # type: ignore[arg-type]
    assert found is not None
    return found


def test_what_is_right_where_it_is_sure_can_move() -> None:
    found = moves(held_out(1000, 0.995, 0.3), 0.05, n_certifying=500)
    assert 0 <= found.low <= found.value <= found.high
    assert 0.4 < found.value < 0.6


def test_chance_cannot_move() -> None:
    one = held_out(1000, 0.4, 0.4)
    assert moves(one, 0.05, n_certifying=500).value == 0
    assert moves(one, 0.1, n_certifying=500).high < 0.05


def test_few_rows_show_less_than_many() -> None:
    one = held_out(1000, 0.98, 0.5)
    few, many = moves(one, 0.05, n_certifying=50), moves(one, 0.05, n_certifying=1000)
    assert few.value < many.value


def test_answers_of_another_form_do_not_move() -> None:
    one = held_out(1000, 0.995, 0.3)
    whole, half = moves(one, 0.05, n_certifying=500), moves(one, 0.05, n_certifying=500, in_format=0.5)
    assert abs(half.high - whole.high / 2) < 1e-4


def test_no_model_agrees_more_than_the_large_one_with_itself() -> None:
    one = held_out(1000, 0.8, 0.8)
    assert moves(one, 0.05, n_certifying=500, repeatable=0.8).high < 0.05
    assert moves(one, 0.2, n_certifying=500).high > 0.9


def test_what_is_asked_twice_varies_twice() -> None:
    """A model that says something else in 3 % of askings repeats itself in 0.97² of the cases: 5 % can be kept."""
    assert moves(held_out(1000, 0.93, 0.93), 0.05, n_certifying=2000, repeatable=0.97**2).high > 0.9


def test_shares_are_of_requests() -> None:
    """Sure cases are half of all; asked nine times as often as the others, they are nine tenths of the requests."""
    one = held_out(1000, 0.995, 0.3)
    found = moves(one._replace(n=np.where(one.confidence > 0.5, 9, 1)), n_certifying=500)
    assert 0.85 < found.value < 0.95


def test_labels_that_words_tell_are_found_and_chance_is_not() -> None:
    rng = random.Random(0)
    queues = [rng.choice(tuple(QUEUES)) for _ in range(150)]
    texts = [ticket(rng, queue) for queue in queues]
    found = hold_out_labels(texts, queues)
    assert found.right.mean() > 0.9
    by_chance = hold_out_labels(texts, [rng.choice("abc") for _ in texts])
    assert 0.15 < by_chance.right.mean() < 0.5


def test_left_out_folds_are_left_out() -> None:
    """The closed form is what a fit on the other folds says."""
    from smallfirst.models.linear.tfidf import TfidfFeatures

    rng = random.Random(1)
    queues = [rng.choice(tuple(QUEUES)) for _ in range(30)]
    texts = [ticket(rng, queue) for queue in queues]
    features = TfidfFeatures.fit(texts).matrix(texts).toarray()
    gold = np.unique(queues, return_inverse=True)[1]
    wanted = np.eye(3)[gold] - np.eye(3)[gold].mean(axis=0)
    kept = np.arange(30) % FOLDS != 0
    kernel = features @ features.T
    dual = np.linalg.solve(kernel[np.ix_(kept, kept)] + np.eye(kept.sum()), wanted[kept])
    by_hand = (kernel[np.ix_(~kept, kept)] @ dual + np.eye(3)[gold].mean(axis=0)).argmax(axis=1) == gold[~kept]
    np.testing.assert_array_equal(hold_out_labels(texts, queues).right[~kept], by_hand)


def test_what_was_said_judges_and_the_usual_label_is_learnt() -> None:
    rng = random.Random(0)
    queues = [rng.choice(tuple(QUEUES)) for _ in range(300)]
    texts = [ticket(rng, queue) for queue in queues]
    said = [queue if rng.random() < 0.8 else "another" for queue in queues]
    assert hold_out_labels(texts, queues, said).right.mean() == np.mean(
        hold_out_labels(texts, queues).right & (np.array(said) == np.array(queues))
    )


def test_of_many_or_long_cases_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlook, "MOST_CASES", 10)
    monkeypatch.setattr(outlook, "MOST_CHARACTERS", 100)
    assert sorted(drawn_cases(["ab"] * 5)) == [0, 1, 2, 3, 4]
    assert len(set(drawn_cases(["ab"] * 50))) == 10
    assert len(drawn_cases(["x" * 40] * 50)) == 2
    assert drawn_cases(["x" * 400]) == [0]
