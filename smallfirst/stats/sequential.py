"""Inference that may be looked at after every row: tests and intervals for streams that never end.

A test that is right for one look is wrong for a thousand. What is here stays right: each test is a game against its
hypothesis with fair or losing bets, started with 1. Whoever turns 1 into 1 / alpha has refuted the hypothesis, since a
fair game does that with probability at most alpha, ever (Ville 1939). `e_value` is what the 1 has become.

A change may come late, when a game begun at the start has lost nearly everything. So a share of the stake waits for
every later request: `w_t = 1 / (1 + ln t) - 1 / (1 + ln(t + 1))`, which sums to 1 and costs about
ln t + 2 ln(1 + ln t) of evidence (in nats) for a change at t; a mixture of fair games is fair. It costs one
multiplication a bettor and row. Nothing here does any I/O; equal calls give equal results.
"""

from __future__ import annotations

import math
import random
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from smallfirst.stats.intervals import Estimate

_ODDS = (1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
"""The error rates that are bet on: the limit's odds times these, or divided by them."""
_HISTOGRAMS = ((10, 100, 50.0), (10, 1000, 100.0), (100, 100, 100.0))
"""DriftTest's bettors: bins, rows after which a row counts 1/e, and how many rows' worth of «nothing has changed».
The second is for slight drifts that last, the third for traffic that gathers on few labels. Chosen on calibration rows
of Banking77; a choice makes alarms come sooner or later, never more false ones."""
_HUGE = 1e200
"""More than anybody asks for. What is won beyond it is thrown away: a losing game will do as well."""


class _Wealth:
    """What several bettors own together, each with a stake for every time at which the change may come."""

    def __init__(self, n_bettors: int) -> None:
        self._sums = [0.0] * n_bettors
        self._waiting = 1.0
        self.n = 0
        self.total = self.highest = 1.0

    def bet(self, factors: Sequence[float]) -> None:
        """One round: by what each bettor's money is multiplied. The round's new stake takes part in it."""
        self.n += 1
        waiting = 1 / (1 + math.log(self.n + 1))
        stake = self._waiting - waiting
        self._waiting = waiting
        self._sums = [(owned + stake) * factor for owned, factor in zip(self._sums, factors, strict=True)]
        self.total = sum(self._sums) / len(self._sums) + waiting
        if self.total > self.highest:
            self.highest = self.total
            self._sums = [min(owned, _HUGE) for owned in self._sums]


class GuaranteeTest:
    """Tests «each audited answer is wrong with probability at most `limit`, whatever came before», forever.

    If that is true, `broken` ever becomes true with probability at most 1 - `confidence`. The bettors bet on error
    rates above the limit; a bet on theta multiplies by the likelihood ratio, theta / limit after an error and
    (1 - theta) / (1 - limit) after a right answer, which is 1 + lambda (x - limit) with
    lambda = (theta - limit) / (limit (1 - limit)) (Waudby-Smith and Ramdas 2024). Raises ValueError if limit or
    confidence is not in (0, 1).
    """

    def __init__(self, limit: float, confidence: float = 0.95) -> None:
        _check_share(limit=limit, confidence=confidence)
        self.limit, self.confidence = limit, confidence
        self._factors = _factors(limit, _ODDS)
        self._wealth = _Wealth(len(_ODDS))
        self.errors = 0

    def update(self, wrong: bool) -> None:
        """Take in one audit."""
        self.errors += wrong
        self._wealth.bet(self._factors[bool(wrong)])

    @property
    def n(self) -> int:
        """Audits so far."""
        return self._wealth.n

    @property
    def e_value(self) -> float:
        """Evidence against the promise now; 1 at the start, at most 1 on average while it holds."""
        return self._wealth.total

    @property
    def broken(self) -> bool:
        """True from the first time on that the evidence came to 1 / (1 - confidence)."""
        return self._wealth.highest * (1 - self.confidence) >= 1


class RecoveryTest:
    """Tests «each audited answer is wrong with probability at least `limit`, whatever came before»: the opposite.

    If that is true, `recovered` ever becomes true with probability at most 1 - `confidence`. An interval over all
    audits would shut out a model that was broken for long and then mended; here the bettors' late stakes speak for it.
    Raises ValueError if limit or confidence is not in (0, 1).
    """

    def __init__(self, limit: float, confidence: float = 0.95) -> None:
        _check_share(limit=limit, confidence=confidence)
        self.limit, self.confidence = limit, confidence
        # «Wrong at least so often» is «right at most so often»: the same test, of right answers.
        self._of_right = GuaranteeTest(1 - limit, confidence)

    def update(self, wrong: bool) -> None:
        """Take in one audit."""
        self._of_right.update(not wrong)

    @property
    def n(self) -> int:
        """Audits so far."""
        return self._of_right.n

    @property
    def errors(self) -> int:
        """Wrong among them."""
        return self._of_right.n - self._of_right.errors

    @property
    def e_value(self) -> float:
        """Evidence that answers are wrong less often than `limit`; 1 at the start, at most 1 on average if not."""
        return self._of_right.e_value

    @property
    def recovered(self) -> bool:
        """True from the first time on that the evidence came to 1 / (1 - confidence)."""
        return self._of_right.broken


class DriftTest:
    """Tests «the scores of the stream come from where the reference comes from, in no order», forever.

    If reference and stream are exchangeable, `drifted` ever becomes true with probability at most 1 - `confidence`.
    Each score's rank among all earlier ones, ties broken at random, is then uniform on [0, 1] and independent of all
    earlier ranks (conformal test martingale: Vovk, Nouretdinov and Gammerman 2003; Vovk 2021). The bettors believe
    that ranks go on to fall where they lately fell. Categories may be given as numbers, in any order that does not
    depend on the stream: if traffic gathers on few of them, so do the ranks.

    Memory is bounded: beyond `most_scores` a random half is forgotten. Ranks say nothing about which scores have
    been seen, only about their order, so a random half is as fresh a reference as a new one, and the bound stands.
    A score costs some microseconds. Raises ValueError if the reference is empty, a score is not a number, or
    confidence is not in (0, 1).
    """

    def __init__(
        self, reference: Sequence[float], confidence: float = 0.95, *, seed: int = 0, most_scores: int = 10_000
    ) -> None:
        _check_share(confidence=confidence)
        if not reference or any(math.isnan(score) for score in reference):
            raise ValueError("a drift test needs a reference of at least one score, and numbers only")
        self.confidence = confidence
        self._most_scores = most_scores
        self._random = random.Random(seed)
        self._scores = array("d", sorted(reference))
        self._forget()
        self._bettors = [_Histogram(*shape) for shape in _HISTOGRAMS]
        self._wealth = _Wealth(len(self._bettors))

    def update(self, score: float) -> None:
        """Take in one score of the stream."""
        if math.isnan(score):
            raise ValueError("a score must be a number, not NaN")
        rank = self._rank(score)
        self._wealth.bet([bettor.bet(rank) for bettor in self._bettors])

    @property
    def n(self) -> int:
        """Scores of the stream so far."""
        return self._wealth.n

    @property
    def e_value(self) -> float:
        """Evidence against «nothing has changed» now; 1 at the start, 1 on average while it is true."""
        return self._wealth.total

    @property
    def drifted(self) -> bool:
        """True from the first time on that the evidence came to 1 / (1 - confidence)."""
        return self._wealth.highest * (1 - self.confidence) >= 1

    def _rank(self, score: float) -> float:
        """The conformal p-value of the score, which then joins the others."""
        first = bisect_left(self._scores, score)
        after = bisect_right(self._scores, score, first)
        n = len(self._scores)
        self._scores.insert(after, score)
        self._forget()
        return (n - after + self._random.random() * (after - first + 1)) / (n + 1)

    def _forget(self) -> None:
        while len(self._scores) > self._most_scores:
            kept = sorted(self._random.sample(range(len(self._scores)), len(self._scores) // 2))
            self._scores = array("d", (self._scores[index] for index in kept))


class _Histogram:
    """A bettor: bets the density of a histogram of earlier ranks, in which old ones fade and a prior says uniform."""

    def __init__(self, bins: int, memory: int, prior: float) -> None:
        self._bins, self._counts, self._total = bins, [0.0] * bins, 0.0
        self._prior, self._growth = prior, math.exp(1 / memory)
        self._unit = 1.0  # a rank counts this much: new ones count more, instead of all old ones less

    def bet(self, rank: float) -> float:
        """The density at `rank`, before `rank` itself is counted: 1 on average for a uniform one."""
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


def anytime_valid_interval(errors: int, n: int, confidence: float = 0.95) -> Estimate:
    """Share of errors with an interval that holds at every n at once, so that one may stop at the best looking one.

    All rates p whose likelihood is above (1 - confidence) times the average likelihood under a Beta(1/2, 1/2) of
    rates: the chance that the true rate is ever left out is at most 1 - confidence (Robbins 1970; Howard, Ramdas,
    McAuliffe and Sekhon 2021). The rows share one rate; for a rate that changes the interval says nothing exact.
    About twice as wide as an exact interval for one look. n = 0 gives [0, 1] around 0. Raises ValueError for counts
    that cannot be, or a confidence not in (0, 1).
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


def _log_likelihood(errors: int, n: int, rate: float) -> float:
    """Of a rate in [0, 1]; 0 ln 0 = 0."""
    if rate in (0.0, 1.0):
        return 0.0 if errors == n * rate else -math.inf
    return errors * math.log(rate) + (n - errors) * math.log1p(-rate)


def _edge(inner: float, outer: float, inside: Callable[[float], bool]) -> float:
    """Where `inside` ends between a rate inside and one outside, by bisection; to be safe, a rate just outside."""
    for _ in range(60):
        middle = (inner + outer) / 2
        inner, outer = (middle, outer) if inside(middle) else (inner, middle)
    return outer


def _factors(limit: float, odds: Sequence[float]) -> tuple[list[float], list[float]]:
    """What bets on error rates of `odds` times the limit's odds multiply by: after a right answer, after an error."""
    rates = [times * limit / (1 - limit + times * limit) for times in odds]
    return [(1 - rate) / (1 - limit) for rate in rates], [rate / limit for rate in rates]


def _check_share(**values: float) -> None:
    """Raises ValueError naming every value outside (0, 1)."""
    wrong = [f"{name} = {value}" for name, value in values.items() if not 0 < value < 1]
    if wrong:
        raise ValueError(f"must be above 0 and below 1: {', '.join(wrong)}")
