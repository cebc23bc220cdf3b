"""The decision below the threshold, from calibration rows that both models answered, without guarantee.

Where the last stage passed its gate by itself, a request stays small unless the large model is shown to be better at
such requests: the null hypothesis is that it is not. One test of all rows below the threshold decides, so the chance to
send requests on without a gain is about 5 %. Where a wrong answer has a price, the gain must be worth the large
model's answers. A limit on the accuracy loss is shown for what the large model answers below the threshold: there
nothing stays small unless the limit is also shown while everything does.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from scipy import special

from smallfirst.routing.certificate.outcomes import CascadeData
from smallfirst.stats.intervals import Estimate, paired_difference, score_lower_bound

LEVEL = 0.05
"""Chance to send requests on that the large model is not better at."""

BelowAction = Literal["escalate", "keep", "abstain"]
"""To the large model; answered small without a guarantee; to a person's queue."""


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
    """Accuracy of large minus small on the paired rows; None without any."""


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
    data: CascadeData, accepted: np.ndarray, rule: BelowRule, *, may_keep: bool = True
) -> BelowThreshold:
    """Decide on the rows that are not `accepted`.

    `may_keep`: False where a limit on the accuracy loss is not shown while all of them stay small.
    """
    rest = ~accepted
    both = rest & data.paired
    small, large = data.right[-1][both], data.large_right[both]
    difference = paired_difference(large.tolist(), small.tolist()) if both.any() else None
    action, why = _decide(data, rest, rule, difference)
    if action == "keep" and not may_keep:
        action, why = "escalate", f"{why}; but the limit on the accuracy loss is not shown where they do"
    return BelowThreshold(action, why, difference)


def _decide(
    data: CascadeData, rest: np.ndarray, rule: BelowRule, difference: Estimate | None
) -> tuple[BelowAction, str]:
    """Return the action below the threshold and the sentence that gives its evidence."""
    both = rest & data.paired
    small, large, n = data.right[-1][both], data.large_right[both], int(both.sum())
    only_large, only_small = int((large & ~small).sum()), int((small & ~large).sum())
    p_value = mid_p_value(only_large, only_small)
    evidence = (
        f"on {n} calibration rows below the threshold large is right on {large.sum()}, small on {small.sum()} "
        f"(difference {difference}, one-sided p = {p_value:.3f})"
        if n
        else _not_measured(data, rest)
    )
    if not rule.alone:
        if not data.large_known and rule.person:
            return "abstain", "only certified answers stay small; without a large model the others wait for a person"
        return "escalate", f"only certified answers stay small, the others go on; {evidence}"
    stay = "they go to a person's queue" if rule.person else "they stay small"
    otherwise: BelowAction = "abstain" if rule.person else "keep"
    if not n:
        return otherwise, f"{evidence}, so {stay}"
    price = rule.usd_per_wrong_answer
    worth = f" and worth its price at ${price:g} a wrong answer" if price is not None else ""
    break_even = float(data.cost_usd[-1][both].mean()) / price if price else 0.0
    z = float(special.ndtri(1 - LEVEL))
    gains = break_even <= 0 or score_lower_bound(only_large, only_small, n, z) > break_even
    if p_value <= LEVEL and gains:
        return "escalate", f"{evidence}: shown to be better{worth}"
    return otherwise, f"{evidence}: not shown to be better{worth}, so {stay}"


def _not_measured(data: CascadeData, rest: np.ndarray) -> str:
    if not data.large_known:
        return "the large model was not measured"
    if not rest.any():
        return "no calibration row falls below the threshold"
    if not (rest & data.asked).any():
        return "the large model was not measured on rows below the threshold"
    return "below the threshold only the large model says what is right, so nothing shows that it is better"
