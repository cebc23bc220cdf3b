"""The decision below the threshold, by band of confidence, from rows that both models answered, without guarantee."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from smallfirst.records import Record
from smallfirst.routing.certificate.outcomes import CascadeData
from smallfirst.stats.intervals import Estimate, mcnemar, paired_difference

MAX_BANDS = 4
MIN_PAIRED_ROWS = 10
"""Paired rows below which a band follows the decision on all rows."""

BelowAction = Literal["escalate", "keep", "abstain"]
"""To the large model; answered small without a guarantee; to a person's queue."""


class Band(Record):
    """One range of confidence that the guarantee does not cover."""

    low: float
    """Least confidence in it."""
    high: float
    """Confidence at which the next band, or the accepted range, begins."""
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
    action: BelowAction
    """What happens to such requests."""


class BelowThreshold(NamedTuple):
    """What to do with everything that is not accepted."""

    action: BelowAction
    why: str
    difference: Estimate | None
    bands: tuple[Band, ...]


def decide_below_threshold(
    data: CascadeData,
    accepted: np.ndarray,
    *,
    top: float,
    floor: float | None,
    person: bool,
    never_escalates: bool = False,
) -> BelowThreshold:
    """Decide on the rows that are not `accepted`, as a whole and by band; `top` is where the highest band ends.

    `floor`: confidence down to which keeping is shown to be within the limit on the accuracy loss, if there is one.
    """
    rest = ~accepted
    both = rest & data.paired
    otherwise: BelowAction = "abstain" if person else "keep"
    action, why = _decide_whole(data, rest, both, otherwise)
    bands = _decide_bands(data, rest, top, (action, otherwise))
    if never_escalates:  # the limit on cost, latency or escalation leaves nothing to send on
        bands = tuple(b.model_copy(update={"action": otherwise}) if b.action == "escalate" else b for b in bands)
    elif floor is not None:
        action, why, bands = _limit_to_floor(floor, action, why, bands)
    return BelowThreshold(action, why, _difference(data, both), bands)


def _decide_whole(
    data: CascadeData, rest: np.ndarray, both: np.ndarray, otherwise: BelowAction
) -> tuple[BelowAction, str]:
    if not data.large_known:
        return "escalate", "the large model was not measured, so it is trusted"
    if not rest.any():
        return "escalate", "no calibration row falls below the threshold"
    if not (rest & data.asked).any():
        return "escalate", "the large model was not measured on rows below the threshold, so it is trusted"
    if not both.any():
        return "escalate", "below the threshold only the large model says what is right, so it is trusted"
    small, large = data.right[-1][both], data.large_right[both]
    evidence = (
        f"on {both.sum()} calibration rows below the threshold large is right on {large.sum()}, small on {small.sum()} "
        f"(difference {_difference(data, both)}, McNemar p = {_p_value(small, large):.3f})"
    )
    if large.sum() > small.sum():
        return "escalate", evidence
    if both.sum() < MIN_PAIRED_ROWS:
        return otherwise, f"{evidence}: too few to show that sending them on helps; ask the large model more of them"
    instead = ", so they go to a person's queue" if otherwise == "abstain" else ""
    return otherwise, f"{evidence}: sending them on would cost more and help nobody{instead}"


def _decide_bands(
    data: CascadeData, rest: np.ndarray, top: float, choice: tuple[BelowAction, BelowAction]
) -> tuple[Band, ...]:
    confidence = data.confidence[-1]
    found = confidence[rest]
    if not found.size or not data.large_known:
        return ()
    inner = np.sort(found)[[found.size * part // MAX_BANDS for part in range(1, MAX_BANDS)]]
    lows = [0.0, *(low for low in np.unique(inner).tolist() if low > found.min())]
    edges = [*lows, max(top, float(found.max()))]
    bands = []
    for low, high, last in zip(edges, edges[1:], [*[False] * (len(lows) - 1), True], strict=False):
        rows = rest & data.paired & (confidence >= low) & ((confidence < high) | last)
        small, large = data.right[-1][rows], data.large_right[rows]
        whole, otherwise = choice
        own: BelowAction = "escalate" if large.sum() > small.sum() else otherwise
        bands.append(
            Band(
                low=low,
                high=high,
                n=int(rows.sum()),
                small_right=int(small.sum()),
                large_right=int(large.sum()),
                difference=_difference(data, rows),
                p_value=_p_value(small, large),
                action=own if rows.sum() >= MIN_PAIRED_ROWS else whole,
            )
        )
    return tuple(bands)


def _limit_to_floor(
    floor: float, action: BelowAction, why: str, bands: tuple[Band, ...]
) -> tuple[BelowAction, str, tuple[Band, ...]]:
    """Keep only what the limit on the accuracy loss covers: from the threshold down to `floor`, without gaps."""
    allowed, limited = True, []
    for band in reversed(bands):
        allowed = allowed and band.action == "keep" and band.low >= floor
        limited.append(band if allowed or band.action != "keep" else band.model_copy(update={"action": "escalate"}))
    if action == "keep" and floor > 0:
        why += "; kept only where the limit on the accuracy loss covers it"
        return "escalate", why, tuple(reversed(limited))
    return action, why, tuple(reversed(limited))


def _difference(data: CascadeData, rows: np.ndarray) -> Estimate | None:
    if not rows.any():
        return None
    return paired_difference(data.large_right[rows].tolist(), data.right[-1][rows].tolist())


def _p_value(small: np.ndarray, large: np.ndarray) -> float:
    return mcnemar(int((large & ~small).sum()), int((small & ~large).sum()))
