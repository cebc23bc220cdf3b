"""A queueing simulation of replicas that work on every request, and of the large model behind them.

Each replica is a flow-equivalent server (Chandy, Herzog and Woo 1975): with n requests in it, it completes as many a
second as were measured with n under way, so that batches, threads and waiting inside the program are in the
measurement. A request that no slot is free for waits, first come first served; those in slots advance alike. One slot
of a constant rate is M/G/1; c slots of a rate in proportion to n, up to c, are M/G/c.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import cached_property, partial
from heapq import heappop, heappush
from typing import Any, Literal

import numpy as np
import simpy
from pydantic import Field
from scipy.optimize import isotonic_regression

from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, ratio_interval

WINDOW_S = 10.0
"""Seconds for which an over-dispersed rate stays as it is; `demand` measures in windows of the same length."""
GROUP = 16
"""Replicas that are simulated of a larger number: more of them share load a little better still."""
WARM_UP = 0.2
"""First part of each replication that is cut."""


KEPT = 100
"""Quantiles that stand for a distribution of times."""


def quantiles(values: Sequence[float]) -> tuple[float, ...]:
    """Return at most KEPT evenly spaced quantiles, which stand for the values."""
    n = min(len(values), KEPT)
    return tuple(np.quantile(values, (np.arange(n) + 0.5) / n).round(4).tolist()) if n else ()


class Rates(Record):
    """Throughput of one replica by the number of requests under way."""

    per_s: dict[int, float] = Field(min_length=1)
    """Answers a second with so many requests under way all the time; between two of them linear, then constant."""
    work: tuple[float, ...] = (1.0,)
    """Times of single requests relative to their mean, of which each request draws one."""

    @property
    def most_per_s(self) -> float:
        """Capacity: the rate with many requests under way."""
        return self.by_number[-1]

    @cached_property
    def by_number(self) -> tuple[float, ...]:
        """Rates with 1, 2, … requests under way, never falling: isotonic regression takes out the noise of each."""
        n = sorted(self.per_s)
        rates = isotonic_regression([self.per_s[i] for i in n]).x
        return tuple(np.interp(np.arange(1, n[-1] + 1), n, rates).tolist())

    @property
    def slots(self) -> int:
        """Requests that advance at once: what several under way gain over one."""
        return max(1, round(self.by_number[-1] / self.by_number[0]))


class Scenario(Record):
    """What is simulated."""

    rate_per_s: float
    """Mean rate of arrivals at all replicas."""
    rates: Rates
    """Of one replica, which works on every request."""
    replicas: int = 1
    burst: float = 0.0
    """Coefficient of variation of the rate between windows of 10 s; 0: Poisson arrivals."""
    share_large: float = 0.0
    """Part of the requests that goes on to the large model, in [0, 1]."""
    large_ms: tuple[float, ...] = (0.0,)
    """Latencies of the large model, of which each request draws one."""
    in_flight: int = 64
    """Requests that a replica answers at once, the large model's time included (`serve`'s max_in_flight)."""
    queue: int = 256
    """Further ones that wait; the rest is refused (`serve`'s max_queue)."""
    balance: Literal["two choices", "random"] = "two choices"
    """`two choices`: the less busy of two replicas, as Ray Serve does · `random`: any, as a Kubernetes Service does."""

    @property
    def utilisation(self) -> float:
        """Arrivals over the most that the replicas can answer; from 1 on they cannot keep up."""
        return self.rate_per_s / (self.rates.most_per_s * self.replicas)


class Simulated(Record):
    """Latencies by quantile, each the mean of independent replications with its interval."""

    mean_ms: Estimate
    p50_ms: Estimate
    p95_ms: Estimate
    p99_ms: Estimate
    small_p95_ms: Estimate
    """Of the requests that stay small."""
    latencies_ms: tuple[float, ...]
    """Evenly spaced quantiles of all latencies."""
    refused: float
    """Part of the requests that found no place, in [0, 1]."""


class _Replica:
    """All requests in slots advance alike, so each ends when the common progress reaches its own mark."""

    def __init__(self, env: simpy.Environment, scenario: Scenario) -> None:
        self.env, self.rates, self.slots = env, scenario.rates.by_number, scenario.rates.slots
        self.turns, self.n_held, self.n = simpy.Resource(env, scenario.in_flight), 0, 0
        self._waiting: deque[tuple[float, simpy.Event]] = deque()
        self._serving: list[tuple[float, int, simpy.Event]] = []
        self._progress = self._since = self._speed = 0.0
        self._order = itertools.count()
        self._timer: simpy.Event | None = None

    def serve(self, work: float) -> simpy.Event:
        """Return the event of the end of the work on a request."""
        done = self.env.event()
        self.n += 1
        self._waiting.append((work, done))
        self._advance()
        return done

    def _advance(self) -> None:
        self._progress += (self.env.now - self._since) * self._speed
        self._since = self.env.now
        while self._waiting and len(self._serving) < self.slots:
            work, done = self._waiting.popleft()
            heappush(self._serving, (self._progress + work, next(self._order), done))
        if self._serving:
            self._speed = self.rates[min(self.n, len(self.rates)) - 1] / len(self._serving)
            left = self._serving[0][0] - self._progress
            self._timer = self.env.timeout(max(0.0, left / self._speed))
            self._timer.callbacks.append(self._finish)

    def _finish(self, timer: simpy.Event) -> None:
        if timer is self._timer:  # else others came since, and a later one is set
            self.n -= 1
            heappop(self._serving)[2].succeed()
            self._advance()


class _Replication:
    def __init__(self, scenario: Scenario, n_requests: int, seed: int) -> None:
        self.scenario, self.env, draw = scenario, simpy.Environment(), np.random.default_rng(seed)
        self.times = _arrivals(draw, scenario, n_requests)
        n, works = len(self.times), np.asarray(scenario.rates.work)
        self.work, self.large_s = draw.choice(works / works.mean(), n), draw.choice(scenario.large_ms, n) / 1000
        self.escalated = draw.random(n) < scenario.share_large
        self.chosen = draw.integers(0, scenario.replicas, (n, 2))
        self.replicas = [_Replica(self.env, scenario) for _ in range(scenario.replicas)]
        self.begin, self.n_refused = WARM_UP * self.times[-1], 0
        self.small_ms: list[float] = []
        self.large_ms: list[float] = []
        self.env.process(self._come())
        self.env.run(until=self.times[-1])

    def _come(self) -> Generator[simpy.Event]:
        for i, at in enumerate(self.times):
            yield self.env.timeout(at - self.env.now)
            self.env.process(self._request(i))

    def _request(self, i: int) -> Generator[simpy.Event]:
        began, limits = self.env.now, self.scenario
        one, other = (self.replicas[at] for at in self.chosen[i])
        if limits.balance == "two choices" and other.n_held < one.n_held:
            one = other
        if one.n_held >= limits.in_flight + limits.queue:
            self.n_refused += began >= self.begin
            return
        one.n_held += 1
        with one.turns.request() as turn:
            yield turn
            yield one.serve(self.work[i])
            if self.escalated[i]:
                yield self.env.timeout(self.large_s[i])
        one.n_held -= 1
        if began >= self.begin:
            (self.large_ms if self.escalated[i] else self.small_ms).append((self.env.now - began) * 1000)


def _arrivals(draw: np.random.Generator, scenario: Scenario, n_requests: int) -> np.ndarray:
    """Return the times in s of about so many arrivals; with bursts at least two windows of them."""
    if not scenario.burst:
        return np.cumsum(draw.exponential(1 / scenario.rate_per_s, n_requests))
    n_windows = max(2, round(n_requests / scenario.rate_per_s / WINDOW_S))
    shape = 1 / scenario.burst**2
    counts = draw.poisson(scenario.rate_per_s * WINDOW_S * draw.gamma(shape, 1 / shape, n_windows))
    times = [(at + np.sort(draw.random(n))) * WINDOW_S for at, n in enumerate(counts)]
    return np.concatenate([*times, [n_windows * WINDOW_S]])


def simulate(scenario: Scenario, *, n_requests: int = 10_000, replications: int = 8, seed: int = 0) -> Simulated:
    """Return what a scenario comes to. Of more than GROUP replicas a group is simulated at its part of the rate."""
    if (part := GROUP / scenario.replicas) < 1:
        scenario = scenario.model_copy(update={"rate_per_s": scenario.rate_per_s * part, "replicas": GROUP})
    runs = [_Replication(scenario, n_requests, seed + i) for i in range(replications)]
    both = [run.small_ms + run.large_ms for run in runs]
    n_refused = sum(run.n_refused for run in runs)
    return Simulated(
        mean_ms=_over(both, np.mean),
        **{f"p{q}_ms": _over(both, partial(np.percentile, q=q)) for q in (50, 95, 99)},
        small_p95_ms=_over([run.small_ms for run in runs], partial(np.percentile, q=95)),
        latencies_ms=quantiles([*itertools.chain(*both)]),
        refused=n_refused / max(1, n_refused + sum(map(len, both))),
    )


def _over(latencies: Iterable[list[float]], figure: Callable[[list[float]], Any]) -> Estimate:
    values = [float(figure(of_one)) for of_one in latencies if of_one]
    return ratio_interval(values, np.ones(len(values)))
