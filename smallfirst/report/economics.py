"""Costs of the paths: per 1,000 requests, when training is paid back, and the price drop that ends a saving."""

from __future__ import annotations

import math
from collections.abc import Sequence

from smallfirst.evaluation.results import Evaluation
from smallfirst.project.candidate_registry import FINE_TUNED
from smallfirst.records import Record

HOURS_PER_MONTH = 730.0


class PathCost(Record):
    """Cost of answering by one path."""

    candidate: str
    cost_usd_per_1k: float
    large_part_usd_per_1k: float
    """How much of it is spent on the large model; moves with the large model's price."""
    training_usd: float
    """Paid once before the first request."""

    def monthly_usd(self, requests: int) -> float:
        return self.cost_usd_per_1k * requests / 1000


def break_even_requests(training_usd: float, path_usd_per_1k: float, large_usd_per_1k: float) -> int | None:
    """Return after how many requests the saving has paid training back; None if the path is not cheaper."""
    saving = large_usd_per_1k - path_usd_per_1k
    if saving <= 0:
        return None
    # The rounding keeps a quotient like 1000.0000000000001 from becoming 1001.
    return math.ceil(round(training_usd / saving * 1000, 6))


def break_even(path: PathCost, large: PathCost) -> int | None:
    """Return after how many requests `path` has cost less than the large path; None if it never does."""
    ahead_usd = max(0.0, path.training_usd - large.training_usd)
    return break_even_requests(ahead_usd, path.cost_usd_per_1k, large.cost_usd_per_1k)


def large_part_usd_per_1k(routed: Evaluation, large: Evaluation) -> float:
    """Return USD of the routed cost per 1,000 requests spent on the large model; its mean where a row is missing."""
    spent = 0.0
    for row in routed.rows:
        if row.stage == "large":
            same = large.by_key.get(row.key)
            alone = same.cost_usd if same else large.cost_usd_per_1k / 1000
            spent += min(alone, row.cost_usd)
    return spent / max(1, len(routed.rows)) * 1000


def path_costs(
    evaluations: Sequence[Evaluation], *, training_usd: float, drafts: str = FINE_TUNED
) -> tuple[PathCost, ...]:
    """Return each path's cost, in the order given.

    Only the fine-tune, and `routed` if it `drafts`, cost training.
    """
    large = next((e for e in evaluations if e.candidate == "large"), None)
    trained = {FINE_TUNED, "routed"} if drafts == FINE_TUNED else {FINE_TUNED}

    def large_part(evaluation: Evaluation) -> float:
        if evaluation.candidate == "large":
            return evaluation.cost_usd_per_1k
        return large_part_usd_per_1k(evaluation, large) if evaluation.candidate == "routed" and large else 0.0

    return tuple(
        PathCost(
            candidate=evaluation.candidate,
            cost_usd_per_1k=evaluation.cost_usd_per_1k,
            large_part_usd_per_1k=large_part(evaluation),
            training_usd=training_usd * (evaluation.candidate in trained),
        )
        for evaluation in evaluations
    )


def max_price_drop(path: PathCost, large: PathCost) -> float | None:
    """Return the fall of the large model's price, in [0, 1], that ends the saving; None without a saving."""
    if path.cost_usd_per_1k >= large.cost_usd_per_1k:
        return None
    own = path.cost_usd_per_1k - path.large_part_usd_per_1k
    shared = large.cost_usd_per_1k - path.large_part_usd_per_1k
    return 1.0 - own / shared
