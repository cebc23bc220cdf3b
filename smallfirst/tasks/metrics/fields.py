"""Metrics of extraction answers: values are counted as multisets by field path, five counts a row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from smallfirst.base.stats.intervals import Estimate, bootstrap_share, wilson
from smallfirst.tasks.json.paths import comparison_key, flatten
from smallfirst.tasks.metrics.value_matching import Normalizer, normalize_value
from smallfirst.tasks.task import PartCounts, ScoredAnswer

Normalizers = Mapping[str, Normalizer]


COUNTS = ("n_gold", "n_said", "n_right", "n_missing", "n_invented")
"""Values that are there, that the answer gives, of these those that are there, and those beyond the other number."""


def field_score(golds: Sequence[str], answer: str | None, normalise: Normalizers) -> float:
    """Return 1 if the answer equals a gold one, else the best F1 over fields, below 1. No answer scores 0."""
    said = _parsed(answer)
    return 0.0 if said is None else max((_score(_parsed(gold), said, normalise) for gold in golds), default=0.0)


def wrong_fields(
    names: Sequence[str], golds: Sequence[str], answer: str | None, normalise: Normalizers
) -> tuple[str, ...]:
    """Return which of the top-level fields `names` differ from the gold answer that leaves the fewest; all if None.

    A field that is left out is the same as null.
    """
    said = _parsed(answer)
    if said is None:
        return tuple(names)
    found = [_differing(names, _parsed(gold), said, normalise) for gold in golds]
    return min(found, key=len, default=tuple(names))


def _differing(names: Sequence[str], gold: Any, said: Any, normalise: Normalizers) -> tuple[str, ...]:
    def key(answer: Any, name: str) -> Hashable:
        return comparison_key({name: answer.get(name)}, normalise)

    return tuple(name for name in names if key(gold, name) != key(said, name))


def field_metrics(rows: Sequence[ScoredAnswer], normalise: Normalizers) -> dict[str, Estimate]:
    """Return the micro metrics of fields (bootstrapped over rows), `missing`, `invented` and `valid`."""
    totals = [_total(by_path) for by_path in _counted(rows, normalise)]
    gold, said, right, missing, invented = np.array(totals, dtype=np.int64).reshape(len(rows), len(COUNTS)).T

    def ratio(above: np.ndarray, below: np.ndarray) -> Estimate:
        return bootstrap_share(lambda at: float(above[at].sum() / max(1, below[at].sum())), len(rows))

    return {
        "field_f1": ratio(2 * right, gold + said),
        "field_precision": ratio(right, said),
        "field_recall": ratio(right, gold),
        "missing": ratio(missing, gold),
        "invented": ratio(invented, said),
        "valid": wilson(sum(row.answer is not None for row in rows), len(rows)),
    }


def counts_by_field(
    paths: Iterable[str], rows: Sequence[ScoredAnswer], normalise: Normalizers
) -> tuple[PartCounts, ...]:
    """Return counts by field: those of `paths` in this order, then others in order of appearance."""
    found = {path: np.zeros(len(COUNTS), dtype=np.int64) for path in paths}
    for by_path in _counted(rows, normalise):
        for path, counts in by_path.items():
            found[path] = found.get(path, 0) + counts
    return tuple(PartCounts(name=path, **dict(zip(COUNTS, n.tolist(), strict=True))) for path, n in found.items())


def _counted(rows: Sequence[ScoredAnswer], normalise: Normalizers) -> list[dict[str, np.ndarray]]:
    """Return the counts of each row by path, against the gold answer nearest to the answer."""
    found = []
    for row in rows:
        said = _parsed(row.answer)
        golds = [_parsed(gold) for gold in row.golds]
        gold = max(golds, key=lambda one: _score(one, said, normalise)) if len(golds) > 1 else golds[0]
        found.append(_by_path(gold, said, normalise))
    return found


def _score(gold: Any, said: Any, normalise: Normalizers) -> float:
    if comparison_key(gold, normalise) == comparison_key(said, normalise):
        return 1.0
    n_gold, n_said, n_right, *_ = _total(_by_path(gold, said, normalise))
    if 2 * n_right == n_gold + n_said > 0:  # right values, but at the wrong objects of a list: as if one were wrong
        return float(1 - 1 / n_gold)
    return float(2 * n_right / max(1, n_gold + n_said))


def _by_path(gold: Any, said: Any, normalise: Normalizers) -> dict[str, np.ndarray]:
    there, given = _values(gold, normalise), _values(said, normalise)
    found = {}
    for path in {**there, **given}:
        g, s = there.get(path, Counter()), given.get(path, Counter())
        n_gold, n_said = g.total(), s.total()
        found[path] = np.array([n_gold, n_said, (g & s).total(), max(0, n_gold - n_said), max(0, n_said - n_gold)])
    return found


def _values(answer: Any, normalise: Normalizers) -> dict[str, Counter[Any]]:
    return {
        path: Counter(normalize_value(value, normalise.get(path, "exact")) for value in values)
        for path, values in flatten(answer).items()
    }


def _total(by_path: Mapping[str, np.ndarray]) -> np.ndarray:
    return sum(by_path.values(), np.zeros(len(COUNTS), dtype=np.int64))


def _parsed(answer: str | None) -> Any:
    return None if answer is None else json.loads(answer)
