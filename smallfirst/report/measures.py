"""Tables and curves from the rows of one evaluation, each share with its interval."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from smallfirst.evaluation.calibration import brier_score, equal_count_bins, expected_calibration_error
from smallfirst.evaluation.results import EvaluatedRow, Evaluation
from smallfirst.evaluation.risk_coverage import RiskCoveragePoint, auroc, risk_coverage_curve
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, wilson

NO_ANSWER = "(no answer)"
OTHER_ANSWER = "(none of these)"
MAX_CONFUSION_LABELS = 12
MIN_FOR_P99 = 100


class ConfusedPair(Record):
    """Two labels that are confused with each other."""

    gold: str
    said: str
    count: int
    reverse: int
    share: float
    """`count` as a share of the rows of `gold`."""
    n_gold: int


class Confusion(Record):
    """The confusion matrix."""

    labels: tuple[str, ...]
    """Right answers, most frequent first: the rows of the matrix."""
    said: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class Grades(Record):
    """How many graded answers are fully, partly or not right."""

    n_full: int
    n_part: int
    n_none: int
    """Score 0, but there is an answer."""
    n_silent: int


class ReliabilityBin(Record):
    """Rows of about equal confidence."""

    confidence: float
    accuracy: Estimate


class Reliability(Record):
    """How well confidence is calibrated."""

    bins: tuple[ReliabilityBin, ...]
    """Equal-count bins, least confident first."""
    accuracy: Estimate
    ece: float
    """Expected calibration error: mean distance of accuracy and confidence over the bins."""
    ece_by_chance: float
    """Calibration error that a perfectly calibrated model would show on as many rows."""
    brier: float
    """Mean squared distance of confidence from the outcome (Brier 1950)."""
    auroc: Estimate | None
    """Probability that a right answer has more confidence than a wrong one; None if all are right or all are wrong."""
    n: int
    n_without: int = 0


class Latency(Record):
    """Latency of one path, one request at a time."""

    evaluation: Evaluation
    p99_ms: float | None
    """99th percentile; None with fewer than 100 requests."""
    source: str


def latency_row(evaluation: Evaluation) -> Latency:
    """Return the latency of one path; under load it includes waiting, so only a request's own time has a 99th."""
    samples, source = evaluation.probes_ms, "requests asked one at a time"
    if not samples and evaluation.requests_per_s is None:
        samples = tuple(row.latency_ms for row in evaluation.rows if row.latency_ms > 0)
        source = "requests as reported by the path"
    return Latency(
        evaluation=evaluation,
        p99_ms=float(np.quantile(samples, 0.99)) if len(samples) >= MIN_FOR_P99 else None,
        source=f"{len(samples):,} {source}" if samples else "a few requests asked one at a time",
    )


def confused_pairs(evaluation: Evaluation, *, limit: int) -> tuple[ConfusedPair, ...]:
    """Return the most frequent mistakes, both directions of a pair in one row."""
    n_gold = Counter(row.gold for row in evaluation.rows)
    mistakes = Counter((row.gold, row.answer or NO_ANSWER) for row in evaluation.rows if not row.correct)
    pairs: dict[frozenset[str], ConfusedPair] = {}
    for (gold, said), count in sorted(mistakes.items(), key=lambda item: (-item[1], item[0])):
        pair = ConfusedPair(
            gold=gold,
            said=said,
            count=count,
            reverse=mistakes[said, gold],
            share=count / n_gold[gold],
            n_gold=n_gold[gold],
        )
        pairs.setdefault(frozenset((gold, said)), pair)
    return tuple(sorted(pairs.values(), key=lambda p: -(p.count + p.reverse))[:limit])


def confusion(evaluation: Evaluation) -> Confusion | None:
    """Return the confusion matrix, or None with more than 12 labels or only one."""
    golds = Counter(row.gold for row in evaluation.rows)
    if not 2 <= len(golds) <= MAX_CONFUSION_LABELS:
        return None
    labels = tuple(label for label, _ in golds.most_common())
    cells = Counter((row.gold, row.answer if row.answer in golds else OTHER_ANSWER) for row in evaluation.rows)
    others = any(said == OTHER_ANSWER for _, said in cells)
    said = (*labels, OTHER_ANSWER) if others else labels
    counts = tuple(tuple(cells[gold, answer] for answer in said) for gold in labels)
    return Confusion(labels=labels, said=said, counts=counts)


def grades(evaluation: Evaluation) -> Grades | None:
    """Count answers by how far they are right; None where every score is 0 or 1."""
    if not any(0 < row.score < 1 for row in evaluation.rows):
        return None
    return Grades(
        n_full=sum(row.score >= 1 for row in evaluation.rows),
        n_part=sum(0 < row.score < 1 for row in evaluation.rows),
        n_none=sum(row.score <= 0 and row.answer is not None for row in evaluation.rows),
        n_silent=sum(row.answer is None for row in evaluation.rows),
    )


def surest_errors(evaluation: Evaluation) -> tuple[EvaluatedRow, ...]:
    """Return the wrong answers, most confident first."""
    wrong = (row for row in evaluation.rows if not row.correct)
    return tuple(sorted(wrong, key=lambda row: -(row.confidence or 0.0)))


def reliability(evaluation: Evaluation, *, n_bins: int = 10) -> Reliability | None:
    """Compare confidence with accuracy in equal-count bins; None without any confidence."""
    known = [(row.confidence, row.correct) for row in evaluation.rows if row.confidence is not None]
    if not known:
        return None
    confidences, correct = zip(*known, strict=True)
    confidence, outcome = np.array(confidences, dtype=float), np.array(correct, dtype=bool)
    bins, by_chance = [], 0.0
    for part in equal_count_bins(confidence, n_bins):
        mean, share = float(confidence[part].mean()), wilson(int(outcome[part].sum()), len(part))
        bins.append(ReliabilityBin(confidence=mean, accuracy=share))
        # Mean distance of a normal from its centre: sd * sqrt(2 / pi).
        variance = float((confidence[part] * (1 - confidence[part])).sum())
        by_chance += math.sqrt(max(variance, 0.0) * 2 / math.pi)
    return Reliability(
        bins=tuple(bins),
        accuracy=wilson(int(outcome.sum()), len(outcome)),
        ece=expected_calibration_error(confidences, correct, bins=n_bins),
        ece_by_chance=by_chance / len(confidence),
        brier=brier_score(confidences, correct),
        auroc=auroc(confidences, correct),
        n=len(confidence),
        n_without=len(evaluation.rows) - len(known),
    )


def risks(evaluation: Evaluation) -> tuple[RiskCoveragePoint, ...]:
    """Return the error by share accepted, from the surest answers to all; empty without any confidence."""
    return risk_coverage_curve([row.confidence for row in evaluation.rows], [row.correct for row in evaluation.rows])
