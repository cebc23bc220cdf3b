"""Linear classifiers learn separable classes, and are loaded as they were saved."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import numpy as np
import pytest

from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.measuring.calibration import calibrate_labels
from smallfirst.models.label_model import LabelLogProbs
from smallfirst.models.linear.classifier import LinearClassifier, answer_labels, decision_nats, gold_labels
from smallfirst.models.linear.tfidf import TfidfFeatures
from smallfirst.models.loading import load_model
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Capability, Request
from smallfirst.tasks.classify import Classify


class Letters:
    """Letter counts in place of an encoder's vectors."""

    def embed(self, texts: list[str]) -> np.ndarray:
        return np.array([[text.count(letter) for letter in "abc"] for text in texts], dtype=np.float32)


def rows(*pairs: tuple[str, str]) -> Dataset:
    made = tuple(
        Example(messages=(Message(role="user", content=text),), answer=answer, shape="label") for text, answer in pairs
    )
    return Dataset(name="rows", examples=made)


def texts_of(data: Dataset) -> list[str]:
    return [example.text for example in data.examples]


def best(scored: list[LabelLogProbs], task: Classify) -> list[str]:
    return [task.labels[int(np.argmax(row.log_probabilities))] for row in scored]


def accuracy(scorer: LinearClassifier, data: Dataset, task: Classify) -> float:
    answers = best(scorer.score(texts_of(data)), task)
    return sum(a == e.answer for a, e in zip(answers, data.examples, strict=True)) / len(data)


def test_words_learn_a_separable_set_and_carry_over_to_new_sentences(
    toy_rows: Dataset, toy_selection: Dataset, toy_task: Classify
) -> None:
    scorer = LinearClassifier.fit("words", toy_rows, toy_task)
    assert accuracy(scorer, toy_rows, toy_task) == 1.0
    assert accuracy(scorer, toy_selection, toy_task) > 0.9


def test_each_text_gets_a_distribution_independent_of_the_batch(toy_rows: Dataset, toy_task: Classify) -> None:
    scorer = LinearClassifier.fit("words", toy_rows, toy_task)
    texts = [*texts_of(toy_rows), "", "übermorgen 東京", "card " * 1000]
    together = scorer.score(texts)
    for text, scored in zip(texts, together, strict=True):
        assert np.exp(scored.log_probabilities).sum() == pytest.approx(1)
        (alone,) = scorer.score([text])
        assert scored.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-9)
    assert scored.n_tokens == 0
    assert scored.busy_s > 0


def test_a_saved_model_gives_the_same_probabilities(
    toy_rows: Dataset, toy_selection: Dataset, toy_task: Classify, tmp_path: Path
) -> None:
    scorer = LinearClassifier.fit("words", toy_rows, toy_task)
    written = scorer.save(tmp_path, Manifest(kind="words", task=toy_task, base=""))
    loaded = LinearClassifier.load(tmp_path, written)
    for ours, theirs in zip(scorer.score(texts_of(toy_selection)), loaded.score(texts_of(toy_selection)), strict=True):
        assert np.array_equal(ours.log_probabilities, theirs.log_probabilities)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "linear.safetensors",
        "smallfirst.json",
        "words.json",
    ]


def test_the_fingerprint_follows_the_weights(
    toy_rows: Dataset, toy_selection: Dataset, toy_task: Classify, tmp_path: Path
) -> None:
    manifest = Manifest(kind="words", task=toy_task, base="")
    prints = [
        LinearClassifier.fit("words", data, toy_task).save(tmp_path / name, manifest).weights_fingerprint
        for name, data in (("a", toy_rows), ("b", toy_rows), ("c", toy_selection))
    ]
    assert prints[0] == prints[1] != prints[2]
    assert len(prints[0]) == 16


def test_a_saved_model_answers_through_load_model(toy_rows: Dataset, toy_task: Classify, tmp_path: Path) -> None:
    LinearClassifier.fit("words", toy_rows, toy_task).save(tmp_path, Manifest(kind="words", task=toy_task, base=""))
    model = load_model(tmp_path, name="linear")
    answer = asyncio.run(model.complete(Request.ask("where is my refund")))
    assert (answer.text, answer.answered_by) == ("refund_request", "linear")


@pytest.mark.parametrize("labels", [("no", "yes"), ("yes", "no")])
def test_two_classes_are_separated_in_either_order(labels: tuple[str, str]) -> None:
    task = Classify(name="two", labels=labels)
    data = rows(("good fine", "yes"), ("great fine", "yes"), ("bad awful", "no"), ("awful poor", "no"))
    scorer = LinearClassifier.fit("words", data, task)
    assert accuracy(scorer, data, task) == 1.0
    for scored in scorer.score(texts_of(data)):
        assert np.exp(scored.log_probabilities).sum() == pytest.approx(1)


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


def test_an_encoder_classifier_is_linear_on_its_vectors() -> None:
    task = Classify(name="letters", labels=("many a", "many b", "many c"))
    data = rows(*((letter * n, f"many {letter}") for letter in "abc" for n in (2, 3, 4)))
    scorer = LinearClassifier.fit("encoder", data, task, encoder=Letters())  # type: ignore[arg-type]
    assert scorer.weights.shape == (3, 3)
    assert best(scorer.score(["xxaaax", "bb", "acccc"]), task) == ["many a", "many b", "many c"]
    (scored,) = scorer.score(["aab"])
    logits = scorer.weights @ [2, 1, 0] + scorer.bias
    expected = np.exp(logits) / np.exp(logits).sum()
    assert np.exp(scored.log_probabilities) == pytest.approx(expected, abs=1e-6)


def test_no_texts_give_no_scores() -> None:
    words = TfidfFeatures.fit(["where is my card", "my pin is blocked"])
    width = words.matrix(["card"]).shape[1]
    scorer = LinearClassifier(words, np.zeros((2, width)), np.zeros(2))
    assert scorer.score([]) == []


TASK = Classify(name="desk", labels=("card", "fee", "pin"), multiple=True)


def several_rows() -> Dataset:
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
