"""What other thresholds and other limits on errors would have given on calibration rows: the curves of the report."""

from __future__ import annotations

import dataclasses

import numpy as np

from smallfirst.records import Record
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT, CascadeData
from smallfirst.routing.certificate.threshold_search import search_cascade
from smallfirst.stats.intervals import Estimate, upper_bound, wilson

MAX_ERRORS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.10, 0.15, 0.20)
"""Limits on the share of wrong answers among those that stay small."""
STEPS = 50
"""Thresholds on a path where several stages draft."""


class ThresholdPoint(Record):
    """What happens on calibration rows if answers at or above one confidence stay small."""

    threshold: float
    """Least confidence that is accepted, in [0, 1]."""
    n_accepted: int
    """Rows answered small."""
    n_errors: int
    """Wrong among them."""
    error_bound: float
    """Exact one-sided upper bound on the error of accepted answers."""
    routed_accuracy: float
    """Accuracy over all rows when the rest goes to the large model."""
    routed_cost_usd_per_1k: float
    """Cost of 1,000 requests then, drafts included."""


def threshold_curve(data: CascadeData, chosen: tuple[float, ...], confidence: float) -> tuple[ThresholdPoint, ...]:
    """Return about 60 thresholds of the last stage, strict to loose; where large was not asked, the draft stands in."""
    descending = np.sort(data.confidence[-1])[::-1]
    counts = sorted({round(share * data.n) for share in np.linspace(0, 1, 61)})
    thresholds = {*(float(descending[n - 1]) if n else NEVER_ACCEPT for n in counts), chosen[-1]}
    large_right = np.where(data.asked, data.large_right, data.right[-1])
    points = []
    for threshold in sorted(thresholds, reverse=True):
        outcome = data.outcome((*chosen[:-1], threshold))
        right = outcome.select(np.vstack([data.right, large_right]))
        errors = int((outcome.accepted & ~right).sum())
        points.append(
            ThresholdPoint(
                threshold=threshold,
                n_accepted=outcome.n_accepted,
                n_errors=errors,
                error_bound=upper_bound(errors, outcome.n_accepted, confidence=confidence),
                routed_accuracy=int(right.sum()) / max(1, data.n),
                routed_cost_usd_per_1k=1000 * outcome.mean_cost_usd,
            )
        )
    return tuple(points)


class FrontierPoint(Record):
    """What can stay small under one limit on errors."""

    max_error: float
    """Largest share of accepted answers that may be wrong, in (0, 1)."""
    issued: bool
    """True if these rows show the limit at some threshold."""
    threshold: float
    """Least confidence of the last drafting stage at which it is shown; above 1 where it is not."""
    n_accepted: int
    """Calibration rows that stay small."""
    share: Estimate
    """Share of calibration rows that stay small."""


def frontier(
    data: CascadeData, *, confidence: float = 0.95, selection: CascadeData | None = None
) -> tuple[FrontierPoint, ...]:
    """Return a point for each of MAX_ERRORS, ascending; `selection` chooses where a search begins.

    Each limit is shown at `confidence` by itself, as if it alone had been asked for at the first look: the points say
    what could be promised, and only the certificate's own guarantee may be relied on. What is shown for a stricter
    limit holds for a looser one, so the share never falls. Where nothing is promised about foreign
    requests they are left out here, while the certificate prefers a threshold that accepts few, and may keep less.
    """
    if data.foreign is not None and not data.foreign_share:
        data = dataclasses.replace(data, foreign=None)
    points: list[FrontierPoint] = []
    for limit in MAX_ERRORS:
        guarantee = Guarantee(max_error=limit, confidence=confidence)
        found = search_cascade(data, guarantee, selection=selection, steps=STEPS)
        n_accepted = data.outcome(found.thresholds).n_accepted
        point = FrontierPoint(
            max_error=limit,
            issued=found.issued,
            threshold=found.thresholds[-1],
            n_accepted=n_accepted,
            share=wilson(n_accepted, data.n),
        )
        if points and points[-1].n_accepted > n_accepted:
            point = points[-1].model_copy(update={"max_error": limit})
        points.append(point)
    return tuple(points)
