"""Costs of the paths: per 1,000 requests, per month, and when training is paid back."""

from __future__ import annotations

import math
from collections.abc import Sequence

from smallfirst.base.records import Record
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.path.project.candidate_registry import FINE_TUNED

HOURS_PER_MONTH = 730.0


class PathCost(Record):
    """Cost of answering by one path."""

    candidate: str
    cost_usd_per_1k: float
    large_part_usd_per_1k: float
    """How much of it is spent on the large model."""
    training_usd: float
    """Paid once before the first request."""

    def monthly_usd(self, requests: int) -> float:
        return self.cost_usd_per_1k * requests / 1000


def path_costs(
    evaluations: Sequence[Evaluation], *, training_usd: float, drafts: str = FINE_TUNED
) -> tuple[PathCost, ...]:
    """Return each path's cost, in the order given.

    Only the fine-tune, and `routed` if it `drafts`, cost training.
    """
    large = next((e for e in evaluations if e.candidate == "large"), None)
    trained = {FINE_TUNED, "routed"} if drafts == FINE_TUNED else {FINE_TUNED}
    return tuple(
        PathCost(
            candidate=one.candidate,
            cost_usd_per_1k=one.cost_usd_per_1k,
            large_part_usd_per_1k=large_part_usd_per_1k(one, large) if large else 0.0,
            training_usd=training_usd * (one.candidate in trained),
        )
        for one in evaluations
    )


def large_part_usd_per_1k(path: Evaluation, large: Evaluation) -> float:
    """Return USD of a path's cost per 1,000 requests spent on the large model; its mean where a row is missing."""
    if path is large:
        return path.cost_usd_per_1k
    spent = 0.0
    for row in path.rows:
        if row.stage == "large":
            same = large.by_key.get(row.key)
            spent += min(same.cost_usd if same else large.cost_usd_per_1k / 1000, row.cost_usd)
    return spent / max(1, len(path.rows)) * 1000


def break_even(path: PathCost, large: PathCost) -> int | None:
    """Return after how many requests `path` has cost less than the large path; None if it never does."""
    ahead_usd = max(0.0, path.training_usd - large.training_usd)
    return break_even_requests(ahead_usd, path.cost_usd_per_1k, large.cost_usd_per_1k)


def break_even_requests(training_usd: float, path_usd_per_1k: float, large_usd_per_1k: float) -> int | None:
    """Return after how many requests the saving has paid training back; None if the path is not cheaper."""
    saving = large_usd_per_1k - path_usd_per_1k
    if saving <= 0:
        return None
    # The rounding keeps a quotient like 1000.0000000000001 from becoming 1001.
    return math.ceil(round(training_usd / saving * 1000, 6))
