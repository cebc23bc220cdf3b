"""What comes in the busiest hour and what becomes of it: as given, by the ledger or the evaluation, or assumed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np

from smallfirst.billing.forecast import DAYS
from smallfirst.billing.live import HISTORY
from smallfirst.billing.traffic import TaskPeriod, periods
from smallfirst.capacity.simulation import WINDOW_S, quantiles
from smallfirst.evaluation.results import Evaluation
from smallfirst.records import Record
from smallfirst.report.formats import count, percent
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import LedgerRow

ASSUMED_PEAK = 3.0
"""Rate of the busiest hour over the mean rate where nothing is known: office hours of one time zone."""
MIN_ANSWERS = 200
"""Answers in the ledger from which it is believed rather than the evaluation."""
MIN_WINDOWS = 10


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
