"""Out of scope: the signals of an encoder's vector are fused, and `other` is answered where they say so."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.linear.blend import label_scores
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.linear.scope import ScopedClassifier, choose_offset, fit_weights
from smallfirst.models.loading import load_model
from smallfirst.models.manifest import Manifest
from smallfirst.tasks.classify import Classify

TASK = Classify(name="desk", labels=("card", "fee", "none"), other="none")
CENTRES = {"card": (1.0, 0.0, 0.2), "fee": (0.0, 1.0, 0.2)}


class Points:
    """Texts of three numbers as unit vectors."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.array([[float(part) for part in text.split()] for text in texts], dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def data(n: int, n_other: int, seed: int) -> Dataset:
    """Two narrow clouds in scope, and points in many other directions."""
    draw = np.random.default_rng(seed)
    points = [(label, np.array(at) + draw.normal(0, 0.05, 3)) for label, at in CENTRES.items() for _ in range(n)]
    points += [("none", draw.normal(0, 1, 3) - (1, 1, 0)) for _ in range(n_other)]
    examples = tuple(
        Example(messages=(Message(role="user", content=" ".join(f"{x:.4f}" for x in at)),), answer=label, shape="label")
        for label, at in points
    )
    return Dataset(name="rows", examples=examples)


def answers(scorer: ScopedClassifier | LinearClassifier, rows: Dataset) -> list[str]:
    return [TASK.labels[int(np.argmax(s.log_probabilities))] for s in scorer.score([e.text for e in rows.examples])]


def recall(scorer: ScopedClassifier | LinearClassifier, rows: Dataset, other: bool) -> float:
    said = answers(scorer, rows)
    return float(
        np.mean([a == e.answer for a, e in zip(said, rows.examples, strict=True) if (e.answer == "none") == other])
    )


@pytest.fixture(scope="module")
def classifier() -> LinearClassifier:
    return LinearClassifier.fit("encoder", data(40, 3, 0), TASK, encoder=Points())  # type: ignore[arg-type]


def test_far_texts_are_other_although_the_label_was_hardly_taught(classifier: LinearClassifier) -> None:
    manifest = Manifest(kind="encoder", task=TASK, base="")
    scoped = ScopedClassifier.fit(classifier, data(40, 3, 0), data(40, 20, 1), manifest)
    assert scoped is not None
    test = data(100, 100, 2)
    assert recall(scoped, test, other=True) > max(0.9, recall(classifier, test, other=True))
    assert recall(scoped, test, other=False) > 0.95
    for row in scoped.score([e.text for e in test.examples]):
        assert np.exp(row.log_probabilities).sum() == pytest.approx(1)


def test_without_enough_rows_the_label_decides_alone(classifier: LinearClassifier) -> None:
    manifest = Manifest(kind="encoder", task=TASK, base="")
    assert ScopedClassifier.fit(classifier, data(40, 3, 0), data(40, 9, 1), manifest) is None
    plain = Manifest(kind="encoder", task=TASK.model_copy(update={"other": None}), base="")
    assert ScopedClassifier.fit(classifier, data(40, 3, 0), data(40, 20, 1), plain) is None


def test_the_offset_loses_no_more_rows_in_scope_than_allowed() -> None:
    gold = np.array([0] * 10 + [1] * 4)
    odds = np.array([-9.0, -8, -7, -6, -5, -4, -3, -2, -1, 0.5, -3.5, -0.5, 0.8, 2.0])  # of label 1, `other`
    logs = np.column_stack([np.zeros(14), odds])
    # margins in scope -0.5 (answered other already), 1, 2, 3, …; of other rows 3.5, 0.5, -0.8, -2
    none, one, three = (choose_offset(logs, gold, 1, max_loss=share) for share in (0.0, 0.1, 0.35))
    assert none == pytest.approx(-0.5)
    assert 0.5 < one <= 1
    assert 0.5 < three <= 1  # losing two rows more would bring nothing


def test_what_was_fitted_is_loaded_with_the_model(
    toy_task: Classify, toy_rows: Dataset, toy_selection: Dataset, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    task = toy_task.model_copy(update={"labels": (*toy_task.labels, "none"), "other": "none"})
    asked = [Message(role="user", content=f"{'sing ' * i} a song about {i} ducks") for i in range(12)]
    other = tuple(Example(messages=(message,), answer="none", shape="label") for message in asked)
    selection = toy_rows.subset("selection", (*toy_rows.examples, *toy_selection.examples, *other))
    encoder = SentenceEncoder(tiny_encoder_folder)
    classifier = LinearClassifier.fit("encoder", toy_rows, task, encoder=encoder)
    manifest = classifier.save(tmp_path, Manifest(kind="encoder", task=task, base=str(tiny_encoder_folder)))
    scoped = ScopedClassifier.fit(classifier, toy_rows, selection, manifest)
    assert scoped is not None
    written = scoped.save(tmp_path, manifest)
    assert written.weights_fingerprint != manifest.weights_fingerprint
    texts = [example.text for example in selection.examples]
    model = load_model(tmp_path)
    found = asyncio.run(label_scores(model, texts))
    asyncio.run(model.aclose())
    assert np.array([one.probabilities for one in found]) == pytest.approx(
        np.exp([row.log_probabilities for row in scoped.score(texts)]), abs=1e-4
    )


def test_a_signal_that_misleads_has_no_weight() -> None:
    draw = np.random.default_rng(0)
    is_other = np.arange(200) % 2 == 1
    signals = np.column_stack(
        [draw.normal(0, 1, 200) + 2 * is_other, draw.normal(0, 1, 200) - 2 * is_other, np.ones(200)]
    )
    weights = fit_weights(signals, is_other)
    assert weights[0] > 0
    assert weights[1] == 0
    assert weights[2] == 0
