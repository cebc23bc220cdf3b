"""The report of a served task from its ledger: who answered, what it cost, what it saved, and what a month will."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import accumulate

from pydantic import computed_field

from smallfirst.billing.forecast import DAYS, Forecast, forecast
from smallfirst.billing.machines import MachineCost, machine_costs
from smallfirst.billing.saved import Amount, Saving, savings
from smallfirst.billing.traffic import TaskPeriod, periods
from smallfirst.pricing.money import format_usd
from smallfirst.pricing.prices import PriceBook
from smallfirst.records import Record
from smallfirst.report.formats import accurate
from smallfirst.serving.ledger.ledger import Ledger

HISTORY = timedelta(days=56)
"""How far back the forecast looks: eight weeks."""
MIN_DAYS = 8
"""Whole days from which days are the units of its ranges; hours before."""
IDLE = "machine time that no answer carries"
"""Kind of cost; negative if the machines worked more than `prices` state."""


class ModelLine(Record):
    """Answers of one model at one stage."""

    stage: str
    model: str
    """Name with its version; empty for answers that were left to a person."""
    n: int
    share: float
    """Of all answers, in [0, 1]."""
    cost_usd: float
    """Drafts that were discarded before it answered included."""
    busy_s: float
    """Seconds that machines of our own worked for these answers."""
    n_cost_unknown: int
    p50_ms: float
    p95_ms: float

    @property
    def usd_per_1k(self) -> float:
        return 1000 * self.cost_usd / self.n


class LiveReport(Record):
    """What a task did and cost in a time, and what a month of it will."""

    task: str
    since: datetime
    until: datetime
    outcomes: dict[str, int]
    """Requests by how they ended: `answered`, `refused`, `left`, `failed`."""
    models: tuple[ModelLine, ...]
    costs: dict[str, float]
    """USD by kind; machine time that no answer carries is in it, negative where answers carry too much."""
    once: dict[str, float]
    """USD spent once, by kind, since the ledger began."""
    saving: Saving | None
    """None without an answer."""
    machines: tuple[MachineCost, ...]
    forecast: Forecast | None
    """None while nobody knows what the large model bills."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def cost_usd(self) -> float:
        """Cost of the time, expenses that come once left out."""
        return math.fsum(self.costs.values())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def saved_usd(self) -> Amount | None:
        """USD saved in this time, the machines' whole rent paid; None without an answer of known price."""
        if self.saving is None or self.saving.saved_usd is None:
            return None
        return self.saving.saved_usd.times(1, less=self.costs[IDLE])

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """What it cost and saved, as names and values in words."""
        return tuple((name, value) for name, value in self._facts() if value)

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "without an answer", ", ".join(f"{n:,} {how}" for how, n in self.outcomes.items() if how != "answered")
        for name, usd in self.costs.items():
            yield name, format_usd(usd) if usd else ""
        yield "cost of this time", format_usd(self.cost_usd)
        unknown = sum(one.n_cost_unknown for one in self.models)
        yield "of unknown cost", f"{unknown:,} answers" if unknown else ""
        if (saving := self.saving) and saving.n_small and saving.large_usd:
            own = saving.small_usd + saving.draft_usd + saving.audit_usd + self.costs[IDLE]
            yield (
                "per 1,000 that stayed small",
                (
                    f"{format_usd(1000 * own / saving.n_small)} with drafts, audits and all rent; "
                    f"by the large model {saving.large_usd.times(1000)}"
                ),
            )
        yield "saved by answers", self.saving.in_words.removeprefix("saved ") if self.saving else ""
        yield "saved, all rent paid", str(self.saved_usd or "") if self.costs[IDLE] else ""
        for one in self.machines:
            yield f"machine {one.machine}".strip(), one.in_words
        for kind, usd in self.once.items():
            yield f"spent once: {kind}", format_usd(usd)
        if self.forecast and (v := self.forecast.requests):
            share = self.forecast.share_small
            yield (
                "next 30 days",
                f"{v.value:,.0f} requests ({v.low:,.0f} to {v.high:,.0f}), {accurate(share)} of them small",
            )

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """Whether the small model pays, in plain words."""
        if self.forecast is None:
            return "Nothing can be said of a saving: nobody knows what the large model costs here."
        return self.forecast.verdict


def live_report(
    ledger: Ledger, task: str, prices: PriceBook, since: datetime, until: datetime, *, evaluated: Amount | None = None
) -> LiveReport:
    """Return the report from the hour of `since` (UTC).

    `evaluated` is the large model's mean cost in the last run, as `billing.saved.evaluated_costs` gives it.
    """
    since, until = since.astimezone(UTC).replace(minute=0, second=0, microsecond=0), until.astimezone(UTC)
    rows = ledger.sums(since, until, by=("kind", "stage", "outcome"), latencies=False, task=task)
    outcomes = Counter[str]()
    for row in rows:
        outcomes[row.outcome] += row.n * (row.kind == "answer")
    machines = machine_costs(ledger, prices, since, until, task=task)
    expenses = [
        row for row in ledger.sums(by=("kind",), latencies=False, task=task) if row.kind not in ("answer", "audit")
    ]
    once = {row.kind: row.cost_usd for row in expenses}
    known = {} if evaluated is None else {task: evaluated}
    return LiveReport(
        task=task,
        since=since,
        until=until,
        outcomes={how: n for how, n in outcomes.items() if n},
        models=_models(ledger, task, since, until),
        costs=_costs(TaskPeriod.of(rows), machines),
        once=once,
        saving=_saving(ledger, task, since, until, known),
        machines=machines,
        forecast=_forecast(ledger, task, prices, until, known, math.fsum(once.values())),
    )


def latency_ms(buckets: Mapping[int, int], q: float) -> float:
    """Return the q-quantile of latencies counted by `Sums.latency_ms_buckets`, exact to 5 %; 0 without any."""
    counts = sorted(buckets.items())
    reached = accumulate(n for _, n in counts)
    wanted = q * sum(buckets.values())
    return next((1.1 ** (i + 0.5) for (i, _), n in zip(counts, reached, strict=True) if n >= wanted), 0.0)


def _models(ledger: Ledger, task: str, since: datetime, until: datetime) -> tuple[ModelLine, ...]:
    rows = ledger.sums(since, until, by=("stage", "answered_by"), task=task, kind="answer", outcome="answered")
    answers = sum(row.n for row in rows)
    lines = (
        ModelLine(
            stage=row.stage,
            model=row.answered_by,
            share=row.n / answers,
            p50_ms=latency_ms(row.latency_ms_buckets, 0.5),
            p95_ms=latency_ms(row.latency_ms_buckets, 0.95),
            **{name: getattr(row, name) for name in ("n", "cost_usd", "busy_s", "n_cost_unknown")},
        )
        for row in rows
    )
    return tuple(sorted(lines, key=lambda line: -line.n))


def _costs(whole: TaskPeriod, machines: Iterable[MachineCost]) -> dict[str, float]:
    return {
        "answers that stayed small": whole.small_usd,
        "answers of the large model": whole.large_usd - whole.draft_usd,
        "drafts that were discarded": whole.draft_usd,
        "audits": whole.audit_usd,
        "requests without an answer": whole.other_usd,
        IDLE: math.fsum(one.uncharged_usd for one in machines),
    }


def _saving(
    ledger: Ledger, task: str, since: datetime, until: datetime, evaluated: Mapping[str, Amount]
) -> Saving | None:
    return next(iter(savings(ledger, since, until, evaluated=evaluated, task=task)), None)


def _forecast(
    ledger: Ledger, task: str, prices: PriceBook, until: datetime, evaluated: Mapping[str, Amount], once_usd: float
) -> Forecast | None:
    since = until - HISTORY
    saving = _saving(ledger, task, since, until, evaluated)
    if saving is None or saving.large_usd is None:
        return None
    days = periods(ledger, task, since, until.replace(hour=0, minute=0, second=0, microsecond=0))
    whole = days[1:] if days and days[0].period > since.date().isoformat() else days  # the first day began with it
    units = whole if len(whole) >= MIN_DAYS else periods(ledger, task, since, until, every="hour")
    machines = machine_costs(ledger, prices, since, until, task=task)
    return forecast(
        whole,
        units,
        saving.large_usd,
        basis=saving.basis,
        rent_usd=sum(one.usd_per_hour * 24 * DAYS * one.part for one in machines if one.up_s),
        utilisation=max((one.utilisation or 0.0 for one in machines), default=0.0),
        once_usd=once_usd,
    )
