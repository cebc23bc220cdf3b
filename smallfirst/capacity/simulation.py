"""A queueing simulation of replicas that draft every request, and of the large path behind them.

Each replica is a flow-equivalent server (Chandy, Herzog and Woo 1975): with n requests in it, it completes as many a
second as were measured with n under way, so that batches, threads and waiting inside the program are in the
measurement. A request that no slot is free for waits, first come first served; those in slots advance alike. One slot
of a constant rate is M/G/1; c slots of a rate in proportion to n, up to c, are M/G/c.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Sequence
from functools import cached_property
from heapq import heappop, heappush
from typing import Any, Literal

import numpy as np
import simpy
from pydantic import Field

from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, ratio_interval

WINDOW_S = 10.0
"""Seconds for which an over-dispersed rate stays as it is; `demand` measures in windows of the same length."""
GROUP = 16
"""Replicas that are simulated of a larger number: more of them share load a little better still."""
WARM_UP = 0.2
"""First part of each replication that is cut."""


class Rates(Record):
    """Throughput of one replica by the number of requests under way."""

    per_s: dict[int, float] = Field(min_length=1)
    """Answers a second with so many requests under way all the time; between two of them linear, then constant."""
    work: tuple[float, ...] = (1.0,)
    """Times of single requests relative to their mean, of which each request draws one."""

    @property
    def most_per_s(self) -> float:
        """Capacity: the highest rate."""
        return max(self.per_s.values())

    @cached_property
    def by_number(self) -> tuple[float, ...]:
        """Rates with 1, 2, … requests under way; a rate below that of fewer requests is noise and left out."""
        n = sorted(self.per_s)
        rates = np.maximum.accumulate([self.per_s[i] for i in n])
        return tuple(np.interp(np.arange(1, n[-1] + 1), n, rates).tolist())

    @property
    def slots(self) -> int:
        """Requests that advance at once: what several under way gain over one."""
        return max(1, round(self.by_number[-1] / self.by_number[0]))


class Scenario(Record):
    """What is simulated."""

    rate_per_s: float
    """Mean rate of arrivals at all replicas."""
    small: Rates
    """One replica of what drafts every request."""
    replicas: int = 1
    burst: float = 0.0
    """Coefficient of variation of the rate between windows of 10 s; 0: Poisson arrivals."""
    share_large: float = 0.0
    """Part of the requests that goes on to the large model, in [0, 1]."""
    large_ms: tuple[float, ...] = ()
    """Latencies of the large model, of which each request draws one, where somebody else has its machines."""
    large: Rates | None = None
    """One replica of a large model of one's own."""
    large_replicas: int = 1
    share_audited: float = 0.0
    """Part of the others that a large model of one's own answers as well, for nobody waits for it."""
    in_flight: int = 64
    """Requests that a replica answers at once, the large model's time included (`serve`'s max_in_flight)."""
    queue: int = 256
    """Further ones that wait; the rest is refused (`serve`'s max_queue)."""
    balance: Literal["two choices", "random"] = "two choices"
    """`two choices`: the less busy of two replicas, as Ray Serve does · `random`: any, as a Kubernetes Service does."""

    @property
    def utilisation(self) -> float:
        """Arrivals over the most that the replicas can answer; from 1 on they cannot keep up."""
        return self.rate_per_s / (self.small.most_per_s * self.replicas)

    @property
    def large_utilisation(self) -> float:
        """The same of the large model's replicas, audits included; 0 if they are somebody else's."""
        if self.large is None:
            return 0.0
        asked = self.share_large + (1 - self.share_large) * self.share_audited
        return self.rate_per_s * asked / (self.large.most_per_s * self.large_replicas)


class Simulated(Record):
    """Latencies in ms by quantile, each the mean of independent replications with its interval."""

    p50_ms: Estimate
    p95_ms: Estimate
    p99_ms: Estimate
    small_p95_ms: Estimate
    """Of the requests that stay small."""
    mean_ms: Estimate
    refused: float
    """Part of the requests that found no place, in [0, 1]."""


class _Station:
    """One replica. All requests in slots advance alike, so each ends when the common progress reaches its own mark."""

    def __init__(self, env: simpy.Environment, rates: Rates) -> None:
        self.env, self.rates, self.slots, self.n = env, rates.by_number, rates.slots, 0
        self._waiting: deque[tuple[float, simpy.Event]] = deque()
        self._serving: list[tuple[float, int, simpy.Event]] = []
        self._progress = self._since = self._speed = 0.0
        self._order = itertools.count()
        self._timer: simpy.Event | None = None

    def serve(self, work: float) -> simpy.Event:
        """Return the event of the end of a request."""
        done = self.env.event()
        self.n += 1
        self._waiting.append((work, done))
        self._advance()
        return done

    def _advance(self) -> None:
        now = self.env.now
        self._progress += (now - self._since) * self._speed
        self._since = now
        while self._waiting and len(self._serving) < self.slots:
            work, done = self._waiting.popleft()
            heappush(self._serving, (self._progress + work, next(self._order), done))
        self._speed = self.rates[min(self.n, len(self.rates)) - 1] / len(self._serving) if self._serving else 0.0
        if self._serving:
            left = self._serving[0][0] - self._progress
            self._timer = self.env.timeout(max(0.0, left / self._speed))
            self._timer.callbacks.append(self._finish)

    def _finish(self, timer: simpy.Event) -> None:
        if timer is self._timer:  # else others came since, and a later one is set
            self.n -= 1
            heappop(self._serving)[2].succeed()
            self._advance()


class _Replica:
    def __init__(self, env: simpy.Environment, scenario: Scenario) -> None:
        self.station, self.n = _Station(env, scenario.small), 0
        self.turns = simpy.Resource(env, scenario.in_flight)


class _Run:
    """One replication."""

    def __init__(self, scenario: Scenario, n_requests: int, seed: int) -> None:
        self.scenario, self.env, self.draw = scenario, simpy.Environment(), np.random.default_rng(seed)
        self.latencies: list[tuple[float, bool]] = []
        self.n_refused = 0
        self.times = _arrivals(self.draw, scenario, n_requests)
        self.begin = WARM_UP * self.times[-1]
        self.replicas = [_Replica(self.env, scenario) for _ in range(scenario.replicas)]
        larges = range(scenario.large_replicas if scenario.large else 0)
        self.larges = [_Station(self.env, scenario.large) for _ in larges]  # type: ignore[arg-type]
        n = len(self.times)
        self.work = self.draw.choice(scenario.small.work, n) / np.mean(scenario.small.work)
        self.fate = self.draw.random(n)
        self.chosen = self.draw.integers(0, scenario.replicas, (n, 2))
        waits = scenario.large.work if scenario.large else scenario.large_ms or (0.0,)
        self.large = self.draw.choice(waits, n) / (np.mean(waits) if scenario.large else 1000.0)

    def run(self) -> None:
        self.env.process(self._come())
        self.env.run(until=self.times[-1])

    def _come(self) -> Generator[simpy.Event]:
        for i, at in enumerate(self.times):
            yield self.env.timeout(at - self.env.now)
            self.env.process(self._request(i))

    def _request(self, i: int) -> Generator[simpy.Event]:
        began, s = self.env.now, self.scenario
        first, second = (self.replicas[at] for at in self.chosen[i])
        one = second if s.balance == "two choices" and second.n < first.n else first
        if one.n >= s.in_flight + s.queue:
            self.n_refused += began >= self.begin
            return
        one.n += 1
        escalated = bool(self.fate[i] < s.share_large)
        with one.turns.request() as turn:
            yield turn
            yield one.station.serve(self.work[i])
            if escalated:
                yield self._ask_large(i)
        one.n -= 1
        if began >= self.begin:
            self.latencies.append(((self.env.now - began) * 1000, escalated))
        if self.larges and not escalated and self.fate[i] < s.share_large + (1 - s.share_large) * s.share_audited:
            yield self._ask_large(i)

    def _ask_large(self, i: int) -> simpy.Event:
        if not self.larges:
            return self.env.timeout(self.large[i])
        return min(self.larges, key=lambda station: station.n).serve(self.large[i])


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
        scaled = {"rate_per_s": scenario.rate_per_s * part, "replicas": GROUP}
        scaled["large_replicas"] = max(1, round(scenario.large_replicas * part))
        scenario = scenario.model_copy(update=scaled)
    runs = [_Run(scenario, n_requests, seed + i) for i in range(replications)]
    for run in runs:
        run.run()
    n_refused, n_answered = sum(run.n_refused for run in runs), sum(len(run.latencies) for run in runs)
    return Simulated(
        **{f"p{q}_ms": _over(runs, lambda x, q=q: np.quantile(x, q / 100)) for q in (50, 95, 99)},
        small_p95_ms=_over(runs, lambda x: np.quantile(x, 0.95), only_small=True),
        mean_ms=_over(runs, np.mean),
        refused=n_refused / max(1, n_answered + n_refused),
    )


def _over(runs: Sequence[_Run], figure: Any, *, only_small: bool = False) -> Estimate:
    kept = [[ms for ms, escalated in run.latencies if not (only_small and escalated)] for run in runs]
    values = [float(figure(latencies)) for latencies in kept if latencies]
    return ratio_interval(values, np.ones(len(values)))
