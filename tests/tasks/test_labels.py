"""Figures of labels: those of scikit-learn, with the intervals of the project's own bootstrap."""

import numpy as np
import pytest
from sklearn import metrics

from smallfirst.base.stats.intervals import bootstrap_share, wilson
from smallfirst.tasks.labels import counts_by_label, label_metrics, label_set_counts, label_set_metrics
from smallfirst.tasks.task import PartCounts, ScoredAnswer

LABELS = ("bad", "poor", "fair", "good", "fine")


def rows(*pairs: tuple[str, str | None]) -> list[ScoredAnswer]:
    return [ScoredAnswer((gold,), answer, float(gold == answer)) for gold, answer in pairs]


def drawn(seed: int, *, n: int = 200, labels: tuple[str, ...] = LABELS, right: float = 0.7) -> list[ScoredAnswer]:
    """Rows of which about `right` are right and the rest any label."""
    draw = np.random.default_rng(seed)
    golds = draw.choice(labels, n)
    answers = np.where(draw.random(n) < right, golds, draw.choice(labels, n))
    return rows(*zip(golds.tolist(), answers.tolist(), strict=True))


def columns(answered: list[ScoredAnswer]) -> tuple[list[str], list[str]]:
    return [row.golds[0] for row in answered], [row.answer or "" for row in answered]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("labels", [LABELS, LABELS[:2]], ids=["five labels", "two labels"])
def test_figures_are_those_of_scikit_learn(seed: int, labels: tuple[str, ...]) -> None:
    answered = drawn(seed, labels=labels)
    gold, said = columns(answered)
    found = label_metrics(labels, answered)
    assert found["macro_f1"].value == pytest.approx(metrics.f1_score(gold, said, average="macro"))
    assert found["weighted_f1"].value == pytest.approx(metrics.f1_score(gold, said, average="weighted"))


def test_no_answer_counts_against_the_right_label_only() -> None:
    answered = rows(("bad", "bad"), ("bad", None), ("good", "good"), ("good", "bad"))
    # bad: found 1 of 2, said twice, once rightly; good: found 1 of 2, said once
    found = label_metrics(LABELS, answered)
    assert found["macro_f1"].value == pytest.approx((1 / 2 + 2 / 3) / 2)
    gold, said = columns(answered)
    there = metrics.f1_score(gold, said, labels=["bad", "good"], average="macro")
    assert found["macro_f1"].value == pytest.approx(there)


def test_intervals_are_those_of_a_row_by_row_bootstrap() -> None:
    answered = drawn(5, n=60)
    gold, said = (np.array([LABELS.index(x) for x in side]) for side in columns(answered))

    def macro_f1(at: np.ndarray) -> float:
        hit = np.bincount(gold[at][gold[at] == said[at]], minlength=len(LABELS))
        total = np.bincount(gold[at], minlength=len(LABELS)) + np.bincount(said[at], minlength=len(LABELS))
        return float((2 * hit / np.maximum(total, 1)).sum() / max(1, (total > 0).sum()))

    expected = bootstrap_share(macro_f1, len(gold))
    found = label_metrics(LABELS, answered)["macro_f1"]
    assert (found.low, found.value, found.high) == pytest.approx((expected.low, expected.value, expected.high))


def test_out_of_scope_is_kept_apart() -> None:
    answered = rows(
        *[("bad", "bad")] * 6,  # in scope and right
        *[("good", "fair")] * 2,  # in scope and wrong
        *[("good", "fine")] * 1,  # in scope, taken for out of scope
        *[("good", None)] * 1,
        *[("fine", "fine")] * 3,  # out of scope and seen
        *[("fine", "bad")] * 2,  # out of scope, let in
    )
    found = label_metrics(LABELS, answered, other="fine")
    assert found["in_scope_accuracy"] == wilson(6, 10)
    assert found["other_recall"] == wilson(3, 5)
    assert found["other_precision"] == wilson(3, 4)


def test_parts_count_what_was_there_said_and_right() -> None:
    answered = [
        *rows(("bad", "bad"), ("bad", "good"), ("good", None)),
        ScoredAnswer(("bad", "good"), "good", 1.0),  # another right answer: the row is one of that label
    ]
    assert counts_by_label(("bad", "good", "fair"), answered) == (
        PartCounts(name="bad", n_gold=2, n_said=1, n_right=1),
        PartCounts(name="good", n_gold=2, n_said=2, n_right=1),
        PartCounts(name="fair", n_gold=0, n_said=0, n_right=0),
    )


def sets(seed: int, n: int, labels: tuple[str, ...] = LABELS) -> tuple[np.ndarray, np.ndarray]:
    """Gold and answered labels (rows, labels), never no label."""
    draw = np.random.default_rng(seed)
    gold = draw.random((n, len(labels))) < 0.3
    said = gold ^ (draw.random(gold.shape) < 0.1)
    gold[:, 0] |= ~gold.any(axis=1)
    said[:, 0] |= ~said.any(axis=1)
    return gold, said


def names(table: np.ndarray, labels: tuple[str, ...] = LABELS) -> list[tuple[str, ...]]:
    return [tuple(label for label, there in zip(labels, row, strict=True) if there) for row in table]


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_several_labels_are_those_of_scikit_learn(seed: int) -> None:
    gold, said = sets(seed, 150)
    found = label_set_metrics(LABELS, names(gold), names(said))
    assert found["micro_f1"].value == pytest.approx(metrics.f1_score(gold, said, average="micro"))
    assert found["macro_f1"].value == pytest.approx(metrics.f1_score(gold, said, average="macro"))
    assert found["jaccard"].value == pytest.approx(metrics.jaccard_score(gold, said, average="samples"))
    assert found["exact"].value == pytest.approx(metrics.accuracy_score(gold, said))
    assert all(figure.low < figure.value < figure.high for figure in found.values())


def test_no_answer_is_not_the_answer_that_no_label_fits() -> None:
    found = label_set_metrics(LABELS, [(), (), ("bad",)], [None, (), ("bad", "good")])
    assert found["exact"] == wilson(1, 3)
    assert found["jaccard"].value == pytest.approx((0 + 1 + 1 / 2) / 3)
    assert found["micro_f1"].value == pytest.approx(2 / 3)
    assert list(found) == ["micro_f1", "macro_f1", "jaccard", "exact"]


def test_parts_of_several_labels() -> None:
    golds = [("bad", "good"), ("bad",), ()]
    answers = [("bad",), None, ("good",)]
    assert label_set_counts(("bad", "good"), golds, answers) == (
        PartCounts(name="bad", n_gold=2, n_said=1, n_right=1),
        PartCounts(name="good", n_gold=1, n_said=1, n_right=0),
    )
