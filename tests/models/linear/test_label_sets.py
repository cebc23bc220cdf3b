"""Several labels: each decided by itself, written as the task's JSON list, with the confidence of the whole list."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest

from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.evaluation.calibration import calibrate_labels
from smallfirst.models.linear.classifier import LinearClassifier, gold_labels
from smallfirst.models.linear.label_sets import answer_labels, decision_nats
from smallfirst.models.loading import load_model
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Capability, Request
from smallfirst.tasks.classify import Classify

TASK = Classify(name="desk", labels=("card", "fee", "pin"), multiple=True)


def rows() -> Dataset:
    """Texts that name their labels, in any combination."""
    made = []
    for i in range(64):
        labels = [label for j, label in enumerate(TASK.labels) if i >> j & 1]
        text = f"case {i}: {' and '.join(labels) or 'hello'}"
        answer = str(TASK.parse(str(labels).replace("'", '"')))
        made.append(Example(messages=(Message(role="user", content=text),), answer=answer, shape="labels"))
    return Dataset(name="rows", examples=tuple(made))


def test_a_label_is_answered_from_its_threshold_on() -> None:
    odds = np.array([math.log(3), -math.log(4), 0.0])  # 0.75, 0.2, 0.5
    assert answer_labels(odds, TASK, 0.5) == '["card", "pin"]'
    assert answer_labels(odds, TASK, 0.7) == '["card"]'
    assert answer_labels(odds, TASK, 0.9) == "[]"
    assert np.exp(decision_nats(odds, 0.7)) == pytest.approx([0.75, 0.8, 0.5])


def test_gold_labels_of_one_and_of_several() -> None:
    assert gold_labels(['["card", "pin"]', "[]"], TASK).tolist() == [[1, 0, 1], [0, 0, 0]]
    assert gold_labels(["pin", "card"], Classify(name="desk", labels=TASK.labels)).tolist() == [2, 0]
    with pytest.raises(KeyError, match="lost"):
        gold_labels(['["lost"]'], TASK)


def test_a_linear_model_answers_with_several_labels(tmp_path: Path) -> None:
    data = rows()
    classifier = LinearClassifier.fit("words", data, TASK)
    score, manifest = calibrate_labels(
        classifier.score([e.text for e in data.examples]), data, Manifest(kind="words", task=TASK, base="")
    )
    assert score == 1.0
    classifier.save(tmp_path, manifest)
    model = load_model(tmp_path)
    found = asyncio.run(model.complete(Request.ask("case 99: fee and pin")))
    assert found.text == '["fee", "pin"]'
    assert found.confidence is not None
    assert 0.5 < found.confidence <= 1
    assert Capability.LABEL_PROBABILITIES not in model.capabilities
    asyncio.run(model.aclose())


def test_a_label_that_all_or_no_rows_have_needs_no_regression() -> None:
    task = Classify(name="desk", labels=("always", "card", "never"), multiple=True)
    examples = tuple(
        e.model_copy(update={"answer": '["always", "card"]' if "card" in e.answer else '["always"]'})
        for e in rows().examples
    )
    odds = LinearClassifier.fit("words", Dataset(name="rows", examples=examples), task).score(["a card"])[0]
    assert answer_labels(np.asarray(odds.log_probabilities), task, 0.5) == '["always", "card"]'
    assert np.isfinite(odds.log_probabilities).all()
