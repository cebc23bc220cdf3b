"""Checks of latency and cost by the upper ends of their intervals; an empty evaluation passes none of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import (
    CheckInputs,
    CheckResult,
    ConfidenceLevel,
    Positive,
    Requirement,
    Share,
    check_interval,
    not_measured,
)
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, mean_interval, quantile_interval

ADVICE = "a smaller model or a shorter prompt would help"

LIMITED_PROBE_ROWS = 300
"""Requests sent alone where a latency is limited: the upper end of a p95 takes 72 to 140 of them."""


class LimitThresholds(Record):
    """Thresholds for latency and cost."""

    p50_ms_at_most: Positive | None = None
    """Median latency of one request at a time, in ms (upper end of its interval)."""
    p95_ms_at_most: Positive | None = None
    """95th percentile latency of one request at a time, in ms (upper end; takes 72 requests or more)."""
    cost_usd_per_1k_at_most: Positive | None = None
    """Cost of 1,000 answers in USD (upper end)."""
    cheaper_than_large_by: Share | None = None
    """Share of the large model's cost that must be saved: 0.5 means at most half its cost per 1,000 answers."""


def check_limits(gate: LimitThresholds, inputs: CheckInputs) -> Iterator[CheckResult]:
    """Yield a result for each declared threshold."""
    candidate, level = inputs.candidate, inputs.level
    for name, q in (("p50_ms_at_most", 0.5), ("p95_ms_at_most", 0.95)):
        if (maximum := getattr(gate, name)) is not None:
            text = f"{name[:3]} latency at most {maximum:g} ms"
            yield check_latency(Requirement(name, maximum, text, at_most=True), q, inputs)
    if (maximum := gate.cost_usd_per_1k_at_most) is not None:
        text = f"cost at most ${maximum:g} per 1,000"
        requirement = Requirement("cost_usd_per_1k_at_most", maximum, text, at_most=True)
        cost = mean_interval([1000 * row.cost_usd for row in candidate.rows], confidence=level.confidence)
        measured = f"${cost.value:.4f} [{cost.low:.4f}, {cost.high:.4f}] per 1,000 n={cost.n}{level.note}"
        yield _adapted(check_interval(requirement, cost, measured, level))
    if gate.cheaper_than_large_by is not None:
        yield check_saving(gate.cheaper_than_large_by, candidate, inputs.large, level)


def check_latency(requirement: Requirement, q: float, inputs: CheckInputs) -> CheckResult:
    """Check the upper end of the q-quantile of the latency of requests asked alone, if there are any."""
    candidate, level = inputs.candidate, inputs.level
    latencies = candidate.probes_ms or tuple(row.latency_ms for row in candidate.rows)
    found = quantile_interval(latencies, q, confidence=level.confidence)
    measured = f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}] ms n={found.n}{level.note}"
    if found.n and found.value <= requirement.threshold and math.isinf(found.high):
        fewest = math.ceil(math.log((1 - level.confidence) / 2) / math.log(q))
        return not_measured(requirement, measured, f"{found.n} requests show no upper end; ask at least {fewest}")
    return _adapted(check_interval(requirement, found, measured, level))


def check_saving(share: float, candidate: Evaluation, large: Evaluation | None, level: ConfidenceLevel) -> CheckResult:
    """Check that an answer costs at least `share` less than the large model's to the same row.

    Interval: of the ratio of two means, linearized (Cochran 1977).
    """
    requirement = Requirement("cheaper_than_large_by", share, f"at least {share:.3f} cheaper than the large model")
    if large is None:
        return not_measured(
            requirement,
            "the large model was not measured",
            "measure the large model on the same rows, or on a sample of them",
        )
    pairs = _costs(candidate, large)
    ours, theirs = pairs.mean(axis=1) if pairs.size else (0.0, 0.0)
    found = saving(candidate, large, confidence=level.confidence)
    if found is None:
        return not_measured(
            requirement,
            f"the large model costs ${theirs:.4f} per 1,000 n={pairs.shape[1]}",
            "nothing is cheaper: give the large model its price, or remove the threshold from the gate",
        )
    measured = f"{level.format(found)} cheaper: ${ours:.4f} against ${theirs:.4f} per 1,000"
    return _adapted(check_interval(requirement, found, measured, level))


def saving(candidate: Evaluation, large: Evaluation, *, confidence: float = 0.95) -> Estimate | None:
    """Return the share of the large model's bill that is saved on the same rows; None without rows or a price."""
    ours, theirs = _costs(candidate, large)
    if not ours.size or theirs.mean() <= 0:
        return None
    saved = 1 - ours.mean() / theirs.mean()
    # 0.01 is 90 % below 0.10, but 1 - 0.9 is slightly less than 0.1 in floating point.
    by_row = np.round(saved - (ours - (1 - saved) * theirs) / theirs.mean(), 12)
    return mean_interval(by_row, confidence=confidence)


def _costs(candidate: Evaluation, large: Evaluation) -> np.ndarray:
    """Return the cost of 1,000 answers in USD by row of both, of shape (2, rows)."""
    pairs = [(row.cost_usd, large.by_key[row.key].cost_usd) for row in candidate.rows if row.key in large.by_key]
    return 1000 * np.array(pairs, dtype=float).reshape(-1, 2).T


def _adapted(result: CheckResult) -> CheckResult:
    """Return the result with the advice for latency and cost, and without an interval that JSON cannot hold."""
    estimate = result.estimate
    missed = not result.passed and result.more_rows is None
    finite = isinstance(estimate, Estimate) and math.isfinite(estimate.low) and math.isfinite(estimate.high)
    return result.model_copy(
        update={"advice": ADVICE if missed else result.advice, "estimate": estimate if finite else None}
    )
