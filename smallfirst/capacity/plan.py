"""How many machines of which kind a demand needs for a latency in the busiest hour, at what use and cost.

What comes in the busiest hour and what becomes of it is as given, by the ledger or the evaluation, or assumed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from pydantic import computed_field

from smallfirst.billing.forecast import DAYS
from smallfirst.billing.live import HISTORY
from smallfirst.billing.traffic import TaskPeriod, periods
from smallfirst.capacity.measurement import Measurement
from smallfirst.capacity.simulation import WINDOW_S, Scenario, Simulated, quantiles, simulate
from smallfirst.evaluation.results import Evaluation
from smallfirst.pricing.money import format_usd
from smallfirst.pricing.prices import PriceBook
from smallfirst.records import Record
from smallfirst.report.economics import HOURS_PER_MONTH
from smallfirst.report.formats import count, ms, percent
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import LedgerRow

ASSUMED_PEAK = 3.0
"""Rate of the busiest hour over the mean rate where nothing is known: office hours of one time zone."""
MIN_ANSWERS = 200
"""Answers in the ledger from which it is believed rather than the evaluation."""
MIN_WINDOWS = 10
MOST_REFUSED = 0.001
"""Part of requests that may be refused in the busiest hour."""
TRUSTED_USE = 0.5
"""Use up to which the forecast is near what a load test shows: at 0.3 the p95 seen was 1.0 to 1.4 times the one
foretold, at 0.7 up to 3.3 times (`benchmarks/results/plan.md`)."""
_MOST_TRIED, _STEP = 10, 1.15
"""Numbers of machines that are tried, and the growth from one that is too small to the next."""
_SLOWER = 2.0
"""What a large model of one's own may take in the busiest hour, as a multiple of its p95 when it is idle."""


class Demand(Record):
    """The requests of a task."""

    requests_per_month: float
    peak: float
    """Rate of the busiest hour of the day over the mean rate."""
    burst: float
    """Coefficient of variation of the rate between windows of 10 s of that hour; 0: Poisson."""
    share_large: float
    """Part that goes on to the large model, in [0, 1]."""
    share_asked: float
    """Part that the large model answers, audits included."""
    large_ms: tuple[float, ...]
    """Latencies of the large model; empty where none is known."""
    large_usd: float | None
    """What it bills for a request; None if unknown."""
    sources: tuple[str, ...]
    """A clause for each figure that was not given."""

    @property
    def peak_per_s(self) -> float:
        return self.requests_per_month / (DAYS * 86400) * self.peak


def demand(
    requests_per_month: float,
    ledger: Ledger | None,
    task: str,
    *,
    routed: Evaluation | None = None,
    large: Evaluation | None = None,
    audit_share: float = 0.0,
    peak: float | None = None,
    burst: float | None = None,
) -> Demand:
    """Return the demand: what is given, else what the ledger shows, else the evaluations of a run, else assumed."""
    until, sources = datetime.now(UTC), list[str]()
    hours = periods(ledger, task, until - HISTORY, until, every="hour") if ledger else ()
    if peak is None:
        peak = hourly_peak(hours)
        how = f"{peak:.2g} × the mean rate: the ledger's" if peak else f"{ASSUMED_PEAK:g} × the mean rate: assumed"
        sources.append(f"busiest hour {how} (--peak)")
    if burst is None:
        burst = _burst(ledger, task, hours)
        how = "Poisson: assumed" if burst is None else f"rate varies by {percent(burst, digits=0)}: the ledger's"
        sources.append(f"arrivals between 10 s of that hour: {how} (--burst)")
    n, n_large = sum(hour.n for hour in hours), sum(hour.n_large for hour in hours)
    share, of = (routed.share("large"), f"{count(len(routed.rows))} test rows") if routed else (0.0, "no evaluation")
    if n >= MIN_ANSWERS:
        share, of = n_large / n, f"{count(n)} answers in the ledger"
    sources.append(f"{percent(share)} of requests go on to the large model: {of}")
    waits, of = (_large_ms(ledger, task), "ledger") if ledger and n_large >= MIN_ANSWERS else ([], "")
    if not waits and large:
        waits, of = [row.latency_ms for row in large.rows], "last run's evaluation"
    usd = large.cost_usd_per_1k / 1000 if large else None
    if n_large >= MIN_ANSWERS:
        usd = math.fsum(hour.large_usd - hour.draft_usd for hour in hours) / n_large
    if waits:
        sources.append(f"the large model's latency and price: the {of}'s; it answers any number at once")
    return Demand(
        requests_per_month=requests_per_month,
        peak=peak or ASSUMED_PEAK,
        burst=burst or 0.0,
        share_large=share,
        share_asked=share + (1 - share) * audit_share * bool(waits),
        large_ms=quantiles(waits),
        large_usd=usd,
        sources=tuple(sources),
    )


def hourly_peak(hours: Sequence[TaskPeriod]) -> float | None:
    """Return the mean rate of the busiest hour of the day over the mean rate; None below two whole days."""
    ends = {hours[0].period[:10], hours[-1].period[:10]} if hours else set()
    whole = [hour.n for hour in hours if hour.period[:10] not in ends]
    if len(whole) < 48 or not any(whole):
        return None
    profile = np.asarray(whole).reshape(-1, 24).mean(axis=0)
    return float(profile.max() / profile.mean())


def _burst(ledger: Ledger | None, task: str, hours: Sequence[TaskPeriod]) -> float | None:
    busiest = max(hours, key=lambda hour: hour.n, default=None)
    if ledger is None or busiest is None or busiest.n < MIN_ANSWERS:
        return None
    begin = datetime.fromisoformat(f"{busiest.period}:00:00+00:00")
    rows = ledger.scan(LedgerRow, begin, begin + timedelta(hours=1), task=task)
    return dispersion([(row.at - begin).total_seconds() for row in rows])


def dispersion(times: Sequence[float]) -> float | None:
    """Return the coefficient of variation, between windows of 10 s, of the rate behind arrivals at these seconds.

    It is the variance of counts beyond their mean, as of a mixed Poisson process. None below MIN_WINDOWS windows.
    """
    at = np.asarray(times) - min(times, default=0.0)
    if (whole := int(at.max(initial=0.0) // WINDOW_S)) < MIN_WINDOWS:
        return None
    counts = np.histogram(at, bins=whole, range=(0, whole * WINDOW_S))[0]
    return float(math.sqrt(max(0.0, counts.var(ddof=1) - counts.mean())) / counts.mean())


def _large_ms(ledger: Ledger, task: str) -> list[float]:
    buckets: Counter[int] = Counter()
    for row in ledger.sums(by=("stage",), task=task, kind="answer", stage="large", outcome="answered"):
        buckets.update(row.latency_ms_buckets)
    return [1.1 ** (i + 0.5) for i in sorted(buckets.elements())]


class Choice(Record):
    """A number of machines, and what it comes to in the busiest hour."""

    machine: str
    """Its name under `prices.machines`; empty: the one under `prices.machine`."""
    machines: int
    replicas: int
    """Servers on these machines."""
    utilisation: float
    """In the busiest hour; 1 is the highest rate that was measured."""
    simulated: Simulated
    meets: bool
    machines_usd: float
    """Rent of a month, those of a large model of one's own included."""
    large_usd: float | None
    """The large model's bill of a month for escalated requests and audits; None if its price is unknown."""
    large: Choice | None = None
    """The machines of a large model of one's own; None: it is somebody else's."""

    @property
    def total_usd(self) -> float:
        return self.machines_usd + (self.large_usd or 0.0)

    def __str__(self) -> str:
        kind = f" ({self.machine})" if self.machine else ""
        return f"{count(self.machines)} machine{'s' * (self.machines > 1)}{kind}"


class CapacityPlan(Record):
    """What was tried, and the cheapest that meets the target."""

    demand: Demand
    p95_ms: float
    only_small: bool
    """True if the target holds for requests that stay small alone, since no machine speeds up the others."""
    tried: tuple[Choice, ...]
    assumptions: tuple[str, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def chosen(self) -> Choice | None:
        """The cheapest that meets the target; None if none does."""
        return min((one for one in self.tried if one.meets), key=lambda one: one.total_usd, default=None)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def api_usd(self) -> float | None:
        """What the large model alone bills for a month; None if its price is unknown."""
        usd = self.demand.large_usd
        return None if usd is None else usd * self.demand.requests_per_month

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """What to do, in plain words."""
        return " ".join(self._sentences())

    def _sentences(self) -> Iterator[str]:
        best, api_usd = self.chosen, self.api_usd
        if self.only_small:
            yield (
                f"No number of machines brings the p95 of all requests to {ms(self.p95_ms)}: the large model, to which "
                f"{percent(self.demand.share_large)} go on, takes longer. The target is held for what stays small."
            )
        if best is None:
            yield "No number that was tried meets the target: take a faster machine, a smaller model, or a later p95."
            return
        if api_usd is not None and best.total_usd >= api_usd:
            yield f"Keep the API: it bills {format_usd(api_usd)} a month, and small first on {best} would cost"
            yield f"{format_usd(best.total_usd)}."
            return
        yield "One machine is enough:" if best.machines == 1 else f"Take {best}:"
        yield f"{percent(best.utilisation, digits=0)} used in the busiest hour."
        if best.utilisation > TRUSTED_USE:
            yield "Above half, a p95 of up to 2.4 times the one foretold was measured:"
            yield "test this load, or take one more."
        if best.large:
            yield f"The large model takes {best.large}, {percent(best.large.utilisation, digits=0)} used."
        instead = "" if api_usd is None else f"; the large model alone would bill {format_usd(api_usd)}"
        yield f"A month costs {format_usd(best.total_usd)}, {format_usd(best.machines_usd)} of it machines{instead}."
        if best.machines == 1:
            yield "If it fails nothing answers: --spare 1 adds another."


def capacity_plan(
    demand: Demand, measured: Sequence[Measurement], prices: PriceBook, *, p95_ms: float, **sizing: Any
) -> CapacityPlan:
    """Return the plan over the machines that were measured, with each large model of one's own and without.

    `sizing` is as in `tried`. Raise ConfigError if a machine has no price.
    """
    choices: list[Choice] = []
    only_small = True
    for large in (None, *(one for one in measured if one.large)):
        own, waits = None, np.asarray(demand.large_ms or [0.0])
        if large:
            waits = np.asarray(large.rates.work) * 1000 / large.rates.by_number[0]
            n, target = demand.requests_per_month * demand.share_asked, _SLOWER * float(np.percentile(waits, 95))
            asked = demand.model_copy(update={"requests_per_month": n, "share_large": 0.0, "share_asked": 0.0})
            *_, own = tried(asked, large, prices, target, **sizing)
        # Whatever the machines, so many requests are late.
        slow = float(np.mean(waits > p95_ms)) * demand.share_large >= 0.05
        only_small = only_small and slow
        for small in (one for one in measured if not one.large):
            choices += tried(demand, small, prices, p95_ms, own=own, only_small=slow, **sizing)
    unknown = sorted(set(prices.machines) - {one.machine for one in measured})
    assumptions = (
        *(*demand.sources, *map(str, measured)),
        *(f"{name}: not measured; on it:  smallfirst plan task.yaml --measure --machine {name}" for name in unknown),
        "a server answers 64 requests at once, 256 wait (serve's max_in_flight and max_queue); no network in between",
        f"rent of {HOURS_PER_MONTH:g} hours a month, whether used or not",
    )
    return CapacityPlan(
        demand=demand, p95_ms=p95_ms, only_small=only_small, tried=tuple(choices), assumptions=assumptions
    )


def tried(
    demand: Demand,
    measured: Measurement,
    prices: PriceBook,
    p95_ms: float,
    *,
    own: Choice | None = None,
    only_small: bool = False,
    spare: int = 0,
    balance: str = "two choices",
    n_requests: int = 10_000,
) -> Iterator[Choice]:
    """Yield numbers of machines, from the fewest that can keep up to the first that meets the target.

    `own` has the times of a large model of one's own, `spare` machines are added, `n_requests` are simulated.
    """
    scenario = Scenario.model_validate({
        "rate_per_s": demand.peak_per_s, "rates": measured.rates, "burst": demand.burst, "balance": balance,
        "share_large": demand.share_large,
        "large_ms": (own.simulated.latencies_ms if own else demand.large_ms) or (0.0,),
    })  # fmt: skip
    rent = prices.machine_named(measured.machine).usd_per_hour * HOURS_PER_MONTH
    usd = None if demand.large_usd is None else demand.requests_per_month * demand.share_asked * demand.large_usd
    n = max(1, math.ceil(scenario.utilisation / measured.processes * 1.0001))
    for _ in range(_MOST_TRIED):
        sized = scenario.model_copy(update={"replicas": n * measured.processes})
        found = simulate(sized, n_requests=n_requests)
        p95 = found.small_p95_ms if only_small else found.p95_ms
        meets = p95.high <= p95_ms and found.refused <= MOST_REFUSED
        yield Choice(
            machine=measured.machine,
            machines=n + spare,
            replicas=(n + spare) * measured.processes,
            utilisation=sized.utilisation,
            simulated=found,
            meets=meets,
            machines_usd=(n + spare) * rent + (own.machines_usd if own else 0.0),
            large_usd=0.0 if own else usd,
            large=own,
        )
        if meets:
            return
        n = max(n + 1, round(n * _STEP))
