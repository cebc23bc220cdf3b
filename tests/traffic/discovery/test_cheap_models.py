"""Cheap models answer cases that they did not learn."""

from __future__ import annotations

import json
import random

import numpy as np
from fixtures.traffic import QUEUES, read_bookings, ticket

from smallfirst.tasks.extract import Extract
from smallfirst.tasks.json.schema_inference import infer_schema
from smallfirst.traffic.discovery import cheap_models
from smallfirst.traffic.discovery.cheap_models import drawn_cases, hold_out_fields, hold_out_labels


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
    from smallfirst.models.linear.classifier import TfidfFeatures

    rng = random.Random(1)
    queues = [rng.choice(tuple(QUEUES)) for _ in range(30)]
    texts = [ticket(rng, queue) for queue in queues]
    features = TfidfFeatures.fit(texts)(texts).toarray()
    gold = np.unique(queues, return_inverse=True)[1]
    wanted = np.eye(3)[gold] - np.eye(3)[gold].mean(axis=0)
    kept = np.arange(30) % cheap_models.FOLDS != 0
    kernel = features @ features.T
    dual = np.linalg.solve(kernel[np.ix_(kept, kept)] + np.eye(kept.sum()), wanted[kept])
    by_hand = (kernel[np.ix_(~kept, kept)] @ dual + np.eye(3)[gold].mean(axis=0)).argmax(axis=1) == gold[~kept]
    np.testing.assert_array_equal(hold_out_labels(texts, queues).right[~kept], by_hand)


def test_fields_that_stand_in_the_text_are_marked() -> None:
    exchanges = read_bookings(120)
    texts = [one.request["messages"][1]["content"] for one in exchanges]
    values = [json.loads(one.response["choices"][0]["message"]["content"]) for one in exchanges]
    task = Extract(name="booking", json_schema=infer_schema(values))
    found = hold_out_fields(texts, values, task)
    assert not isinstance(found, str)
    assert found.right.mean() > 0.9
    assert found.confidence.max() <= 1


def test_fields_that_do_not_stand_in_the_text_are_named() -> None:
    values = [{"summary": f"something else {i * 37}"} for i in range(60)]
    task = Extract(name="summary", json_schema=infer_schema(values))
    assert "`summary`" in str(hold_out_fields([f"text {i}" for i in range(60)], values, task))


def test_of_many_or_long_cases_some_are_drawn() -> None:
    assert sorted(drawn_cases(["ab"] * 5, 10, 100)) == [0, 1, 2, 3, 4]
    assert len(set(drawn_cases(["ab"] * 50, 10, 100))) == 10
    assert len(drawn_cases(["x" * 40] * 50, 10, 100)) == 2
    assert drawn_cases(["x" * 400], 10, 100) == [0]
