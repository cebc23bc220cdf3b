"""What every threshold of the last drafting stage would have given on calibration rows: the curve a report draws."""

from __future__ import annotations

import numpy as np

from smallfirst.records import Record
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT, CascadeData
from smallfirst.stats.intervals import upper_bound


class ThresholdPoint(Record):
    """What happens if answers at or above one confidence stay small (measured on calibration rows)."""

    threshold: float
    """Confidence asked for, in [0, 1]."""
    n_kept: int
    """Rows answered small."""
    errors_kept: int
    """Of these, wrong."""
    error_bound: float
    """Exact one-sided upper bound on the error of kept answers."""
    routed_accuracy: float
    """Accuracy over all rows when the rest goes to the large model."""
    routed_cost_usd_per_1k: float
    """Cost of 1,000 requests then, drafts included."""


def threshold_curve(answers: CascadeData, chosen: tuple[float, ...], confidence: float) -> tuple[ThresholdPoint, ...]:
    """About 60 thresholds of the last stage, strict to loose, the chosen one among them; the stages before stay there.

    On rows that the large model was not asked, its part is played by the draft.
    """
    falling = np.sort(answers.confidence[-1])[::-1]
    counts = sorted({round(share * answers.n) for share in np.linspace(0, 1, 61)})
    thresholds = {*(float(falling[n - 1]) if n else NEVER_ACCEPT for n in counts), chosen[-1]}
    large_right = np.where(answers.asked, answers.large_right, answers.agrees[-1])
    if answers.labels == "large+gold":
        large_right = answers.asked  # judged by its own answers
    points = []
    for threshold in sorted(thresholds, reverse=True):
        walk = answers.walk((*chosen[:-1], threshold))
        right = walk.select_taken(np.vstack([answers.agrees, large_right]))
        errors = int((walk.kept & ~right).sum())
        points.append(
            ThresholdPoint(
                threshold=threshold,
                n_kept=walk.n_kept,
                errors_kept=errors,
                error_bound=upper_bound(errors, walk.n_kept, confidence=confidence),
                routed_accuracy=int(right.sum()) / max(1, answers.n),
                routed_cost_usd_per_1k=1000 * walk.mean_cost_usd,
            )
        )
    return tuple(points)
