"""The decision below the threshold, by band of confidence, from rows that both models answered, without guarantee.

Where the last stage passed its gate by itself, a request stays small unless the large model is shown to be better at
such requests: the null hypothesis is that it is not. Regions are tested that begin at the least confidence and end at
the next band, the smallest first, until one is not shown, at half of the level; and all that is below the threshold at
the other half. So the chance to send anything on without a gain is at most 5 %, as large as for one test, and neither
a gain in the least confident rows alone nor a small one everywhere is missed. The largest region that is shown is sent
on, but for bands in which the large model does not lead. Where a wrong answer has a price, the gain must be worth the
large model's answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

from smallfirst.records import Record
from smallfirst.routing.certificate.outcomes import CascadeData
from smallfirst.stats.intervals import Estimate, mcnemar, paired_difference, score_lower_bound

MAX_BANDS = 4
LEVEL = 0.05
"""Chance to send requests on that the large model is not better at."""

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
    """Exact two-sided McNemar of this band alone."""
    action: BelowAction
    """What happens to such requests."""
    extra_usd_per_1k: float | None = None
    """Mean cost of 1,000 answers of the large model to such requests in USD; None in earlier certificates."""


class BelowRule(NamedTuple):
    """How requests below the threshold are decided on."""

    alone: bool = True
    """The last stage passed its gate by itself: they stay small unless the large model is shown to be better. If
    False, all of them go on."""
    person: bool = False
    """What is not sent on waits for a person."""
    usd_per_wrong_answer: float | None = None
    """What a wrong answer costs in USD; None: only whether the large model is better counts."""


class BelowThreshold(NamedTuple):
    """What to do with everything that is not accepted."""

    action: BelowAction
    why: str
    difference: Estimate | None
    bands: tuple[Band, ...]


class _Region(NamedTuple):
    """Paired rows of one range of confidence."""

    n: int
    only_large: int
    only_small: int
    break_even: float
    """The gain in accuracy that is worth the large model's answers."""

    @property
    def leads(self) -> bool:
        return self.only_large - self.only_small > self.n * self.break_even

    def shown(self, level: float) -> bool:
        """Return True if the gain is shown to be above the break-even point at this level."""
        if mid_p_value(self.only_large, self.only_small) > level:
            return False
        z = float(special.ndtri(1 - level))
        return self.break_even <= 0 or score_lower_bound(self.only_large, self.only_small, self.n, z) > self.break_even

    def testable(self, level: float) -> bool:
        """Return True if it could be shown: this depends on how many rows tell the two apart, not on who was right."""
        return self._replace(only_large=self.only_large + self.only_small, only_small=0).shown(level)


def mid_p_value(only_large: int, only_small: int) -> float:
    """Return the one-sided mid-p of McNemar's test that the large model is better, in (0, 1] (Fagerland et al. 2013).

    Without a row on which only one is right it is 1.
    """
    n = only_large + only_small
    if n == 0:
        return 1.0
    below = special.bdtr(only_small - 1, n, 0.5) if only_small else 0.0
    return float(special.bdtr(only_small, n, 0.5) + below) / 2


def decide_below_threshold(
    data: CascadeData,
    accepted: np.ndarray,
    rule: BelowRule,
    *,
    top: float,
    floor: float | None,
    never_escalates: bool = False,
) -> BelowThreshold:
    """Decide on the rows that are not `accepted`, as a whole and by band; `top` is where the highest band ends.

    `floor`: confidence down to which keeping is shown to be within the limit on the accuracy loss, if there is one.
    `never_escalates`: the limits of the guarantee leave nothing to send on.
    """
    rest = ~accepted
    otherwise: BelowAction = "abstain" if rule.person else "keep"
    edges = _edges(data.confidence[-1][rest], top) if data.large_known else []
    ranges = list(itertools.pairwise(edges))
    rows = [_rows(data, rest, ends, last=ends is ranges[-1]) for ends in ranges]
    regions = [_region(data, own, rule.usd_per_wrong_answer) for own in rows]
    # From the least confident band up: each region holds the one before it.
    nested = [_region(data, own, rule.usd_per_wrong_answer) for own in np.logical_or.accumulate(rows)] if rows else []
    n_escalated = _shown_regions(nested) if rule.alone else len(regions)
    actions: list[BelowAction] = []
    for i, region in enumerate(regions):
        on = i < n_escalated and (region.leads or not rule.alone) and not never_escalates
        actions.append("escalate" if on else otherwise)
    bands = tuple(_band(data, *one) for one in zip(rows, ranges, actions, strict=True))
    action, why = _explain(data, rest, rule, bands, otherwise)
    if floor is not None and not never_escalates:
        action, why, bands = _limit_to_floor(floor, action, why, bands)
    return BelowThreshold(action, why, _difference(data, rest & data.paired), bands)


def _edges(confidence: np.ndarray, top: float) -> list[float]:
    """Return where bands begin, and where the last ends: quartiles of the confidences that are not accepted."""
    if not confidence.size:
        return []
    inner = np.sort(confidence)[[confidence.size * part // MAX_BANDS for part in range(1, MAX_BANDS)]]
    lows = [0.0, *(low for low in np.unique(inner).tolist() if low > confidence.min())]
    return [*lows, max(top, float(confidence.max()))]


def _rows(data: CascadeData, rest: np.ndarray, ends: tuple[float, float], *, last: bool) -> np.ndarray:
    confidence, (low, high) = data.confidence[-1], ends
    return np.asarray(rest & data.paired & (confidence >= low) & ((confidence < high) | last))


def _region(data: CascadeData, rows: np.ndarray, price: float | None) -> _Region:
    small, large = data.right[-1][rows], data.large_right[rows]
    break_even = float(data.cost_usd[-1][rows].mean()) / price if price and rows.any() else 0.0
    return _Region(int(rows.sum()), int((large & ~small).sum()), int((small & ~large).sum()), break_even)


def _shown_regions(nested: Sequence[_Region]) -> int:
    """Return how many bands, from the least confident up, make up the largest region that is shown."""
    level = LEVEL / 2 if len(nested) > 1 else LEVEL
    if nested and nested[-1].shown(level):
        return len(nested)
    found = 0
    for i, region in enumerate(nested, start=1):
        if region.shown(level):
            found = i
        elif region.testable(level):
            break
    return found


def _band(data: CascadeData, rows: np.ndarray, ends: tuple[float, float], action: BelowAction) -> Band:
    small, large = data.right[-1][rows], data.large_right[rows]
    return Band(
        low=ends[0],
        high=ends[1],
        n=int(rows.sum()),
        small_right=int(small.sum()),
        large_right=int(large.sum()),
        difference=_difference(data, rows),
        p_value=mcnemar(int((large & ~small).sum()), int((small & ~large).sum())),
        action=action,
        extra_usd_per_1k=1000 * float(data.cost_usd[-1][rows].mean()) if rows.any() else None,
    )


def _explain(
    data: CascadeData, rest: np.ndarray, rule: BelowRule, bands: Sequence[Band], otherwise: BelowAction
) -> tuple[BelowAction, str]:
    """Return the action below the threshold as a whole and the sentence that gives its evidence."""
    stay = "they go to a person's queue" if otherwise == "abstain" else "they stay small"
    both = rest & data.paired
    evidence = _evidence(data, both) if both.any() else _not_measured(data, rest)
    if not rule.alone:
        if not data.large_known and rule.person:
            return (
                "abstain",
                "only certified answers stay small; without a large model the others wait for a person",
            )
        return "escalate", f"only certified answers stay small, the others go on; {evidence}"
    if not both.any():
        return otherwise, f"{evidence}, so {stay}"
    price = rule.usd_per_wrong_answer
    worth = f" and worth its price at ${price:g} a wrong answer" if price is not None else ""
    escalated = [band for band in bands if band.action == "escalate"]
    if not escalated:
        return otherwise, f"{evidence}: not shown to be better{worth}, so {stay}"
    if len(escalated) == len(bands):
        return "escalate", f"{evidence}: shown to be better{worth}"
    where = ", ".join(f"{band.low:.2f} to {band.high:.2f}" for band in escalated)
    n, large, small = (sum(getattr(b, name) for b in escalated) for name in ("n", "large_right", "small_right"))
    there = f"large is right on {large}, small on {small} of {n}"
    rest_of_them = stay.replace("they", "the others")
    return "escalate", f"{evidence}: shown to be better{worth} at confidences of {where} ({there}); {rest_of_them}"


def _not_measured(data: CascadeData, rest: np.ndarray) -> str:
    if not data.large_known:
        return "the large model was not measured"
    if not rest.any():
        return "no calibration row falls below the threshold"
    if not (rest & data.asked).any():
        return "the large model was not measured on rows below the threshold"
    return "below the threshold only the large model says what is right, so nothing shows that it is better"


def _evidence(data: CascadeData, both: np.ndarray) -> str:
    small, large = data.right[-1][both], data.large_right[both]
    p_value = mid_p_value(int((large & ~small).sum()), int((small & ~large).sum()))
    return (
        f"on {both.sum()} calibration rows below the threshold large is right on {large.sum()}, small on {small.sum()} "
        f"(difference {_difference(data, both)}, one-sided p = {p_value:.3f})"
    )


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
