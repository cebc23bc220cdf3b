"""Tables and curves from the rows of one evaluation: confusions, grades, reliability, risk.

Every share comes with its interval. Rows without a confidence cannot be placed on a curve; they
are left out of it and counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from smallfirst.evaluation.calibration import brier_score, equal_count_bins, expected_calibration_error
from smallfirst.evaluation.results import EvaluatedRow, Evaluation
from smallfirst.evaluation.risk_coverage import RiskCoveragePoint, auroc, risk_coverage_curve
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, wilson

NOTHING = "(no answer)"
NONE_OF_THESE = "(none of these)"


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


class Confusion(Record):
    """Every right answer against every given one."""

    labels: tuple[str, ...]
    """Right answers, the most frequent first."""
    said: tuple[str, ...]
    """The same, and what else was said."""
    counts: tuple[tuple[int, ...], ...]
    """Rows by right answer (down) and given one (across)."""


class Grades(Record):
    """How far answers are right where a score says how far."""

    n_full: int
    """Score 1."""
    n_part: int
    """Score between 0 and 1."""
    n_none: int
    """Score 0, but there is an answer."""
    n_silent: int
    """No answer."""


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
    accuracy: Estimate
    """Share right among all of them."""
    ece: float
    """Expected calibration error: mean distance of accuracy and confidence over the bins."""
    ece_by_chance: float
    """What a perfectly calibrated model would show on as many rows."""
    brier: float
    """Mean squared distance of confidence from what came out (Brier 1950)."""
    parts_right_from_wrong: Estimate | None
    """Probability that a right answer is surer than a wrong one (AUROC); None if all are right or all wrong."""
    n: int
    """Rows with a confidence."""
    n_without: int
    """Rows without one."""


def answers_are_labels(evaluation: Evaluation) -> bool:
    """True if right answers repeat often enough that a table by label makes sense."""
    golds = Counter(row.gold for row in evaluation.rows)
    return 2 <= len(golds) <= max(2, len(evaluation.rows) // 4) and max(map(len, golds)) <= 80


def confused_pairs(evaluation: Evaluation, *, most: int = 40) -> tuple[ConfusedPair, ...]:
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


def confusion(evaluation: Evaluation, *, most: int = 12) -> Confusion | None:
    """All counts if there are at most `most` labels; None otherwise."""
    golds = Counter(row.gold for row in evaluation.rows)
    if not 2 <= len(golds) <= most:
        return None
    labels = tuple(label for label, _ in golds.most_common())
    cells = Counter((row.gold, row.answer if row.answer in golds else NONE_OF_THESE) for row in evaluation.rows)
    silent = any(said == NONE_OF_THESE for _, said in cells)
    said = (*labels, NONE_OF_THESE) if silent else labels
    counts = tuple(tuple(cells[gold, answer] for answer in said) for gold in labels)
    return Confusion(labels=labels, said=said, counts=counts)


def grades(evaluation: Evaluation) -> Grades | None:
    """Answers by how far they are right; None where every score is 0 or 1."""
    if not any(0 < row.score < 1 for row in evaluation.rows):
        return None
    return Grades(
        n_full=sum(row.score >= 1 for row in evaluation.rows),
        n_part=sum(0 < row.score < 1 for row in evaluation.rows),
        n_none=sum(row.score <= 0 and row.answer is not None for row in evaluation.rows),
        n_silent=sum(row.answer is None for row in evaluation.rows),
    )


def surest_errors(evaluation: Evaluation, *, most: int = 60) -> tuple[EvaluatedRow, ...]:
    """Wrong answers, the most confident first."""
    wrong = (row for row in evaluation.rows if not row.correct)
    return tuple(sorted(wrong, key=lambda r: -(r.confidence or 0.0))[:most])


def reliability(evaluation: Evaluation, *, n_bins: int = 10) -> Reliability | None:
    """Confidence against accuracy in equal-count bins; None without any confidence."""
    rows = [row for row in evaluation.rows if row.confidence is not None]
    if not rows:
        return None
    made = reliability_of([row.confidence or 0.0 for row in rows], [row.correct for row in rows], n_bins=n_bins)
    return made.model_copy(update={"n_without": len(evaluation.rows) - len(rows)})


def reliability_of(said: Sequence[float], right: Sequence[bool], *, n_bins: int) -> Reliability:
    """The same from plain figures, at least one."""
    confidence, correct = np.array(said, dtype=float), np.array(right, dtype=bool)
    bins, chance = [], 0.0
    for part in equal_count_bins(confidence, n_bins):
        mean, share = float(confidence[part].mean()), wilson(int(correct[part].sum()), len(part))
        bins.append(ReliabilityBin(confidence=mean, accuracy=share))
        # Mean distance of a normal from its centre: sd * sqrt(2 / pi).
        variance = float((confidence[part] * (1 - confidence[part])).sum())
        chance += math.sqrt(max(variance, 0.0) * 2 / math.pi)
    return Reliability(
        bins=tuple(bins),
        accuracy=wilson(int(correct.sum()), len(correct)),
        ece=expected_calibration_error(said, right, bins=n_bins),
        ece_by_chance=chance / len(confidence),
        brier=brier_score(said, right),
        parts_right_from_wrong=auroc(said, right),
        n=len(confidence),
        n_without=0,
    )


def risks(evaluation: Evaluation) -> tuple[RiskCoveragePoint, ...]:
    """Error by share kept, from the surest answers to all; empty without any confidence."""
    return risk_coverage_curve([row.confidence for row in evaluation.rows], [row.correct for row in evaluation.rows])
