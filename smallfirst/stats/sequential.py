"""Sequential tests and intervals, valid at every row of an endless stream at once.

Each test is a betting martingale: its wealth, `e_value`, ever reaches 1 / alpha with probability at most alpha if the
hypothesis is true (Ville 1939). A share of the initial wealth is kept for every later row, `w_t = 1 / (1 + ln t) - 1 /
(1 + ln(t + 1))`, which sums to 1, so a late change is found too.
"""

from __future__ import annotations

import math
import random
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from smallfirst.stats.intervals import Estimate

_ODDS = (1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
"""Alternatives that are bet on: error rates with these multiples of the limit's odds."""
_HISTOGRAMS = ((10, 100, 50.0), (10, 1000, 100.0), (100, 100, 100.0))
"""DriftTest's bettors: bins, rows after which a row counts 1/e, and the prior's weight in rows.
The second is for slight lasting drifts, the third for traffic that concentrates on few labels. Chosen on calibration
rows of Banking77; the choice affects how soon alarms come, never how many are false."""
_HUGE = 1e200
"""Wealth is capped here, far above any level that is asked for; a test that gives wealth away stays valid."""


def spent_level(level: float, look: int) -> float:
    """Return the share of `level` that look k may spend, level / (k (k + 1)): all looks together spend at most all."""
    return level / (look * (look + 1))


class SequentialTest:
    """A betting martingale against a hypothesis, with a stake for every row at which a change may come."""

    def __init__(self, confidence: float, *, n_bettors: int) -> None:
        """Raise ValueError if confidence is not in (0, 1)."""
        _check_share(confidence=confidence)
        self.confidence = confidence
        self.n = 0
        """Rows so far."""
        self.e_value = 1.0
        """Current evidence against the hypothesis, at most 1 on average while it is true."""
        self._highest = self._waiting = 1.0
        self._sums = [0.0] * n_bettors

    @property
    def rejected(self) -> bool:
        """True once the evidence has reached 1 / (1 - confidence)."""
        return self._highest * (1 - self.confidence) >= 1

    def _bet(self, factors: Sequence[float]) -> None:
        """Multiply each bettor's wealth, with this row's new stake, by its factor."""
        self.n += 1
        waiting = 1 / (1 + math.log(self.n + 1))
        stake = self._waiting - waiting
        self._waiting = waiting
        self._sums = [(owned + stake) * factor for owned, factor in zip(self._sums, factors, strict=True)]
        self.e_value = sum(self._sums) / len(self._sums) + waiting
        if self.e_value > self._highest:
            self._highest = self.e_value
            self._sums = [min(owned, _HUGE) for owned in self._sums]


class GuaranteeTest(SequentialTest):
    """Test the hypothesis "the mean of each loss in [0, 1] is at most `limit`, whatever came before".

    If it is true, `rejected` ever becomes true with probability at most 1 - `confidence`. A bet on theta multiplies by
    the likelihood ratio, between 0 and 1 by its chord (Waudby-Smith and Ramdas 2024). Raise ValueError unless limit and
    confidence are in (0, 1).
    """

    def __init__(self, limit: float, confidence: float = 0.95) -> None:
        _check_share(limit=limit)
        super().__init__(confidence, n_bettors=len(_ODDS))
        self._factors = _factors(limit, _ODDS)
        self.losses = 0.0
        """Sum of the losses."""

    def update(self, loss: float) -> None:
        """Add a loss in [0, 1]; of an audit, whether the answer was wrong."""
        self.losses += loss
        self._bet(_on_chord(self._factors, loss))


class RecoveryTest(SequentialTest):
    """Test the hypothesis "the mean of each loss in [0, 1] is at least `limit`, whatever came before".

    Bounds and errors are those of GuaranteeTest.
    """

    def __init__(self, limit: float, confidence: float = 0.95) -> None:
        _check_share(limit=limit)
        super().__init__(confidence, n_bettors=len(_ODDS))
        # "Wrong at least so often" is "right at most so often": a test of right answers.
        self._factors = _factors(1 - limit, _ODDS)
        self.losses = 0.0

    def update(self, loss: float) -> None:
        self.losses += loss
        self._bet(_on_chord(self._factors, 1 - loss))


class DriftTest(SequentialTest):
    """Test the hypothesis "the scores of the stream and of the reference are exchangeable".

    If it is true, `rejected` ever becomes true with probability at most 1 - `confidence`. Each score's rank among all
    earlier ones is then uniform and independent of earlier ranks (conformal test martingale: Vovk, Nouretdinov and
    Gammerman 2003). Categories may be passed as numbers. Beyond `max_scores` a random half is dropped, and the bound
    still holds. Raise ValueError for an empty reference, a score that is no number, or confidence outside (0, 1).
    """

    def __init__(
        self, reference: Sequence[float], confidence: float = 0.95, *, seed: int = 0, max_scores: int = 10_000
    ) -> None:
        super().__init__(confidence, n_bettors=len(_HISTOGRAMS))
        if not reference or any(math.isnan(score) for score in reference):
            raise ValueError("a drift test needs a reference of at least one score, and numbers only")
        self._max_scores = max_scores
        self._random = random.Random(seed)
        self._scores = array("d", sorted(reference))
        self._forget()
        self._bettors = [_Histogram(*shape) for shape in _HISTOGRAMS]

    def update(self, score: float) -> None:
        if math.isnan(score):
            raise ValueError("a score must be a number, not NaN")
        rank = self._rank(score)
        self._bet([bettor.bet(rank) for bettor in self._bettors])

    def _rank(self, score: float) -> float:
        first = bisect_left(self._scores, score)
        after = bisect_right(self._scores, score, first)
        n = len(self._scores)
        self._scores.insert(after, score)
        self._forget()
        return (n - after + self._random.random() * (after - first + 1)) / (n + 1)

    def _forget(self) -> None:
        while len(self._scores) > self._max_scores:
            kept = sorted(self._random.sample(range(len(self._scores)), len(self._scores) // 2))
            self._scores = array("d", (self._scores[index] for index in kept))


class _Histogram:
    """A bettor: bets the density of a histogram of earlier ranks with exponential decay and a uniform prior."""

    def __init__(self, bins: int, memory: int, prior: float) -> None:
        self._bins, self._counts, self._total = bins, [0.0] * bins, 0.0
        self._prior, self._growth = prior, math.exp(1 / memory)
        self._unit = 1.0  # weight of a new rank: it grows, instead of all old weights shrinking

    def bet(self, rank: float) -> float:
        """Return the density at `rank` before counting it: 1 on average for uniform ranks."""
        place = min(self._bins - 1, int(rank * self._bins))
        prior = self._prior * self._unit
        density = (self._bins * self._counts[place] + prior) / (self._total + prior)
        self._unit *= self._growth
        self._counts[place] += self._unit
        self._total += self._unit
        if self._unit > _HUGE:
            self._counts = [count / self._unit for count in self._counts]
            self._total, self._unit = self._total / self._unit, 1.0
        return density


def anytime_valid_interval(errors: float, n: int, confidence: float = 0.95) -> Estimate:
    """Return the share of errors with a confidence sequence: an interval that is valid at every n at once.

    Rates whose likelihood is above (1 - confidence) times the average under a Beta(1/2, 1/2) prior (Robbins 1970;
    Howard et al. 2021). The rate must be constant. `errors` may be a sum of losses in [0, 1]: the ratio of two
    likelihoods is convex in a loss, so its mean is at most 1 for them too. n = 0 gives [0, 1] around 0. Raise
    ValueError for impossible counts, or a confidence outside (0, 1).
    """
    _check_share(confidence=confidence)
    if not 0 <= errors <= n:
        raise ValueError(f"errors must be from 0 to n, not {errors} of {n}")
    if n == 0:
        return Estimate(value=0.0, low=0.0, high=1.0, n=0)
    average = math.lgamma(errors + 0.5) + math.lgamma(n - errors + 0.5) - math.lgamma(n + 1) - math.log(math.pi)
    least = average + math.log(1 - confidence)

    def inside(rate: float) -> bool:
        return _log_likelihood(errors, n, rate) > least

    share = errors / n
    low = _edge(share, 0.0, inside) if errors else 0.0
    high = _edge(share, 1.0, inside) if errors < n else 1.0
    return Estimate(value=share, low=low, high=high, n=n)


def _log_likelihood(errors: float, n: int, rate: float) -> float:
    if rate in (0.0, 1.0):
        return 0.0 if errors == n * rate else -math.inf
    return errors * math.log(rate) + (n - errors) * math.log1p(-rate)


def _edge(inner: float, outer: float, inside: Callable[[float], bool]) -> float:
    """Bisect for where `inside` ends between a rate inside and one outside; return a rate just outside."""
    for _ in range(60):
        middle = (inner + outer) / 2
        inner, outer = (middle, outer) if inside(middle) else (inner, middle)
    return outer


def _factors(limit: float, odds: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the factors of bets on error rates of `odds` times the limit's odds: after a right answer, an error."""
    rates = [times * limit / (1 - limit + times * limit) for times in odds]
    return [(1 - rate) / (1 - limit) for rate in rates], [rate / limit for rate in rates]


def _on_chord(factors: tuple[list[float], list[float]], loss: float) -> list[float]:
    if loss in (0.0, 1.0):
        return factors[int(loss)]
    return [none + loss * (whole - none) for none, whole in zip(*factors, strict=True)]


def _check_share(**values: float) -> None:
    wrong = [f"{name} = {value}" for name, value in values.items() if not 0 < value < 1]
    if wrong:
        raise ValueError(f"must be above 0 and below 1: {', '.join(wrong)}")
