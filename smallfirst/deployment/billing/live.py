"""The report of a served task from its ledger: who answered, what it cost and saved, and from when that pays."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate

from pydantic import computed_field

from smallfirst.base.records import Record
from smallfirst.deployment.billing.saved import Amount, MachineCost, Saving, is_small, machine_costs, savings
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.sums import Sums
from smallfirst.models.pricing import PriceBook, format_usd
from smallfirst.path.report.measures import HOURS_PER_MONTH, break_even_requests

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
    """What a task did, cost and saved in a time."""

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
        idle = self.costs[IDLE]
        return self.saving.saved_usd.times(1, less=idle) if idle else self.saving.saved_usd

    @computed_field  # type: ignore[prop-decorator]
    @property
    def month_rent_usd(self) -> float:
        """USD that this task's part of the machines costs in a month without a pause; 0 where none was up."""
        return math.fsum(one.usd_per_hour * HOURS_PER_MONTH * one.part for one in self.machines if one.up_s)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def pays_from(self) -> int | None:
        """Requests like these a month that earn that rent; None: no number does, or nobody knows."""
        if self.saved_usd is None or not self._n:
            return None
        rent_usd = math.fsum(one.rent_usd for one in self.machines if one.up_s)
        return break_even_requests(self.month_rent_usd, 0.0, 1000 * (self.saved_usd.usd + rent_usd) / self._n)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def paid_back_after(self) -> int | None:
        """Requests like these after which the saving has paid what was spent once; None as for `pays_from`."""
        if self.saved_usd is None or not self._n:
            return None
        return break_even_requests(math.fsum(self.once.values()), 0.0, 1000 * self.saved_usd.usd / self._n)

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

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """Whether the small model pays, in plain words."""
        if self.saving is None or (saved := self.saved_usd) is None:
            return "Nothing can be said of a saving: nobody knows what the large model costs here."
        said = [_paid(saved)]
        if self.month_rent_usd:
            from_ = f"from {self.pays_from:,} requests on" if self.pays_from is not None else "at no number of requests"
            rent = f"A month of its machines ({format_usd(self.month_rent_usd)}) is earned {from_}"
            said.append(f"{rent}; this time had {self._n:,}.")
        if once := math.fsum(self.once.values()):
            after = self.paid_back_after
            when = "never paid back" if after is None else f"paid back after {after:,} requests"
            said.append(f"What was spent once ({format_usd(once)}) is {when}.")
        if self.saving.basis != "audits":
            said.append(
                f"The large model's price is {self.saving.basis_in_words}; audits of live answers measure it "
                "(routing.monitor.audit_share)."
            )
        return " ".join(said)

    @property
    def _n(self) -> int:
        return self.saving.n_small + self.saving.n_large if self.saving else 0


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
        costs=_costs(rows, machines),
        once=once,
        saving=next(iter(savings(ledger, since, until, evaluated=known, task=task)), None),
        machines=machines,
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


def _costs(rows: Sequence[Sums], machines: Sequence[MachineCost]) -> dict[str, float]:
    answered = [row for row in rows if (row.kind, row.outcome) == ("answer", "answered")]
    small = [row for row in answered if is_small(row.stage)]
    large = [row for row in answered if row.stage == "large"]
    other = [row for row in rows if row.kind == "answer" and row not in (*small, *large)]
    drafts_usd = math.fsum(row.draft_usd for row in large)
    return {
        "answers that stayed small": math.fsum(row.cost_usd for row in small),
        "answers of the large model": math.fsum(row.cost_usd for row in large) - drafts_usd,
        "drafts that were discarded": drafts_usd,
        "audits": math.fsum(row.cost_usd for row in rows if row.kind == "audit"),
        "requests without an answer": math.fsum(row.cost_usd for row in other),
        IDLE: math.fsum(one.uncharged_usd for one in machines),
    }


def _paid(saved: Amount) -> str:
    """Return whether the small model paid, in plain words; `saved` has the machines' rent paid."""
    if saved.low_usd is None or saved.high_usd is None:
        return f"Not decided: {saved} saved by the figures so far, which are too few for a range."
    if saved.low_usd > 0:
        return f"The small model pays: it saved {saved}."
    if saved.high_usd < 0:
        more = Amount(usd=-saved.usd, low_usd=-saved.high_usd, high_usd=-saved.low_usd, n=saved.n)
        return f"Keep the API: with the small model this time cost more, by {more}."
    return f"Not decided: it saved {saved}, which can be a loss or a saving."
