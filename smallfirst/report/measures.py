"""Tables and curves from the rows of one evaluation: classes, confusions, reliability, risk.

Every share comes with its interval. Rows without a confidence cannot be placed on a curve; they
are left out of it and counted.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np

from smallfirst.evaluation.calibration import expected_calibration_error
from smallfirst.evaluation.evaluation import EvaluatedRow, Evaluation
from smallfirst.records import Record
from smallfirst.stats import Estimate, wilson

NOTHING = "(no answer)"


class ClassRow(Record):
    """One label: how often it is found, how often it is right when said, and real errors."""

    label: str
    """The label."""
    n: int
    """Rows whose right answer it is."""
    recall: Estimate
    """Share of these that are answered so."""
    precision: Estimate | None
    """Share right among the answers that say it; None if it is never said."""
    errors: tuple[EvaluatedRow, ...]
    """Up to three of its rows answered otherwise, the surest mistakes first."""


class ConfusedPair(Record):
    """Two labels that are taken for each other."""

    gold: str
    """What was right."""
    said: str
    """What was answered."""
    count: int
    """Rows of `gold` answered `said`."""
    reverse: int
    """Rows of `said` answered `gold`."""
    share: float
    """`count` as a share of the rows of `gold`."""
    n_gold: int
    """Rows of `gold`."""


class ReliabilityBin(Record):
    """Rows of about equal confidence."""

    confidence: float
    """Their mean confidence."""
    accuracy: Estimate
    """Share right among them."""


class Reliability(Record):
    """Whether confidence means what it says."""

    bins: tuple[ReliabilityBin, ...]
    """Equal-count bins, least confident first."""
    ece: float
    """Expected calibration error: mean distance of accuracy and confidence over the bins."""
    ece_by_chance: float
    """What a perfectly calibrated model would show on as many rows."""
    n: int
    """Rows with a confidence."""
    n_without: int
    """Rows without one."""


class RiskPoint(Record):
    """Error when only the surest share of answers is kept."""

    coverage: float
    """Share kept, in [0, 1]."""
    error: Estimate
    """Error among the kept."""
    confidence: float
    """Confidence of the least sure answer kept."""


def answers_are_labels(evaluation: Evaluation) -> bool:
    """True if right answers repeat often enough that a table by label makes sense."""
    golds = Counter(row.gold for row in evaluation.rows)
    return 2 <= len(golds) <= max(2, len(evaluation.rows) // 4) and max(map(len, golds)) <= 80


def class_rows(evaluation: Evaluation, *, n_errors: int = 3) -> tuple[ClassRow, ...]:
    """One row a label, worst recall first (of two equals the one with more rows first)."""
    by_gold: dict[str, list[EvaluatedRow]] = defaultdict(list)
    said: Counter[str] = Counter()
    said_rightly: Counter[str] = Counter()
    for row in evaluation.rows:
        by_gold[row.gold].append(row)
        said[row.answer or NOTHING] += 1
        said_rightly[row.answer or NOTHING] += row.correct
    table = []
    for label, rows in by_gold.items():
        hits = sum(row.correct for row in rows)
        wrong = sorted((r for r in rows if not r.correct), key=lambda r: -(r.confidence or 0.0))
        table.append(
            ClassRow(
                label=label,
                n=len(rows),
                recall=wilson(hits, len(rows)),
                precision=wilson(said_rightly[label], said[label]) if said[label] else None,
                errors=tuple(wrong[:n_errors]),
            )
        )
    return tuple(sorted(table, key=lambda r: (r.recall.value, -r.n, r.label)))


def confused_pairs(evaluation: Evaluation, *, most: int = 12) -> tuple[ConfusedPair, ...]:
    """The most frequent mistakes, both directions of a pair in one row."""
    there = Counter(row.gold for row in evaluation.rows)
    mistakes = Counter((row.gold, row.answer or NOTHING) for row in evaluation.rows if not row.correct)
    ordered = sorted(mistakes.items(), key=lambda item: (-item[1], item[0]))
    pairs: list[ConfusedPair] = []
    seen: set[tuple[str, str]] = set()
    for (gold, said), count in ordered:
        if (said, gold) in seen:
            continue
        seen.add((gold, said))
        pairs.append(
            ConfusedPair(
                gold=gold,
                said=said,
                count=count,
                reverse=mistakes[(said, gold)],
                share=count / there[gold],
                n_gold=there[gold],
            )
        )
    pairs.sort(key=lambda p: -(p.count + p.reverse))
    return tuple(pairs[:most])


def surest_errors(evaluation: Evaluation, *, most: int = 12) -> tuple[EvaluatedRow, ...]:
    """Wrong answers, the most confident first."""
    wrong = (row for row in evaluation.rows if not row.correct)
    return tuple(sorted(wrong, key=lambda r: -(r.confidence or 0.0))[:most])


def reliability(evaluation: Evaluation, *, n_bins: int = 10) -> Reliability | None:
    """Confidence against accuracy in equal-count bins; None without any confidence."""
    rows = [row for row in evaluation.rows if row.confidence is not None]
    if not rows:
        return None
    confidence = np.array([row.confidence for row in rows], dtype=float)
    correct = np.array([row.correct for row in rows], dtype=bool)
    order = np.argsort(confidence, kind="stable")
    bins, chance = [], 0.0
    for part in np.array_split(order, min(n_bins, len(rows))):
        mean, share = float(confidence[part].mean()), wilson(int(correct[part].sum()), len(part))
        bins.append(ReliabilityBin(confidence=mean, accuracy=share))
        # Mean distance of a normal from its centre: sd * sqrt(2 / pi).
        variance = float((confidence[part] * (1 - confidence[part])).sum())
        chance += math.sqrt(max(variance, 0.0) * 2 / math.pi)
    return Reliability(
        bins=tuple(bins),
        ece=expected_calibration_error(confidence.tolist(), correct.tolist(), bins=n_bins),
        ece_by_chance=chance / len(rows),
        n=len(rows),
        n_without=len(evaluation.rows) - len(rows),
    )


def risk_coverage(evaluation: Evaluation, *, n_points: int = 60) -> tuple[RiskPoint, ...]:
    """Error by share kept, from the surest answers to all; empty without any confidence."""
    rows = sorted(
        (row for row in evaluation.rows if row.confidence is not None),
        key=lambda row: -(row.confidence or 0.0),
    )
    wrong = np.cumsum([not row.correct for row in rows])
    counts = sorted({max(1, round(len(rows) * i / n_points)) for i in range(1, n_points + 1)})
    return tuple(
        RiskPoint(
            coverage=count / len(evaluation.rows),
            error=wilson(int(wrong[count - 1]), count),
            confidence=rows[count - 1].confidence or 0.0,
        )
        for count in counts
        if count <= len(rows)
    )
