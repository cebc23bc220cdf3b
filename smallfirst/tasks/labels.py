"""Metrics of answers that are labels: counts by label, F1 and out of scope, each with a 95 % interval.

Rows that share outcome and right answer are one cell, so all resamples of a bootstrap are one matrix of counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache

import numpy as np

from smallfirst.base.stats.intervals import Estimate, bootstrap_interval, wilson
from smallfirst.tasks.task import PartCounts, ScoredAnswer

RESAMPLES = 1000

Metric = Callable[[np.ndarray], np.ndarray]
"""From how often each cell occurs (…, cells) to a figure (…,)."""


def label_metrics(
    labels: Sequence[str], rows: Sequence[ScoredAnswer], *, other: str | None = None
) -> dict[str, Estimate]:
    """Return `macro_f1` and `weighted_f1` over rows whose gold is a label.

    `other`, the label for none of the others, adds `in_scope_accuracy`, `other_recall` and `other_precision`.
    """
    index = {label: i for i, label in enumerate(labels)}
    pairs = [(index[x], index.get(row.answer or "", -1)) for row in rows if (x := _gold(row)) in index]
    outcomes = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    gold, said = outcomes[:, 0], outcomes[:, 1]
    draws = _Draws(gold * (len(labels) + 1) + said + 1)
    of_gold, of_said = gold[draws.first], said[draws.first]
    found = _f1_measures(draws, np.eye(len(labels))[of_gold], np.eye(len(labels) + 1)[of_said][:, :-1])
    return found if other is None else found | _other_measures(gold, said, index[other])


def counts_by_label(labels: Sequence[str], rows: Sequence[ScoredAnswer]) -> tuple[PartCounts, ...]:
    """Return counts by label. Where several labels are right, the answered one is the row's gold label."""
    answers = [None if row.answer is None else (row.answer,) for row in rows]
    return label_set_counts(labels, [(_gold(row),) for row in rows], answers)


def label_set_metrics(
    labels: Sequence[str], golds: Sequence[Collection[str]], answers: Sequence[Collection[str] | None]
) -> dict[str, Estimate]:
    """Return `micro_f1`, `macro_f1`, `jaccard` and `exact` of rows with several labels each; None is wrong."""
    index = {label: i for i, label in enumerate(labels)}
    gold, said = np.zeros((2, len(golds), len(labels)))
    alike = np.zeros(len(golds))
    number: dict[tuple[bytes, bytes, bool], int] = {}
    cells = np.zeros(len(golds), dtype=np.int64)
    for i, (right, answer) in enumerate(zip(golds, answers, strict=True)):
        gold[i, [index[x] for x in right if x in index]] = 1
        said[i, [index[x] for x in answer or () if x in index]] = 1
        alike[i] = 0.0 if answer is None else jaccard(right, answer)
        cells[i] = number.setdefault((gold[i].tobytes(), said[i].tobytes(), answer is None), len(number))
    draws = _Draws(cells)
    gold, said, alike = gold[draws.first], said[draws.first], alike[draws.first]
    both, total = (gold * said).sum(axis=1), (gold + said).sum(axis=1)
    return {
        "micro_f1": draws.share(lambda w: _ratio(2 * (w @ both), w @ total)),
        "macro_f1": _f1_measures(draws, gold, said)["macro_f1"],
        "jaccard": draws.share(lambda w: w @ alike / draws.n),
        "exact": wilson(int(draws.counts[alike == 1].sum()), draws.n),
    }


def label_set_counts(
    labels: Sequence[str], golds: Sequence[Collection[str]], answers: Sequence[Collection[str] | None]
) -> tuple[PartCounts, ...]:
    """Return counts by label of rows with several labels each."""
    there = Counter(label for gold in golds for label in gold)
    said = Counter(label for answer in answers for label in answer or ())
    right = Counter(x for gold, answer in zip(golds, answers, strict=True) for x in answer or () if x in gold)
    return tuple(PartCounts(name=x, n_gold=there[x], n_said=said[x], n_right=right[x]) for x in labels)


def jaccard(gold: Collection[str], answer: Collection[str]) -> float:
    """Return the share of the labels in either set that are in both, in [0, 1] (Jaccard 1912); 1 for two empty sets."""
    either = len({*gold, *answer})
    return len(set(gold) & set(answer)) / either if either else 1.0


def parse_label(labels: Sequence[str], text: str) -> str | None:
    """Return the label that `text` is or the only one it mentions, ignoring case and punctuation; None without one."""
    if (exact := text.strip()) in labels:
        return exact
    folded = _folded_labels(tuple(labels))
    said = _fold(text)
    if said in folded:
        return folded[said]
    mentioned = [key for key in folded if re.search(rf"\b{re.escape(key)}\b", said)]
    longest = [key for key in mentioned if not any(key != o and f" {key} " in f" {o} " for o in mentioned)]
    return folded[longest[0]] if len(longest) == 1 else None


@lru_cache(maxsize=16)
def _folded_labels(labels: tuple[str, ...]) -> dict[str, str]:
    """Return labels by their fold, without those that differ in punctuation only ("C", "C++")."""
    folds = Counter(_fold(label) for label in labels)
    return {key: label for label in labels if (key := _fold(label)) and folds[key] == 1}


def _fold(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def _gold(row: ScoredAnswer) -> str:
    """Return the label that the answer is compared with: itself if it is a right one, else the row's own."""
    return row.answer if row.answer is not None and row.answer in row.golds else row.golds[0]


class _Draws:
    def __init__(self, cell_of_row: np.ndarray) -> None:
        self.n = len(cell_of_row)
        _, self.first, cells = np.unique(cell_of_row, return_index=True, return_inverse=True)
        counts = np.bincount(cells, minlength=len(self.first))
        self.counts = counts.astype(float)
        self.resampled = np.zeros((RESAMPLES, len(counts)))
        draw = np.random.default_rng(0)
        for i in range(RESAMPLES if self.n else 0):
            self.resampled[i] = np.bincount(cells[draw.integers(0, self.n, self.n)], minlength=len(counts))

    def share(self, metric: Metric) -> Estimate:
        """Return a metric in [0, 1] with a bias-corrected percentile interval, no narrower than Wilson's."""
        if self.n == 0:
            return Estimate(value=0.0, low=0.0, high=1.0, n=0)
        return bootstrap_interval(float(metric(self.counts)), metric(self.resampled), n=self.n)


def _f1_measures(draws: _Draws, gold: np.ndarray, said: np.ndarray) -> dict[str, Estimate]:
    """Return macro and weighted F1 from the gold and answered labels of each cell, both (cells, labels) of 0 and 1."""
    hit = gold * said

    def by_label(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        there = weights @ gold
        total = there + weights @ said
        return _ratio(2 * (weights @ hit), total), there, total

    def macro(weights: np.ndarray) -> np.ndarray:
        f1, _, total = by_label(weights)
        return _ratio(f1.sum(axis=-1), (total > 0).sum(axis=-1))

    def weighted(weights: np.ndarray) -> np.ndarray:
        f1, there, _ = by_label(weights)
        return _ratio((f1 * there).sum(axis=-1), there.sum(axis=-1))

    return {"macro_f1": draws.share(macro), "weighted_f1": draws.share(weighted)}


def _other_measures(gold: np.ndarray, said: np.ndarray, other: int) -> dict[str, Estimate]:
    inside, caught = gold != other, int(((gold == other) & (said == other)).sum())
    return {
        "in_scope_accuracy": wilson(int((gold == said)[inside].sum()), int(inside.sum())),
        "other_recall": wilson(caught, int((~inside).sum())),
        "other_precision": wilson(caught, int((said == other).sum())),
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return `part / whole`, 0 where the whole is 0."""
    zeros = np.zeros(np.broadcast(part, whole).shape)
    return np.asarray(np.divide(part, whole, out=zeros, where=np.asarray(whole) > 0))
