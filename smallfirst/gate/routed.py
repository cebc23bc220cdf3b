"""Checks of a plan as a whole: small first, the rest to the large model, as the Router answered test rows."""

from __future__ import annotations

from collections.abc import Iterator

from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import (
    CheckInputs,
    CheckResult,
    ConfidenceLevel,
    Positive,
    Requirement,
    Share,
    check_interval,
)
from smallfirst.gate.limits import LimitThresholds, check_limits, check_saving
from smallfirst.gate.metrics import check_accuracy
from smallfirst.gate.paired import check_not_worse
from smallfirst.records import Record
from smallfirst.stats.intervals import wilson
from smallfirst.stats.sample_size import chance_of_share


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
        yield _check_share(bars.share_small_at_least, routed, level)
    if bars.cost_at_most is not None and large is not None and large.cost_usd_per_1k > 0:
        yield _check_cost(bars.cost_at_most, routed, large, level)
    if bars.p95_ms_at_most is not None:
        yield from check_limits(LimitThresholds(p95_ms_at_most=bars.p95_ms_at_most), CheckInputs(routed, level))


def stays_small(routed: Evaluation) -> list[bool]:
    """Return by row whether a small model's answer was given: not the large model's, a person's or a refusal."""
    return [row.stage not in ("large", "general", "person", "out_of_scope") for row in routed.rows]


def _check_share(minimum: float, routed: Evaluation, level: ConfidenceLevel) -> CheckResult:
    small = stays_small(routed)
    found = wilson(sum(small), len(small), confidence=level.confidence)
    return check_interval(
        Requirement("share_small_at_least", minimum, f"share of requests that stay small at least {minimum:.3f}"),
        found,
        level.format(found),
        level,
        lambda n_more: chance_of_share(sum(small), len(small), n_more, minimum, confidence=level.confidence),
    )


def _check_cost(maximum: float, routed: Evaluation, large: Evaluation, level: ConfidenceLevel) -> CheckResult:
    text = f"at most {100 * maximum:g} % of the large model's cost"
    saved = check_saving(1 - maximum, routed, large, level)
    return saved.model_copy(update={"name": "cost_at_most", "threshold": maximum, "requirement": text})
