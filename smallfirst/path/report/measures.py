"""Figures of evaluations, each with its interval: candidates side by side, and how far confidence can be trusted."""

from __future__ import annotations

import math

import numpy as np

from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, holm, wilson
from smallfirst.measuring.calibration import brier_score, equal_count_bins, expected_calibration_error
from smallfirst.measuring.evaluate import Comparison, Evaluation, compare
from smallfirst.measuring.risk_coverage import auroc
from smallfirst.path.report.data import ReportData


class PairedCandidate(Record):
    """A candidate beside the reference on the same rows."""

    comparison: Comparison
    p_holm: float
    """Its p-value corrected by Holm for all pairs."""


def paired_candidates(data: ReportData) -> tuple[str, dict[str, PairedCandidate]]:
    """Return the reference (the large model, else the first candidate), and the others' pairs with it by name."""
    reference = (data.evaluation("large") or data.evaluations[0]).candidate
    found = {e.candidate: c for e in data.evaluations if (c := difference(data, e.candidate, reference))}
    corrected = holm([one.p_value for one in found.values()])
    pairs = zip(found.items(), corrected, strict=True)
    return reference, {name: PairedCandidate(comparison=one, p_holm=p) for (name, one), p in pairs}


def difference(data: ReportData, first: str | None, second: str) -> Comparison | None:
    """Compare two candidates on the rows both have; None if one was not measured or they share no row."""
    a, b = data.evaluation(first), data.evaluation(second)
    if a is None or b is None or a is b:
        return None
    comparison = compare(a, b)
    return comparison if comparison.difference.n else None


class ReliabilityBin(Record):
    """Rows of about equal confidence."""

    confidence: float
    accuracy: Estimate


class Reliability(Record):
    """How well confidence is calibrated."""

    bins: tuple[ReliabilityBin, ...]
    """Equal-count bins, least confident first."""
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
    """Rows without a confidence, which are left out."""


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
        ece=expected_calibration_error(confidences, correct, bins=n_bins),
        ece_by_chance=by_chance / len(confidence),
        brier=brier_score(confidences, correct),
        auroc=auroc(confidences, correct),
        n=len(confidence),
        n_without=len(evaluation.rows) - len(known),
    )
