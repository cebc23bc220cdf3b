"""What a task saved: what the large model would have billed for the requests that stayed small, less what they cost.

Audits are a random sample of the answers that stayed small, with a known chance each, and the large model's bill for
them is known. Their weighted mean (Hájek 1971) times the number of such answers is the bill that did not come. Without
enough audits the mean of the escalated answers takes its place, which are other, often harder requests, and without
those the mean on the rows of the task's evaluation; `basis` says which.

Everything is as billed: prompt tokens that the large model read from its cache count at their price in the cache. Costs
that come once (training, labelling) and idle machines are not in it: a statement shows them beside it.

An answer is charged when it is given, at the utilisation that `prices` states. Only afterwards is it known how much
a machine worked: `MachineCost.uncharged_usd` is what is missing then, so that rows and it together are the rent.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import computed_field
from scipy import special

from smallfirst.base.errors import ConfigError, StageMissing
from smallfirst.base.paths import state_of
from smallfirst.base.records import Record
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.pricing import PriceBook, format_usd
from smallfirst.models.stages import Answerer, answerer
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.report.measures import HOURS_PER_MONTH, break_even_requests

Basis = Literal["audits", "escalated", "evaluation", "unknown"]
MIN_AUDITS = 10
"""Audits from which they are the basis: the interval of fewer covers too little where costs are skewed."""
_BASIS_IN_WORDS: dict[Basis, str] = {
    "audits": "measured on {n:,} of them, drawn at random and answered by the large model as well",
    "escalated": "the mean of {n:,} answers that the large model gave: other requests, so a rough guide",
    "evaluation": "the mean on {n:,} rows of the task's evaluation: not this traffic, so a rough guide",
    "unknown": "nothing tells what the large model costs here: no audits, no answers of it, no evaluation",
}

ANSWERS = {
    Answerer.SMALL: "answers of small models",
    Answerer.LARGE: "answers of the large model",
    Answerer.GENERAL: "answers of the general model",
    Answerer.PERSON: "requests left to a person",
    Answerer.NOBODY: "other answers",
}
"""Kinds of cost of answers, in plain words."""


class Amount(Record):
    """An amount in USD with its 95 % interval."""

    usd: float
    low_usd: float | None
    """None, as `high_usd`, where there is too little to tell an interval from."""
    high_usd: float | None
    n: int
    """Costs that it was estimated from."""

    def __str__(self) -> str:
        if self.low_usd is None or self.high_usd is None:
            return format_usd(self.usd)
        usd, low, high = (format_usd(amount, 3) for amount in (self.usd, self.low_usd, self.high_usd))
        return f"{usd} (95 %: {low} to {high})"

    @classmethod
    def around(cls, usd: float, half: float | None, n: int) -> Amount:
        """Return an amount whose interval reaches `half` to both sides; None: nobody knows how far."""
        return cls(
            usd=usd, low_usd=None if half is None else usd - half, high_usd=None if half is None else usd + half, n=n
        )

    @property
    def half_usd(self) -> float | None:
        return None if self.high_usd is None else self.high_usd - self.usd

    def times(self, factor: float, *, less: float = 0.0) -> Amount:
        """Return the amount times `factor`, less a known one."""
        half = self.half_usd
        return Amount.around(self.usd * factor - less, None if half is None else half * factor, self.n)


class Saving(Record):
    """What one task, or all together, saved in a period."""

    task: str
    """Empty for all tasks together."""
    n_small: int
    n_large: int
    """Answers that the large model or the general one gave."""
    large_usd: Amount | None
    """Mean bill of the large model for a request that stayed small; None where nothing tells."""
    would_have_usd: Amount | None
    """What it would have billed for all of them."""
    small_usd: float
    """What the answers that stayed small cost."""
    draft_usd: float
    """What drafts cost that were no answers: the large or the general model gave those, a person, or nobody."""
    audit_usd: float
    saved_usd: Amount | None
    """`would_have_usd` less the three costs; below 0 if sending everything to the large model would have been
    cheaper."""
    basis: Basis

    @property
    def share_small(self) -> float | None:
        """Share of answers that stayed small, in [0, 1]; None without answers."""
        answers = self.n_small + self.n_large
        return self.n_small / answers if answers else None

    @property
    def basis_in_words(self) -> str:
        return _BASIS_IN_WORDS[self.basis].format(n=self.would_have_usd.n if self.would_have_usd else 0)

    @property
    def in_words(self) -> str:
        return f"{f'saved {self.saved_usd}' if self.saved_usd else 'saving unknown'}: {self.basis_in_words}"


@dataclass
class CostSample:
    """Costs drawn with known chances, as sums from which mean and interval follow."""

    n: int = 0
    _weights: float = 0.0
    _costs: float = 0.0
    _spread: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def add(self, usd: float, propensity: float) -> None:
        """Add a cost that had this chance of being drawn, in (0, 1]."""
        self.n += 1
        self._weights += 1 / propensity
        self._costs += usd / propensity
        unseen = (1 - propensity) / propensity**2
        for power in range(3):
            self._spread[power] += unseen * usd**power

    def mean(self) -> Amount:
        """Return the mean of all costs, drawn or not; the interval has no width where all were drawn."""
        value = self._costs / self._weights
        zeroth, first, second = self._spread
        squares = second - 2 * value * first + value**2 * zeroth
        return _with_interval(value, squares / self._weights**2, self.n, self.n)


@dataclass
class Account:
    """What the saving of one task is made from, by rows or by sums over them."""

    n_small: int = 0
    small_usd: float = 0.0
    n_large: int = 0
    draft_usd: float = 0.0
    audit_usd: float = 0.0
    audits: CostSample = field(default_factory=CostSample)
    escalated: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))
    """By hour: the answers of the large model whose cost is known, and what they cost without drafts."""

    def add_answers(
        self, stage: str, hour: str, n: int, usd: float, *, n_unknown: int = 0, draft_usd: float = 0.0
    ) -> None:
        """Add answers of one hour and stage, whose costs sum to `usd`, `draft_usd` of it for discarded drafts."""
        who = answerer(stage)
        if who is Answerer.SMALL:
            self.n_small += n
            self.small_usd += usd
            return
        asked = who in (Answerer.LARGE, Answerer.GENERAL)
        self.n_large += n * asked
        self.draft_usd += draft_usd if asked else usd  # a person's and nobody's answers cost their drafts alone
        if who is Answerer.LARGE:
            known = self.escalated[hour]
            known[0] += n - n_unknown
            known[1] += usd - draft_usd

    def saving(self, task: str, evaluated: Amount | None = None) -> Saving:
        """Return the saving; `evaluated` is the large model's mean cost of a request in the task's evaluation."""
        basis, mean = self._large_cost(evaluated)
        spent = self.small_usd + self.draft_usd + self.audit_usd
        would = mean and mean.times(self.n_small)
        return Saving(
            task=task,
            n_small=self.n_small,
            n_large=self.n_large,
            large_usd=mean,
            would_have_usd=would,
            small_usd=self.small_usd,
            draft_usd=self.draft_usd,
            audit_usd=self.audit_usd,
            saved_usd=would and would.times(1, less=spent),
            basis=basis,
        )

    def _large_cost(self, evaluated: Amount | None) -> tuple[Basis, Amount | None]:
        if self.audits.n >= MIN_AUDITS:
            return "audits", self.audits.mean()
        hours = [(n, usd) for n, usd in self.escalated.values() if n]
        if len(hours) > 1 or (hours and evaluated is None):
            return "escalated", _mean_of_groups(hours)
        return ("evaluation", evaluated) if evaluated else ("unknown", None)


def savings(
    ledger: Ledger,
    since: datetime | None,
    until: datetime | None,
    *,
    evaluated: Mapping[str, Amount] | None = None,
    **equal: str,
) -> tuple[Saving, ...]:
    """Return what each task saved in the hours that have a part in [since, until), by name.

    With `task="tickets"` that one alone; `evaluated` as `evaluated_costs` gives it.
    """
    since, until = since and _hour(since), until and _hour(until, up=True)
    accounts: dict[str, Account] = defaultdict(Account)
    rows = ledger.sums(since, until, by=("task", "kind", "stage", "outcome"), every="hour", latencies=False, **equal)
    for one in rows:
        if one.kind == "audit":
            accounts[one.task].audit_usd += one.cost_usd
        elif one.task and (one.kind, one.outcome) == ("answer", "answered"):
            accounts[one.task].add_answers(
                one.stage, one.period, one.n, one.cost_usd, n_unknown=one.n_cost_unknown, draft_usd=one.draft_usd
            )
    for task, propensity, usd in ledger.audited_costs(since, until):
        if task in accounts:
            accounts[task].audits.add(usd, propensity)
    known = evaluated or {}
    return tuple(account.saving(task, known.get(task)) for task, account in sorted(accounts.items()))


def total(found: Iterable[Saving]) -> Saving:
    """Return all tasks together. What nobody knows of one is not in the sums, and `basis` is the weakest of them."""
    parts = tuple(found)
    ranks: tuple[Basis, ...] = ("audits", "escalated", "evaluation", "unknown")
    amounts = ("n_small", "n_large", "small_usd", "draft_usd", "audit_usd")
    known = [part for part in parts if part.n_small or part.n_large or part.audit_usd]
    return Saving(
        task="",
        large_usd=None,
        would_have_usd=_added([part.would_have_usd for part in known]),
        saved_usd=_added([part.saved_usd for part in known]),
        basis=max((part.basis for part in known), key=ranks.index, default="unknown"),
        **{name: sum(getattr(part, name) for part in parts) for name in amounts},
    )


def evaluated_costs(folders: Mapping[str, Path | None]) -> dict[str, Amount]:
    """Return the large model's mean cost of a request, in USD, on the test rows of each task's latest run, where known.

    `folders`: by task the folder of its task.yaml, in whose state folder the run is; None: in that of the moment. It is
    unknown where no row was billed, and in a run of another version.
    """
    found = dict[str, Amount]()
    for task, folder in folders.items():
        with state_of(folder) if folder else nullcontext(), suppress(StageMissing, ConfigError):
            large = RunFolder.latest(task).evaluation("large", "test")
            if large and any(row.cost_usd for row in large.rows):
                found[task] = _mean_of_groups([(1, row.cost_usd) for row in large.rows])
    return found


def _hour(at: datetime, *, up: bool = False) -> datetime:
    hour = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return hour + timedelta(hours=1) if up and hour < at else hour


def _mean_of_groups(groups: Sequence[tuple[float, float]]) -> Amount:
    """Return the mean cost from the numbers and the sums of independent groups, as the ratio of their totals."""
    n, usd = (math.fsum(column) for column in zip(*groups, strict=True))
    squares = math.fsum((part - usd / n * of) ** 2 for of, part in groups)
    return _with_interval(usd / n, squares / n**2, len(groups), int(n))


def _with_interval(usd: float, variance: float, groups: int, n: int) -> Amount:
    """Return an amount with Student's interval; `variance` is not yet corrected for so few independent groups."""
    if groups < 2:
        return Amount.around(usd, None, n)
    error = math.sqrt(max(0.0, variance) * groups / (groups - 1))
    return Amount.around(usd, float(special.stdtrit(groups - 1, 0.975)) * error, n)


def _added(parts: Sequence[Amount | None]) -> Amount | None:
    """Return the sum of independent amounts; None if there is none or one is unknown."""
    amounts = [part for part in parts if part is not None]
    if not amounts or len(amounts) < len(parts):
        return None
    halves = [one.half_usd for one in amounts]
    half = None if None in halves else math.hypot(*filter(None, halves))
    return Amount.around(math.fsum(one.usd for one in amounts), half, sum(one.n for one in amounts))


class MachineCost(Record):
    """What a machine cost over a time, and what of it was used."""

    machine: str = ""
    """Its name under `prices.machines`; empty: the one under `prices.machine`."""
    usd_per_hour: float
    up_s: float
    """Seconds for which it served; of several tasks, the part that this task's busy seconds are of all."""
    busy_s: float
    """Seconds for which models worked on answers and audits."""
    stated_utilisation: float
    """Utilisation at which answers are charged, in (0, 1]."""
    charged_usd: float
    """Machine time that the rows carry."""
    part: float = 1.0
    """Part of the machine that is counted here, in [0, 1]."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def utilisation(self) -> float | None:
        """Busy seconds over seconds up, at most 1; None if it was never up."""
        return min(1.0, self.busy_s / self.up_s) if self.up_s else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def rent_usd(self) -> float:
        """Cost of the hours for which it was up, or for which it worked if those are more."""
        return max(self.up_s, self.busy_s) / 3600 * self.usd_per_hour

    @computed_field  # type: ignore[prop-decorator]
    @property
    def uncharged_usd(self) -> float:
        """Rent that no row carries; negative if it worked more than stated, so that the rows carry too much."""
        return self.rent_usd - self.charged_usd if self.up_s else 0.0


def machine_costs(
    ledger: Ledger, prices: PriceBook, since: datetime, until: datetime, *, task: str | None = None
) -> tuple[MachineCost, ...]:
    """Return what machines that served in [since, until) cost, and what of it was used; with `task` its part alone.

    Idle time of a machine that several tasks share is theirs in proportion to their busy seconds. What the rows carry
    is divided among several machines by busy seconds at their prices.
    """
    sums = ledger.sums(since, until, by=("task", "kind"), latencies=False)
    rows = [row for row in sums if row.kind in ("answer", "audit")]
    own = [row for row in rows if task in (None, row.task)]
    busy_s = sum(row.busy_s for row in rows)
    part = sum(row.busy_s for row in own) / busy_s if busy_s else 1.0
    up, busy = ledger.uptime(since, until), ledger.busy(since, until)
    price = {name: prices.machines.get(name, prices.machine) for name in {**up, **busy}}
    stated = {name: price[name].cost_usd(seconds) for name, seconds in busy.items()}
    charged = sum(row.machine_usd for row in own) / (sum(stated.values()) or 1.0)
    return tuple(
        MachineCost(
            machine=name,
            usd_per_hour=of.usd_per_hour,
            up_s=up.get(name, 0.0) * part,
            busy_s=busy.get(name, 0.0) * part,
            stated_utilisation=of.utilisation,
            charged_usd=stated.get(name, 0.0) * charged,
            part=part,
        )
        for name, of in sorted(price.items())
    )


def verdict(saving: Saving, machines: Sequence[MachineCost], once_usd: float) -> str:
    """Return whether the small models pay, in plain words, and from how many requests like these on.

    `machines` have their whole rent paid; `once_usd` was spent once in the same time.
    """
    if saving.saved_usd is None:
        return "Nothing can be said of a saving: nobody knows what the large model costs here."
    up, n = [one for one in machines if one.up_s], saving.n_small + saving.n_large
    saved = saving.saved_usd.times(1, less=math.fsum(one.uncharged_usd for one in up))
    said = [_paid(saved)]
    if month_usd := math.fsum(one.usd_per_hour * HOURS_PER_MONTH * one.part for one in up):
        rent_usd = math.fsum(one.rent_usd for one in up)
        earned = break_even_requests(month_usd, 0.0, 1000 * (saved.usd + rent_usd) / max(1, n))
        from_ = "at no number of requests" if earned is None else f"from {earned:,} requests on"
        rent = f"A month of its machines ({format_usd(month_usd)}) is earned {from_}"
        said.append(f"{rent}; this time had {n:,}.")
    if once_usd:
        after = break_even_requests(once_usd, 0.0, 1000 * saved.usd / max(1, n))
        when = "never paid back" if after is None else f"paid back after {after:,} requests"
        said.append(f"What was spent once ({format_usd(once_usd)}) is {when}.")
    return " ".join(said)


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
