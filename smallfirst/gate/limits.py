"""Checks of latency and cost: plain numbers without an interval; an empty evaluation passes none of them."""

from __future__ import annotations

from collections.abc import Iterator

from smallfirst.evaluation.results import Evaluation
from smallfirst.gate.check_result import (
    CheckInputs,
    CheckResult,
    Positive,
    Requirement,
    Share,
    check_value,
    not_measured,
)
from smallfirst.records import Record

ADVICE = "a smaller model or a shorter prompt would help"


class LimitThresholds(Record):
    """Thresholds for latency and cost."""

    p50_ms_at_most: Positive | None = None
    """Median latency of one request at a time, in ms."""
    p95_ms_at_most: Positive | None = None
    """95th percentile latency of one request at a time, in ms."""
    cost_usd_per_1k_at_most: Positive | None = None
    """Cost of 1,000 answers in USD."""
    cheaper_than_large_by: Share | None = None
    """Share of the large model's cost that must be saved: 0.5 means at most half its cost per 1,000 answers."""


def check_limits(gate: LimitThresholds, inputs: CheckInputs) -> Iterator[CheckResult]:
    """Yield a result for each declared threshold."""
    candidate = inputs.candidate
    maxima = (
        ("p50_ms_at_most", candidate.p50_ms, "p50 latency at most {:g} ms", "{:.1f} ms"),
        ("p95_ms_at_most", candidate.p95_ms, "p95 latency at most {:g} ms", "{:.1f} ms"),
        ("cost_usd_per_1k_at_most", candidate.cost_usd_per_1k, "cost at most ${:g} per 1,000", "${:.4f} per 1,000"),
    )
    n = len(candidate.probes_ms) or len(candidate.rows)
    for name, value, text, measured in maxima:
        maximum = getattr(gate, name)
        if maximum is not None:
            requirement = Requirement(name, maximum, text.format(maximum))
            passed = n > 0 and value <= maximum
            yield check_value(
                requirement, passed=passed, measured=f"{measured.format(value)} n={n}", advice="" if passed else ADVICE
            )
    if gate.cheaper_than_large_by is not None:
        yield check_saving(gate.cheaper_than_large_by, candidate, inputs.large)


def check_saving(share: float, candidate: Evaluation, large: Evaluation | None) -> CheckResult:
    """Check that 1,000 answers cost at least `share` less than the large model's."""
    requirement = Requirement("cheaper_than_large_by", share, f"at least {share:.3f} cheaper than the large model")
    if large is None:
        return not_measured(
            requirement,
            "the large model was not measured",
            "measure the large model on the same rows, or on a sample of them",
        )
    ours, theirs, n = candidate.cost_usd_per_1k, large.cost_usd_per_1k, min(len(candidate.rows), len(large.rows))
    if theirs <= 0:
        return not_measured(
            requirement,
            f"the large model costs ${theirs:.4f} per 1,000 n={n}",
            "nothing is cheaper: give the large model its price, or remove the threshold from the gate",
        )
    # 0.01 is 90 % below 0.10, but 1 - 0.9 is slightly less than 0.1 in floating point.
    passed = n > 0 and ours <= (1 - share) * theirs * (1 + 1e-12)
    return check_value(
        requirement,
        passed=passed,
        measured=f"{1 - ours / theirs:.3f} cheaper: ${ours:.4f} against ${theirs:.4f} per 1,000 n={n}",
        advice="" if passed else ADVICE,
    )
