"""Cheap models answer cases that they did not learn."""

from __future__ import annotations

import random

import numpy as np
import pytest
from fixtures.traffic import QUEUES, ticket

from smallfirst.models.linear.held_out import FOLDS
from smallfirst.traffic.discovery import outlook
from smallfirst.traffic.discovery.outlook import drawn_cases, hold_out_labels


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
