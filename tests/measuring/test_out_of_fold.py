"""Out-of-fold answers: near-copies and groups stay together; what is fitted on the answers is as computed by hand."""

from collections import Counter

import numpy as np
import pytest
from fixtures.rows import example, text_rows

from smallfirst.data.dataset import Dataset, Example
from smallfirst.measuring.calibration import fit_temperature
from smallfirst.measuring.out_of_fold import FoldAnswers, RawAnswer, best_epoch, calibrate_spans, folds_of
from smallfirst.models.manifest import Manifest
from smallfirst.tasks.classify import Classify
from smallfirst.tasks.extract import Extract

LABELS = ("card", "fee")


def rows_of(*examples: Example) -> Dataset:
    return Dataset(name="rows", examples=examples)


def answers_of(pairs: list[tuple[float, float]]) -> list[RawAnswer]:
    return [RawAnswer(nats=pair) for pair in pairs]


MANIFEST = Manifest(kind="words", task=Classify(name="desk", labels=LABELS), base="")


def test_every_row_is_in_one_fold_with_its_copies_near_copies_and_group() -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    many = [example(f"{LABELS[i % 2]} number {i} of {i * 7919 % 1000}", LABELS[i % 2]) for i in range(60)]
    same = [example("Where is it?", "card"), example("where is it", "card"), example("WHERE IS IT", "fee")]
    near = [
        example(f"{words} seventeen eighteen nineteen", "fee"),
        example(f"{words} seventeen eighteen nineteen twenty", "fee"),
    ]
    grouped = [example(f"turn {i} {i * 31}", LABELS[i % 2], group="dialogue 7") for i in range(6)]
    rows = rows_of(*many, *same, *near, *grouped)
    folds = folds_of(rows, 5)
    assert sorted(i for fold in folds for i in fold.at) == list(range(len(rows)))
    for first, last in ((60, 62), (63, 64), (65, 70)):
        assert len({n for n, fold in enumerate(folds) for i in fold.at if first <= i <= last}) == 1
    for fold in folds:
        assert [rows.examples[i] for i in fold.at] == list(fold.held.examples)
        assert len(fold.held) + len(fold.rest) == len(rows)
        assert not {e.key for e in fold.held.examples} & {e.key for e in fold.rest.examples}
    assert folds == folds_of(rows, 5)


def test_folds_have_about_the_same_size_and_labels() -> None:
    rows = rows_of(*(example(f"number {i} {i * 7919 % 1000}", LABELS[i % 3 > 0]) for i in range(99)))
    counts = [Counter(e.answer for e in fold.held.examples) for fold in folds_of(rows, 3)]
    assert counts == [{"card": 11, "fee": 22}] * 3
    assert len(folds_of(rows_of(example("a", "card"), example("a b", "card")), 5)) == 2


def test_temperature_is_that_of_the_answers_whose_label_the_fold_knew() -> None:
    rows = rows_of(*(example(f"{i}", LABELS[i % 2]) for i in range(5)))
    said = [(-0.2, -1.7), (-2.3, -0.1), (-1.6, -0.2), (-1.2, -0.3), (-1000.0, 0.0)]
    found = FoldAnswers.fit(answers_of(said), rows, MANIFEST, 5)
    # The last row's label was in none of the other folds: it is a wrong answer, and says nothing of the temperature.
    assert found.manifest.temperature == pytest.approx(fit_temperature(np.array(said[:4]), np.array([0, 1, 0, 1])))
    answers = found.completions("words")
    assert [answer.text for answer in answers] == ["card", "fee", "fee", "fee", "fee"]
    odds = (said[0][0] - said[0][1]) / found.manifest.temperature
    assert answers[0].confidence == pytest.approx(1 / (1 + np.exp(-odds)), abs=1e-4)
    assert dict(answers[0].alternatives).keys() == set(LABELS)
    assert FoldAnswers.model_validate_json(found.model_dump_json()) == found


def test_the_best_epoch_is_the_last_one_not_clearly_below() -> None:
    assert [best_epoch((0.8, 0.9, 0.885, 0.86), n) for n in (0, 100, 400, 10_000)] == [2, 4, 3, 2]
    assert [best_epoch(curve) for curve in ((), (0.4,), (0.5, 0.7, 0.7, 0.6), (0.7, 0.1 + 0.6))] == [0, 1, 3, 2]


def test_texts_out_of_scope_are_told_by_signals_that_are_weighed_on_all_folds() -> None:
    task = Classify(name="desk", labels=(*LABELS, "other"), other="other")
    manifest = Manifest(kind="encoder", task=task, base="mini")
    rng = np.random.default_rng(0)
    rows = rows_of(*(example(f"{i}", "other" if i % 5 == 0 else LABELS[i % 2]) for i in range(150)))
    answers = []
    for i, one in enumerate(rows.examples):
        far = 3.0 if one.answer == "other" else 0.0
        signals = tuple(float(far + x) for x in rng.normal(0, 0.5, 5))
        nats = np.log([0.6, 0.3, 0.1] if one.answer == "card" or i % 10 == 0 else [0.3, 0.6, 0.1])
        answers.append(RawAnswer(nats=tuple(nats.tolist()), signals=signals))
    found = FoldAnswers.fit(answers, rows, manifest, 5)
    assert found.scope is not None
    said = [answer.text for answer in found.completions("encoder")]
    others = [text == "other" for text, e in zip(said, rows.examples, strict=True) if e.answer == "other"]
    assert sum(others) > 0.9 * len(others)  # the label `other` alone has a probability of 0.1
    right = [text == e.answer for text, e in zip(said, rows.examples, strict=True) if e.answer != "other"]
    assert sum(right) > 0.95 * len(right)
    few = rows.subset("few", rows.examples[:40])
    assert FoldAnswers.fit(answers[:40], few, manifest, 5).scope is None  # too few rows of `other`


def test_answers_that_are_no_labels_are_calibrated_by_their_log_probabilities() -> None:
    task = {"kind": "answer", "name": "desk", "about": "", "not_answerable": ""}
    manifest = Manifest.model_validate({"kind": "reader", "task": task, "base": "mini"})
    rows = text_rows("rows", *(f"q {i}" for i in range(80)), answer="at 7", shape="question")
    raw = [RawAnswer(text="at 7" if i % 4 else "at 8", nats=(-0.1 if i % 4 else -2.0,)) for i in range(80)]
    found = FoldAnswers.fit(raw, rows, manifest, 3)
    answers = found.completions("reader")
    assert [answer.text for answer in answers[:2]] == ["at 8", "at 7"]
    assert answers[0].confidence is not None
    assert answers[1].confidence is not None
    assert answers[0].confidence < 0.1
    assert answers[1].confidence > 0.9


def test_labels_beside_spans_have_the_median_of_the_folds_thresholds() -> None:
    task = Extract(name="desk", json_schema={"type": "object", "properties": {"a": {"type": "string"}}})
    manifest = Manifest(kind="tagger", task=task, base="")
    answers = [RawAnswer(nats=(-1.0,), text='{"a": "b"}', label_threshold=t) for t in (0.2, 0.4, 0.6)]
    row = example("b", '{"a": "b"}', shape="target")
    score, fitted = calibrate_spans(manifest, [row] * 3, answers)
    assert (score, fitted.label_threshold) == (1.0, 0.4)
    assert calibrate_spans(manifest, [], [])[1].label_threshold == 0.5
