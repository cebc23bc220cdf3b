"""The share that can move is foretold from held-out answers."""

import random

import numpy as np
import pytest
from fixtures.traffic import QUEUES, ticket

from smallfirst.base.stats.intervals import Estimate
from smallfirst.models.linear.tfidf import PARTS, HeldOutAnswers, TfidfFeatures, hold_out
from smallfirst.traffic.discovery import outlook
from smallfirst.traffic.discovery.outlook import PlannedRun, foretell, foretell_fields, foretell_labels


def held_out(n: int, accuracy_of_sure: float, accuracy_of_unsure: float, share_sure: float = 0.5) -> HeldOutAnswers:
    rng = np.random.default_rng(0)
    sure = rng.random(n) < share_sure
    confidence = np.where(sure, 0.9, 0.3) + 0.01 * rng.random(n)
    return HeldOutAnswers(confidence, rng.random(n) < np.where(sure, accuracy_of_sure, accuracy_of_unsure))


def moves(one: HeldOutAnswers, max_error: float = 0.05, *left: float, n: int = 500, **limits: float) -> Estimate:
    run = PlannedRun(n_training=500, n_certifying=n, **limits)
    found = foretell(one, max_error, run, left or (1.0,)).moves
    assert found is not None
    return found


def test_few_rows_show_less_at_first_than_after_shadow() -> None:
    """At a level of 0.5 % 104 rows without an error show 5 %, so 90 show nothing."""
    found = foretell(held_out(1000, 0.995, 0.5), 0.05, PlannedRun(n_training=160, n_certifying=90), (1.0,))
    assert found.moves.high == 0
    assert found.later.value > 0.4
    assert not found.can_show(0.05)


def test_what_is_wrong_in_the_log_no_model_mends() -> None:
    """Answers that are wrong at random are wrong among the surest too; what is wrong below alone, a model may learn."""
    by_chance, below = moves(held_out(2000, 0.93, 0.93), 0.05, 0.1), moves(held_out(2000, 1.0, 0.86), 0.05, 0.1)
    assert by_chance.high < 0.05
    assert below.low > 0.9


def test_no_model_agrees_more_than_the_large_one_with_itself() -> None:
    """One that says something else in 3 % of askings repeats itself in 0.97² of the cases: 5 % can be kept."""
    one = held_out(1000, 1.0, 0.8)
    assert moves(one, 0.05, 0.0, repeatable=0.8).high < 0.05
    assert moves(one, 0.05, 0.0, n=2000, repeatable=0.97**2).value > 0.9


def test_shares_are_of_requests() -> None:
    """Sure cases are half of all; asked nine times as often as the others, they are nine tenths of the requests."""
    one = held_out(1000, 0.995, 0.3)
    assert 0.85 < moves(one._replace(n=np.where(one.confidence > 0.5, 9, 1))).value < 0.95


def test_labels_that_words_tell_are_found_and_chance_is_not() -> None:
    rng = random.Random(0)
    queues = [rng.choice(tuple(QUEUES)) for _ in range(150)]
    texts = [ticket(rng, queue) for queue in queues]
    by_chance = [rng.choice("abc") for _ in texts]
    assert hold_out(texts, [queues], [queues], share=0.6).right.mean() > 0.9
    assert 0.15 < hold_out(texts, [by_chance], [by_chance], share=0.6).right.mean() < 0.5


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_left_out_parts_are_left_out(share: float) -> None:
    """The closed form is what a fit on the other parts says; of several columns all must be right."""
    rng = random.Random(1)
    queues, others = ([rng.choice(tuple(QUEUES)) for _ in range(30)] for _ in range(2))
    texts = [ticket(rng, queue) for queue in queues]
    features = TfidfFeatures.fit(texts).matrix(texts).toarray()
    kept, first = (np.arange(30) % PARTS >= round(PARTS * (1 - share))), np.arange(30) % PARTS == 0
    right = np.ones(30, dtype=bool)
    for said in (queues, others):
        gold = np.unique(said, return_inverse=True)[1]
        wanted = np.eye(3)[gold] - np.eye(3)[gold].mean(axis=0)
        dual = np.linalg.solve(features[kept] @ features[kept].T + np.eye(kept.sum()), wanted[kept])
        right &= (features @ features[kept].T @ dual + np.eye(3)[gold].mean(axis=0)).argmax(axis=1) == gold
    found = hold_out(texts, [queues, others], [queues, others], share=share).right
    np.testing.assert_array_equal(found[first], right[first])


def test_what_was_said_judges_and_the_usual_label_is_learnt() -> None:
    rng = random.Random(0)
    queues = [rng.choice(tuple(QUEUES)) for _ in range(120)]
    texts = [ticket(rng, queue) for queue in queues]
    said = [queue if rng.random() < 0.8 else "another" for queue in queues]
    own, theirs = (hold_out(texts, [queues], [one], share=0.5).right for one in (queues, said))
    np.testing.assert_array_equal(theirs, own & (np.array(said) == np.array(queues)))


def test_fields_have_a_figure_and_values_that_stand_nowhere_none() -> None:
    rng = random.Random(0)
    cities = ("Rome", "Oslo", "Lima", "Bern", "Kyiv", "Cork")
    names = [f"{a}{b}" for a in ("Al", "Be", "Ca", "Do", "El") for b in ("ma", "no", "ri", "ta")]
    asked = [(rng.choice(("Fly", "Drive")), rng.choice(cities), rng.choice(names)) for _ in range(400)]
    texts = [f"{how} {name} to {city} on day {i}" for i, (how, city, name) in enumerate(asked)]
    values = [{"by": how == "Fly", "to": city, "who": name} for how, city, name in asked]
    kinds = {"by": "boolean", "to": "string", "who": "string"}
    schema = {"type": "object", "properties": {name: {"type": kind} for name, kind in kinds.items()}}
    run = PlannedRun(n_training=200, n_certifying=200)
    assert foretell_fields([*zip(texts, values, values, [1] * 400, strict=True)], 0.05, run, schema).later.value > 0.5
    hidden = [{**value, "who": f"{i} {value['who']}x"} for i, value in enumerate(values)]
    found = foretell_fields([*zip(texts, hidden, hidden, [1] * 400, strict=True)], 0.05, run, schema)
    assert found.later.high == 0
    assert "`who`" in found.why


def test_lists_of_labels_have_a_figure() -> None:
    rng = random.Random(0)
    given = [sorted(rng.sample(["red", "blue", "green"], rng.randint(1, 2))) for _ in range(300)]
    cases = [(f"paint {i} {' and '.join(one)}", one, one, 1) for i, one in enumerate(given)]
    assert foretell_labels(cases, 0.05, PlannedRun(n_training=180, n_certifying=150)).later.low > 0.5


def test_a_logistic_regression_on_vectors_answers_where_it_is_more_often_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight labels on an arc a ridge regression hardly says the middle ones."""
    labels = ["abcdefgh"[i % 8] for i in range(200)]
    angles = np.arange(200) % 8 * 0.3 + np.random.default_rng(0).normal(0, 0.03, 200)
    monkeypatch.setattr(outlook, "sentence_vectors", lambda texts: np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert outlook.cheap_answers(["a text"] * 200, [labels], [labels], 0.6).right.mean() > 0.95
