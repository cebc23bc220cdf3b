"""Metrics of answers that are labels: counts by label, F1, out of scope, scales, costs, each with a 95 % interval.

Rows that share outcome and right answer are one cell, so all resamples of a bootstrap are one matrix of counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache

import numpy as np

from smallfirst.stats.intervals import Estimate, bias_corrected, bootstrap_interval, wilson
from smallfirst.tasks.task import PartCounts, ScoredAnswer

RESAMPLES = 1000

Metric = Callable[[np.ndarray], np.ndarray]
"""From how often each cell occurs (…, cells) to a figure (…,)."""


def label_metrics(
    labels: Sequence[str],
    rows: Sequence[ScoredAnswer],
    *,
    other: str | None = None,
    ordered: bool = False,
    costs: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Estimate]:
    """Return `macro_f1`, `weighted_f1` and what `other`, `ordered` and `costs` add, over rows whose gold is a label.

    `other` adds `in_scope_accuracy`, `other_recall` and `other_precision`; `ordered` `within_one`, `mean_distance` (in
    steps) and `quadratic_kappa`; `costs` `mean_cost`. On a scale and in costs no answer counts as the worst one: the
    label farthest from the right one, or the most expensive.
    """
    index = {label: i for i, label in enumerate(labels)}
    pairs = [(index[x], index.get(row.answer or "", -1)) for row in rows if (x := _gold(row)) in index]
    outcomes = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    gold, said = outcomes[:, 0], outcomes[:, 1]
    draws = _Draws(gold * (len(labels) + 1) + said + 1)
    of_gold, of_said = gold[draws.first], said[draws.first]
    found = _f1_measures(draws, np.eye(len(labels))[of_gold], np.eye(len(labels) + 1)[of_said][:, :-1])
    if other is not None:
        found |= _other_measures(gold, said, index[other])
    if ordered:
        farthest = np.where(of_gold * 2 > len(labels) - 1, 0, len(labels) - 1)
        found |= _scale_measures(draws, of_gold, np.where(of_said < 0, farthest, of_said), len(labels))
    if costs:
        found["mean_cost"] = draws.mean(_cost_table(labels, costs), of_gold, of_said)
    return found


def counts_by_label(labels: Sequence[str], rows: Sequence[ScoredAnswer]) -> tuple[PartCounts, ...]:
    """Return counts by label. Where several labels are right, the answered one is the row's gold label."""
    there = Counter(_gold(row) for row in rows)
    said = Counter(row.answer for row in rows)
    right = Counter(row.answer for row in rows if row.answer in row.golds)
    return tuple(PartCounts(name=x, n_gold=there[x], n_said=said[x], n_right=right[x]) for x in labels)


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

    def mean(self, table: np.ndarray, gold: np.ndarray, said: np.ndarray) -> Estimate:
        """Return the mean of `table[gold, said]`, one pair a cell; no answer (-1) is the worst.

        No narrower than Wilson's interval of the share of errors times their mean value.
        """
        if self.n == 0:
            return Estimate(value=0.0, low=0.0, high=float(table.max()), n=0)
        values = np.where(said < 0, table[gold].max(axis=1), table[gold, said])
        value, low, high = self.ends(lambda w: w @ values / self.n)
        errors = int(self.counts[values > 0].sum())
        any_wrong = self.counts @ table.sum(axis=1)[gold] / (len(table) - 1)
        each = float(value * self.n / errors if errors else any_wrong / self.n)
        least = wilson(errors, self.n)
        return Estimate(value=value, low=min(low, least.low * each), high=max(high, least.high * each), n=self.n)

    def ends(self, metric: Metric) -> tuple[float, float, float]:
        """Return value, low and high."""
        value = float(metric(self.counts))
        return value, *bias_corrected(value, metric(self.resampled))


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


def _cost_table(labels: Sequence[str], costs: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    """Return the cost (gold, answered) of every pair of labels: as named, else 1, and 0 for the right one."""
    table = 1.0 - np.eye(len(labels))
    index = {label: i for i, label in enumerate(labels)}
    for gold, by_said in costs.items():
        for said, cost in by_said.items():
            table[index[gold], index[said]] = cost
    return table


def _scale_measures(draws: _Draws, gold: np.ndarray, said: np.ndarray, n_labels: int) -> dict[str, Estimate]:
    """Return how far answers are from the right step of a scale, one a cell, with the kappa of Cohen 1968."""
    steps = np.arange(n_labels)
    distances = np.abs(steps[:, None] - steps)
    squares, distance = distances**2, distances[gold, said]
    at_gold, at_said = np.eye(n_labels)[gold], np.eye(n_labels)[said]

    def by_chance(weights: np.ndarray) -> np.ndarray:
        both = ((weights @ at_gold) @ squares * (weights @ at_said)).sum(axis=-1)
        return np.asarray(both / draws.n**2)

    def kappa(weights: np.ndarray) -> np.ndarray:
        chance = by_chance(weights)
        return np.where(chance > 0, 1 - _ratio(weights @ distance**2 / draws.n, chance), 0.0)

    found = {
        "within_one": wilson(int(draws.counts[distance <= 1].sum()), draws.n),
        "mean_distance": draws.mean(distances, gold, said),
    }
    chance = float(by_chance(draws.counts)) if draws.n else 0.0
    if chance == 0:  # one label throughout: agreement beyond chance cannot be seen
        return found | {"quadratic_kappa": Estimate(value=0.0, low=-1.0, high=1.0, n=draws.n)}
    value, low, high = draws.ends(kappa)
    off = draws.mean(squares, gold, said)
    low, high = min(low, 1 - off.high / chance), max(high, 1 - off.low / chance)
    return found | {"quadratic_kappa": Estimate(value=value, low=max(-1.0, low), high=min(1.0, high), n=draws.n)}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return `part / whole`, 0 where the whole is 0."""
    zeros = np.zeros(np.broadcast(part, whole).shape)
    return np.asarray(np.divide(part, whole, out=zeros, where=np.asarray(whole) > 0))
