"""What other thresholds would have given on calibration rows: the curve of the report."""

from __future__ import annotations

import numpy as np

from smallfirst.records import Record
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT, CascadeData
from smallfirst.stats.intervals import upper_bound


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
