"""Linear classifiers learn separable classes, and are loaded as they were saved."""

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fixtures.rows import answered_rows

from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.measuring.calibration import calibrate_labels
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder, open_encoder
from smallfirst.models.label_model import LabelLogProbs
from smallfirst.models.linear import classifier as linear_classifier
from smallfirst.models.linear.blend import label_scores
from smallfirst.models.linear.classifier import (
    LinearClassifier,
    ScopedClassifier,
    answer_labels,
    check_int8,
    choose_offset,
    compare,
    decision_nats,
    fit_weights,
)
from smallfirst.models.loading import load_model
from smallfirst.models.manifest import INT8_FILE, Int8Check, Manifest, int8_allowed, write_manifest
from smallfirst.models.protocol import Capability, Request
from smallfirst.tasks.classify import Classify

rows = partial(answered_rows, "rows")


def texts_of(data: Dataset) -> list[str]:
    return [example.text for example in data.examples]


def best(scored: list[LabelLogProbs], task: Classify) -> list[str]:
    return [task.labels[int(np.argmax(row.log_probabilities))] for row in scored]


def accuracy(scorer: LinearClassifier, data: Dataset, task: Classify) -> float:
    answers = best(scorer.score(texts_of(data)), task)
    return sum(a == e.answer for a, e in zip(answers, data.examples, strict=True)) / len(data)


def test_words_learn_a_separable_set_and_each_text_gets_a_distribution_of_its_own(
    toy_rows: Dataset, toy_selection: Dataset, toy_task: Classify
) -> None:
    scorer = LinearClassifier.fit("words", toy_rows, toy_task)
    assert accuracy(scorer, toy_rows, toy_task) == 1.0
    assert accuracy(scorer, toy_selection, toy_task) > 0.9
    texts = [*texts_of(toy_rows)[:9], "", "übermorgen 東京", "card " * 1000]
    for text, row in zip(texts, scorer.score(texts), strict=True):
        assert np.exp(row.log_probabilities).sum() == pytest.approx(1)
        assert row.log_probabilities == pytest.approx(scorer.score([text])[0].log_probabilities, abs=1e-9)
        assert row.n_tokens == 0
    assert scorer.score([]) == []


def test_a_folder_answers_as_what_was_saved_and_its_fingerprint_follows_the_weights(
    toy_rows: Dataset, toy_selection: Dataset, toy_task: Classify, tmp_path: Path
) -> None:
    manifest = Manifest(kind="words", task=toy_task, base="")
    scorer = LinearClassifier.fit("words", toy_rows, toy_task)
    written = scorer.save(tmp_path / "a", manifest)
    assert scorer.save(tmp_path / "b", manifest).weights_fingerprint == written.weights_fingerprint
    other = LinearClassifier.fit("words", toy_selection, toy_task).save(tmp_path / "c", manifest)
    assert len(other.weights_fingerprint) == 16 != other.weights_fingerprint != written.weights_fingerprint
    loaded = LinearClassifier.load(tmp_path / "a", written)
    for ours, theirs in zip(scorer.score(texts_of(toy_selection)), loaded.score(texts_of(toy_selection)), strict=True):
        assert np.array_equal(ours.log_probabilities, theirs.log_probabilities)
    answer = asyncio.run(load_model(tmp_path / "a", name="linear").complete(Request.ask("where is my refund")))
    assert (answer.text, answer.answered_by) == ("refund_request", "linear")


@pytest.mark.parametrize("n_seen", [2, 3])
def test_a_label_without_training_rows_is_never_chosen(n_seen: int) -> None:
    task = Classify(name="gaps", labels=("unseen first", "a", "unseen second", "b", "c"))
    seen = ("a", "b", "c")[:n_seen]
    data = rows(*((f"{label * 3} thing {i}", label) for label in seen for i in range(3)))
    scorer = LinearClassifier.fit("words", data, task)
    assert accuracy(scorer, data, task) == 1.0
    for scored in scorer.score([*texts_of(data), "", "unseen first", "other words altogether"]):
        unseen = np.exp([scored.log_probabilities[0], scored.log_probabilities[2]])
        assert unseen.tolist() == [0.0, 0.0]


TASK = Classify(name="desk", labels=("card", "fee", "pin"), multiple=True)


def several_rows() -> Dataset:
    """Texts that name their labels, in any combination."""
    made = []
    for i in range(64):
        labels = [label for j, label in enumerate(TASK.labels) if i >> j & 1]
        text = f"case {i}: {' and '.join(labels) or 'hello'}"
        answer = str(TASK.parse(str(labels).replace("'", '"')))
        made.append((text, answer))
    return rows(*made, shape="labels")


def test_a_label_is_answered_from_its_threshold_on() -> None:
    odds = np.array([math.log(3), -math.log(4), 0.0])  # 0.75, 0.2, 0.5
    assert answer_labels(odds, TASK, 0.5) == '["card", "pin"]'
    assert answer_labels(odds, TASK, 0.7) == '["card"]'
    assert answer_labels(odds, TASK, 0.9) == "[]"
    assert np.exp(decision_nats(odds, 0.7)) == pytest.approx([0.75, 0.8, 0.5])


def test_a_linear_model_answers_with_several_labels(tmp_path: Path) -> None:
    data = several_rows()
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
        for e in several_rows().examples
    )
    odds = LinearClassifier.fit("words", Dataset(name="rows", examples=examples), task).score(["a card"])[0]
    assert answer_labels(np.asarray(odds.log_probabilities), task, 0.5) == '["always", "card"]'
    assert np.isfinite(odds.log_probabilities).all()


SCOPED = Classify(name="desk", labels=("card", "fee", "none"), other="none")
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
    return rows(*((" ".join(f"{x:.4f}" for x in at), label) for label, at in points))


def answers(scorer: ScopedClassifier | LinearClassifier, rows: Dataset) -> list[str]:
    return [SCOPED.labels[int(np.argmax(s.log_probabilities))] for s in scorer.score([e.text for e in rows.examples])]


def recall(scorer: ScopedClassifier | LinearClassifier, rows: Dataset, other: bool) -> float:
    said = answers(scorer, rows)
    return float(
        np.mean([a == e.answer for a, e in zip(said, rows.examples, strict=True) if (e.answer == "none") == other])
    )


@pytest.fixture(scope="module")
def classifier() -> LinearClassifier:
    return LinearClassifier.fit("encoder", data(40, 3, 0), SCOPED, encoder=Points())  # type: ignore[arg-type]


def test_far_texts_are_other_although_the_label_was_hardly_taught(classifier: LinearClassifier) -> None:
    manifest = Manifest(kind="encoder", task=SCOPED, base="")
    scoped = ScopedClassifier.fit(classifier, data(40, 3, 0), data(40, 20, 1), manifest)
    test = data(100, 100, 2)
    assert recall(scoped, test, other=True) > max(0.9, recall(classifier, test, other=True))
    assert recall(scoped, test, other=False) > 0.95
    for row in scoped.score([e.text for e in test.examples]):
        assert np.exp(row.log_probabilities).sum() == pytest.approx(1)


def test_without_enough_rows_the_label_decides_alone(classifier: LinearClassifier) -> None:
    manifest = Manifest(kind="encoder", task=SCOPED, base="")
    assert ScopedClassifier.fit(classifier, data(40, 3, 0), data(40, 9, 1), manifest) is None
    plain = Manifest(kind="encoder", task=SCOPED.model_copy(update={"other": None}), base="")
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


MANIFEST = Manifest(kind="encoder", task=Classify(name="t", labels=("a", "b")), base="tiny", weights_fingerprint="f00")


def scored(*first: float) -> list[LabelLogProbs]:
    """Rows with these probabilities of the first of two labels."""
    return [LabelLogProbs([math.log(p), math.log(1 - p)], 3, 0.0) for p in first]


@pytest.mark.parametrize(
    ("int8", "gold", "agreement", "difference", "why"),
    [
        ([0.7] * 250, [0] * 200 + [1] * 50, 1.0, 0.0, ""),
        ([0.8] * 99, [0] * 99, 1.0, 0.0, "99 rows are too few"),
        ([0.8] * 290 + [0.3] * 10, [0] * 300, 290 / 300, -10 / 300, "at least 98% is required"),
        ([0.8] * 985 + [0.3] * 15, [0] * 1000, 0.985, -0.015, "no more than 1% may be lost"),
        ([0.8] * 985 + [0.3] * 15, [1] * 1000, 0.985, 0.015, ""),  # the same labels, now for the better
    ],
)
def test_int8_is_kept_on_enough_rows_with_equal_answers(
    int8: list[float], gold: list[int], agreement: float, difference: float, why: str
) -> None:
    found = compare(scored(*[0.8] * len(int8)), scored(*int8), gold, weights_fingerprint="f00")
    assert (found.agreement.n, found.weights_fingerprint, found.kept) == (len(int8), "f00", not why)
    assert found.agreement.value == pytest.approx(agreement)
    assert found.difference.value == pytest.approx(difference)
    assert (why or "the same label on 1.000" if agreement == 1 else why) in found.why


@pytest.mark.parametrize("kept", [True, False])
def test_an_encoder_is_checked_and_read_as_it_was_decided(
    kept: bool, tiny_encoder_folder: Path, toy_rows: Dataset, toy_selection: Dataset, toy_task: Classify, tmp_path: Path
) -> None:
    exact = LinearClassifier.fit("encoder", toy_rows, toy_task, encoder=open_encoder(tiny_encoder_folder))
    manifest = exact.save(tmp_path, Manifest(kind="encoder", task=toy_task, base=str(tiny_encoder_folder)))
    found = check_int8(tmp_path, Dataset(name="selection", examples=toy_selection.examples * 10))
    assert found.agreement.n == 240
    assert Int8Check.load(tmp_path / INT8_FILE) == found
    found.model_copy(update={"kept": kept}).save(tmp_path / INT8_FILE)
    loaded = LinearClassifier.load(tmp_path, manifest)
    assert loaded.encoder.int8 is kept
    later = manifest.model_copy(update={"weights_fingerprint": f"{manifest.weights_fingerprint}-1234"})
    assert int8_allowed(tmp_path, later) is kept
    assert not int8_allowed(tmp_path, manifest.model_copy(update={"weights_fingerprint": "f01"}))


def test_models_without_an_int8_form_are_not_checked(tmp_path: Path, toy_selection: Dataset) -> None:
    write_manifest(tmp_path, MANIFEST.model_copy(update={"kind": "words"}))
    assert check_int8(tmp_path, toy_selection) is None
    assert not int8_allowed(tmp_path, MANIFEST)


def test_fewer_rows_than_words_are_fitted_in_their_span_to_the_same_weights(
    toy_rows: Dataset, toy_task: Classify, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L-BFGS takes the same steps in any orthonormal basis, so even the weights at which it stops are the same."""
    fast = LinearClassifier.fit("words", toy_rows, toy_task)
    monkeypatch.setattr(linear_classifier, "MAX_SPAN_ROWS", 0)
    usual = LinearClassifier.fit("words", toy_rows, toy_task)
    assert fast.weights.shape[1] > 2 * len(toy_rows)
    np.testing.assert_allclose(fast.weights, usual.weights, atol=1e-5)
    np.testing.assert_allclose(fast.bias, usual.bias, atol=1e-5)
    assert np.abs(usual.weights).max() > 0.1
