"""Checks of latency and cost by the upper ends of their intervals; and of a plan as a whole, by a Router's answers.

An empty evaluation passes none of them.
"""

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
    check_share,
    not_measured,
)
from smallfirst.gate.metrics import MEASURE_LARGE, check_accuracy, check_not_worse
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
    for name in ("p50_ms_at_most", "p95_ms_at_most"):
        if (maximum := getattr(gate, name)) is not None:
            yield check_latency(name, maximum, inputs)
    if (maximum := gate.cost_usd_per_1k_at_most) is not None:
        text = f"cost at most ${maximum:g} per 1,000"
        requirement = Requirement("cost_usd_per_1k_at_most", maximum, text, at_most=True)
        cost = mean_interval([1000 * row.cost_usd for row in candidate.rows], confidence=level.confidence)
        measured = f"${cost.value:.4f} [{cost.low:.4f}, {cost.high:.4f}] per 1,000 n={cost.n}{level.note}"
        yield check_interval(requirement, cost, measured, level, instead=ADVICE)
    if gate.cheaper_than_large_by is not None:
        yield check_saving(gate.cheaper_than_large_by, candidate, inputs.large, level)


def check_latency(name: str, maximum: float, inputs: CheckInputs) -> CheckResult:
    """Check the upper end of a percentile of the latency of requests asked alone, if there are any."""
    requirement = Requirement(name, maximum, f"{name[:3]} latency at most {maximum:g} ms", at_most=True)
    candidate, level, q = inputs.candidate, inputs.level, int(name[1:3]) / 100
    latencies = candidate.probes_ms or tuple(row.latency_ms for row in candidate.rows)
    found = quantile_interval(latencies, q, confidence=level.confidence)
    measured = f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}] ms n={found.n}{level.note}"
    if found.n and found.value <= requirement.threshold and math.isinf(found.high):
        fewest = math.ceil(math.log((1 - level.confidence) / 2) / math.log(q))
        return not_measured(requirement, measured, f"{found.n} requests show no upper end; ask at least {fewest}")
    return check_interval(requirement, found, measured, level, instead=ADVICE)


def check_saving(share: float, candidate: Evaluation, large: Evaluation | None, level: ConfidenceLevel) -> CheckResult:
    """Check that an answer costs at least `share` less than the large model's to the same row.

    Interval: of the ratio of two means, linearized (Cochran 1977).
    """
    requirement = Requirement("cheaper_than_large_by", share, f"at least {share:.3f} cheaper than the large model")
    if large is None:
        return not_measured(requirement, "the large model was not measured", MEASURE_LARGE)
    pairs = _costs(candidate, large)
    ours, theirs = pairs.mean(axis=1) if pairs.size else (0.0, 0.0)
    found = saving(candidate, large, confidence=level.confidence)
    if found is None:
        advice = "nothing is cheaper: give the large model its price, or remove the threshold from the gate"
        return not_measured(requirement, f"the large model costs ${theirs:.4f} per 1,000 n={pairs.shape[1]}", advice)
    measured = f"{level.format(found)} cheaper: ${ours:.4f} against ${theirs:.4f} per 1,000"
    return check_interval(requirement, found, measured, level, instead=ADVICE)


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


class RoutedThresholds(Record):
    """Thresholds for a plan that keeps a part of the requests small. Its certificate is always needed."""

    accuracy_at_least: Share | None = None
    """Accuracy over all requests, whoever answers (lower end of the interval), in [0, 1]."""
    not_worse_than_large_by: Share | None = None
    """Accuracy over all requests may be at most this much below the large model's (lower end of the paired
    difference)."""
    share_small_at_least: Share | None = None
    """Share of requests that stay small (lower end of the interval), in [0, 1]."""
    cost_at_most: Positive | None = 1.0
    """Cost of the plan, drafts included, over the large model's on the same rows (upper end): 0.5 is half its bill. Not
    checked where there is no large model, or it has no price."""
    p95_ms_at_most: Positive | None = None
    """95th percentile latency of one request at a time, in ms (upper end; takes 72 requests or more)."""


def check_routed(
    bars: RoutedThresholds, routed: Evaluation, large: Evaluation | None, level: ConfidenceLevel
) -> Iterator[CheckResult]:
    """Yield a result for each threshold. `routed` are the Router's answers, `large` the large model's, on test rows.

    Names are those of task.yaml below `gate.routed`.
    """
    if bars.accuracy_at_least is not None:
        yield check_accuracy(bars.accuracy_at_least, routed, level)
    if bars.not_worse_than_large_by is not None:
        yield check_not_worse(bars.not_worse_than_large_by, routed, large, level)
    if bars.share_small_at_least is not None:
        minimum, small = bars.share_small_at_least, stays_small(routed)
        text = f"share of requests that stay small at least {minimum:.3f}"
        yield check_share(Requirement("share_small_at_least", minimum, text), sum(small), len(small), level)
    if bars.cost_at_most is not None and large is not None and large.cost_usd_per_1k > 0:
        text = f"at most {100 * bars.cost_at_most:g} % of the large model's cost"
        saved = check_saving(1 - bars.cost_at_most, routed, large, level)
        yield saved.model_copy(update={"name": "cost_at_most", "threshold": bars.cost_at_most, "requirement": text})
    if bars.p95_ms_at_most is not None:
        yield check_latency("p95_ms_at_most", bars.p95_ms_at_most, CheckInputs(routed, level))


def stays_small(routed: Evaluation) -> list[bool]:
    """Return by row whether a small model's answer was given: not the large model's, a person's or a refusal."""
    return [row.stage not in ("large", "general", "person", "out_of_scope") for row in routed.rows]
