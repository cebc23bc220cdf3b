"""Sequential tests and intervals, valid at every row of an endless stream at once.

Each test is a betting martingale: its wealth, `e_value`, ever reaches 1 / alpha with probability at most alpha if the
hypothesis is true (Ville 1939). A share of the initial wealth is kept for every later row t, which may be the one
before a change: `w_t = v(t - 1) - v(t)`, v(t) = 1 / (1 + ln(1 + t / patience)), which sums to 1.

Rows that were not drawn with equal chances have a weight w, a constant over the chance that the row had. The mean of
w (loss - limit) over the rows drawn has the sign of the mean of (loss - limit) over all rows, so a bet that multiplies
by 1 + bet w (loss - limit) is valid as long as no factor can be negative: weights have a bound.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from smallfirst.base.stats.intervals import Estimate, edge

_ODDS = (1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
"""Alternatives that are bet on: error rates with these multiples of the limit's odds."""
_TWICE = _ODDS.index(2.0)
_LARGEST_BET = 0.9
"""A bet loses at most this share of its stake, however large the weight of a row."""
MAX_WEIGHT = 2.0
"""Largest weight of an audit: no accepted answer has less than 1 / MAX_WEIGHT of the mean chance."""
_HUGE = 1e200
"""Wealth is capped here, far above any level that is asked for; a test that gives wealth away stays valid."""


def spent_level(level: float, look: int) -> float:
    """Return the share of `level` that look k may spend, level / (k (k + 1)): all looks together spend at most all."""
    return level / (look * (look + 1))


class GuaranteeTest:
    """Test the hypothesis "the mean of each loss in [0, 1] is at most `limit`, whatever came before".

    If it is true, `rejected` ever becomes true with probability at most 1 - `confidence`. Where all weights are 1 a bet
    on theta multiplies by the likelihood ratio, between 0 and 1 by its chord (Waudby-Smith and Ramdas 2024).
    """

    PRIOR: ClassVar[tuple[float, ...]] = (3.0, 4.0, 2.0, 1.0, 0.4, 0.2)
    """Relative wealth of the bettors on `_ODDS`. Slight excesses take long to show and get most of it; elsewhere a
    small part costs a few rows. Chosen, with PATIENCE, by simulation with errors of 4 to 30 % at a limit of 5 %,
    without any data set."""
    PATIENCE: ClassVar[float] = 30.0
    """How many rows may pass before a change without loss."""
    SIGN: ClassVar[int] = 1
    """-1: the test is one of right answers, against "at least `limit`"."""

    def __init__(self, limit: float, confidence: float = 0.95, *, max_weight: float = 1.0) -> None:
        """`max_weight` bounds the rows' weights. Raise ValueError unless limit and confidence are in (0, 1)."""
        _check_share(limit=limit, confidence=confidence)
        self.limit, self.confidence, self.max_weight = limit, confidence, max_weight
        self.n = 0
        """Rows so far."""
        self.losses = 0.0
        """Sum of the losses."""
        self.e_value = 1.0
        """Current evidence against the hypothesis, at most 1 on average while it is true."""
        self.recent = 1.0
        """Evidence of the last rows alone, from where it is largest: a CUSUM (Page 1954) of the bet on twice the odds.
        It may say where to look closer, and proves nothing."""
        self._highest = self._waiting = 1.0
        self._bets = _bets(limit if self.SIGN > 0 else 1 - limit, max_weight)
        self._sums = [0.0] * len(self._bets)

    @property
    def rejected(self) -> bool:
        """True once the evidence has reached 1 / (1 - confidence)."""
        return self._highest * (1 - self.confidence) >= 1

    @property
    def state(self) -> tuple[float, ...]:
        """All that was seen, as `resume` takes it."""
        return (self.n, self.losses, self._highest, *self._sums)

    def resume(self, state: Sequence[float]) -> None:
        """Go on from the `state` of a test with the same limit; from the start if it is empty."""
        if state:
            n, self.losses, self._highest, *self._sums = state
            self.n = int(n)
            self._weigh()

    def _weigh(self) -> None:
        self._waiting = 1 / (1 + math.log(1 + self.n / self.PATIENCE))
        bettors = zip(self.PRIOR, self._sums, strict=True)
        self.e_value = sum(share * owned for share, owned in bettors) / sum(self.PRIOR) + self._waiting

    def update(self, loss: float, weight: float = 1.0) -> None:
        """Add a loss in [0, 1]; of an audit, whether the answer was wrong. Raise ValueError for too large a weight.

        Each bettor's wealth, with this row's new stake, is multiplied by its factor.
        """
        _check_weight(weight, self.max_weight)
        self.n, self.losses = self.n + 1, self.losses + loss
        stake = self._waiting - 1 / (1 + math.log(1 + self.n / self.PATIENCE))
        excess = self.SIGN * weight * (loss - self.limit)
        self.recent = max(1.0, self.recent) * (1 + self._bets[_TWICE] * excess)
        self._sums = [(owned + stake) * (1 + bet * excess) for owned, bet in zip(self._sums, self._bets, strict=True)]
        self._weigh()
        if self.e_value > self._highest:
            self._highest = self.e_value
            self._sums = [min(owned, _HUGE) for owned in self._sums]


class RecoveryTest(GuaranteeTest):
    """Test the hypothesis "the mean of each loss in [0, 1] is at least `limit`, whatever came before".

    "Wrong at least so often" is "right at most so often": a GuaranteeTest of right answers, with its bounds and errors.
    """

    PRIOR = (1.0,) * len(_ODDS)
    PATIENCE = 1.0
    SIGN = -1


def weighted_interval(
    counts: Mapping[tuple[float, bool], int], confidence: float = 0.95, *, max_weight: float = 1.0
) -> Estimate:
    """Return the share of errors from rows counted by (weight, wrong), valid at every n at once; value: weighted mean.

    Rates that a mixture of bets has not refuted: a row multiplies by 1 + u (q / rate - 1) if wrong, by
    1 + u ((1 - q) / (1 - rate) - 1) if right, u = weight / max_weight, with q from a Beta(1/2, 1/2) prior on a grid.
    Each product is convex in the rate, so these rates are an interval. Where all weights are 1 they are those whose
    likelihood is above (1 - confidence) times its average under the prior (Robbins 1970; Howard et al. 2021). Raise
    ValueError for too large a weight, or a confidence outside (0, 1).
    """
    _check_share(confidence=confidence)
    for weight, _ in counts:
        _check_weight(weight, max_weight)
    n = sum(counts.values())
    if n == 0:
        return Estimate(value=0.0, low=0.0, high=1.0, n=0)
    weights, wrong, times = np.array([(*row, times) for row, times in counts.items()], dtype=float).T
    share = float((weights * wrong * times).sum() / (weights * times).sum())
    unit = np.minimum(1.0, weights / max_weight)[:, None]
    n_points = 64 + 4 * math.isqrt(n)
    q = np.sin((np.arange(n_points) + 0.5) * math.pi / (2 * n_points)) ** 2
    most = -math.log(1 - confidence)

    def inside(rate: float) -> bool:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(wrong[:, None] == 1, q / rate, (1 - q) / (1 - rate))
            gains = times @ np.log1p(unit * (ratio - 1))
        highest = float(gains.max())
        return highest + math.log(float(np.exp(gains - highest).mean())) < most

    low = edge(share, 0.0, inside) if wrong.any() else 0.0
    high = edge(share, 1.0, inside) if not wrong.all() else 1.0
    return Estimate(value=share, low=low, high=high, n=n)


def share_wrong(audits: Iterable[tuple[float, bool]]) -> Estimate:
    """Return the share of wrong answers from weights and verdicts of audits, 95 %, valid at every moment."""
    counts = Counter((min(round(weight, 9), MAX_WEIGHT), wrong) for weight, wrong in audits)
    return weighted_interval(counts, max_weight=MAX_WEIGHT if any(weight != 1 for weight, _ in counts) else 1.0)


def _bets(limit: float, max_weight: float) -> list[float]:
    """Return the bets on error rates of `_ODDS` times the limit's odds, made smaller where weights ask for it."""
    rates = [times * limit / (1 - limit + times * limit) for times in _ODDS]
    bets = [(rate - limit) / (limit * (1 - limit)) for rate in rates]
    return bets if max_weight == 1 else [min(bet, _LARGEST_BET / (max_weight * limit)) for bet in bets]


def _check_weight(weight: float, max_weight: float) -> None:
    if not 0 < weight <= max_weight * (1 + 1e-9):
        raise ValueError(f"a weight must be above 0 and at most {max_weight}, not {weight}")


def _check_share(**values: float) -> None:
    wrong = [f"{name} = {value}" for name, value in values.items() if not 0 < value < 1]
    if wrong:
        raise ValueError(f"must be above 0 and below 1: {', '.join(wrong)}")
