"""What happens below the threshold, decided where paired evidence is: by band of confidence.

A general model is often worse than the fine-tuned one even on its doubtful rows. So what is not kept is cut into up to
four bands of equal count, and each goes to the large model only if that was right more often on its calibration rows.
These decisions rest on what was seen and promise nothing.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from smallfirst.records import Record
from smallfirst.routing.certificate.outcomes import CascadeData
from smallfirst.stats.intervals import Estimate, mcnemar, paired_difference

MAX_BANDS = 4
MIN_PAIRED_ROWS = 10
"""Paired rows below which a band follows the whole region."""

BelowAction = Literal["escalate", "keep", "abstain"]
"""To the large model; answered small without the promise; to a person's queue."""


class Band(Record):
    """One range of confidence that is not kept under the promise."""

    low: float
    """Least confidence in it."""
    high: float
    """Confidence at which the next band, or what is kept, begins."""
    n: int
    """Calibration rows in it that both models answered and gold judges."""
    small_right: int
    """Rows of these on which the last drafting stage is right."""
    large_right: int
    """Rows of these on which the large model is right."""
    difference: Estimate | None
    """Accuracy of large minus small on them; None without such rows."""
    p_value: float
    """Exact two-sided McNemar."""
    then: BelowAction
    """What happens to such requests."""


class BelowThreshold(NamedTuple):
    """What to do with everything that is not kept."""

    then: BelowAction
    """Decision for the region as a whole."""
    why: str
    """The paired evidence for it."""
    difference: Estimate | None
    """Accuracy of large minus small on it."""
    bands: tuple[Band, ...]
    """From the least sure on."""


def decide_below_threshold(
    answers: CascadeData, kept: np.ndarray, *, top: float, floor: float | None, person: bool, sealed: bool = False
) -> BelowThreshold:
    """The decision on rows that are not `kept`, whole and by band; `top` is where the highest band ends.

    With a promise about regret, `floor` is the confidence down to which keeping is shown to be within it: below that,
    what is not given to a person goes to the large model, and so does what lies under a band that does.
    """
    doubtful = ~kept
    both = doubtful & answers.paired
    unhelped: BelowAction = "abstain" if person else "keep"
    then, why = _whole(answers, doubtful, both, unhelped)
    bands = _bands(answers, doubtful, top, (then, unhelped))
    if sealed:  # the promise about cost, latency or escalation leaves nothing to be sent on
        bands = tuple(b.model_copy(update={"then": unhelped}) if b.then == "escalate" else b for b in bands)
    elif floor is not None:
        then, why, bands = _within(floor, then, why, bands)
    return BelowThreshold(then, why, _difference(answers, both), bands)


def _whole(
    answers: CascadeData, doubtful: np.ndarray, both: np.ndarray, unhelped: BelowAction
) -> tuple[BelowAction, str]:
    if not answers.large_known:
        return "escalate", "the large model was not measured, so it is trusted"
    if not doubtful.any():
        return "escalate", "no calibration row falls below the threshold"
    if not (doubtful & answers.asked).any():
        return "escalate", "the large model was not measured on rows below the threshold, so it is trusted"
    if not both.any():
        return "escalate", "below the threshold nobody but the large model has said what is right, so it is trusted"
    ours, theirs = answers.right[-1][both], answers.large_right[both]
    evidence = (
        f"on {both.sum()} calibration rows below the threshold large is right on {theirs.sum()}, small on {ours.sum()} "
        f"(difference {_difference(answers, both)}, McNemar p = {_p_value(ours, theirs):.3f})"
    )
    if theirs.sum() > ours.sum():
        return "escalate", evidence
    if both.sum() < MIN_PAIRED_ROWS:
        return unhelped, f"{evidence}: too few to show that sending them on helps; ask the large model more of them"
    instead = ", so they go to a person's queue" if unhelped == "abstain" else ""
    return unhelped, f"{evidence}: sending them on would cost more and help nobody{instead}"


def _bands(
    answers: CascadeData, doubtful: np.ndarray, top: float, choice: tuple[BelowAction, BelowAction]
) -> tuple[Band, ...]:
    """Up to four, of equal count but for ties; `choice`: the region's decision, and where large is no better."""
    said = answers.confidence[-1][doubtful]
    if not said.size or not answers.large_known:
        return ()
    inner = np.sort(said)[[said.size * part // MAX_BANDS for part in range(1, MAX_BANDS)]]
    lows = [0.0, *(low for low in np.unique(inner).tolist() if low > said.min())]
    edges = [*lows, max(top, float(said.max()))]
    bands = []
    for low, high, last in zip(edges, edges[1:], [*[False] * (len(lows) - 1), True], strict=False):
        place = answers.confidence[-1]
        rows = doubtful & answers.paired & (place >= low) & ((place < high) | last)
        ours, theirs = answers.right[-1][rows], answers.large_right[rows]
        whole, unhelped = choice
        own: BelowAction = "escalate" if theirs.sum() > ours.sum() else unhelped
        bands.append(
            Band(
                low=low,
                high=high,
                n=int(rows.sum()),
                small_right=int(ours.sum()),
                large_right=int(theirs.sum()),
                difference=_difference(answers, rows),
                p_value=_p_value(ours, theirs),
                then=own if rows.sum() >= MIN_PAIRED_ROWS else whole,
            )
        )
    return tuple(bands)


def _within(
    floor: float, then: BelowAction, why: str, bands: tuple[Band, ...]
) -> tuple[BelowAction, str, tuple[Band, ...]]:
    """The same, keeping only what the promise about regret covers: from the threshold down to `floor`, no gaps."""
    said = "; kept only where the promise about the large model's accuracy covers it"
    allowed, held = True, []
    for band in reversed(bands):
        allowed = allowed and band.then == "keep" and band.low >= floor
        held.append(band if allowed or band.then != "keep" else band.model_copy(update={"then": "escalate"}))
    if then == "keep" and floor > 0:
        return "escalate", why + said, tuple(reversed(held))
    return then, why, tuple(reversed(held))


def _difference(answers: CascadeData, rows: np.ndarray) -> Estimate | None:
    if not rows.any():
        return None
    return paired_difference(answers.large_right[rows].tolist(), answers.right[-1][rows].tolist())


def _p_value(ours: np.ndarray, theirs: np.ndarray) -> float:
    return mcnemar(int((theirs & ~ours).sum()), int((ours & ~theirs).sum()))
