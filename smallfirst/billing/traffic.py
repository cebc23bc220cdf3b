"""A task's traffic by day or hour, summed from the ledger: who answered, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Literal

from smallfirst.billing.saved import is_small
from smallfirst.records import Record
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.sums import Sums

_STEPS = {"hour": timedelta(hours=1), "day": timedelta(days=1)}


class TaskPeriod(Record):
    """Answers of a task in a day or an hour (UTC), and their costs in USD."""

    period: str
    """Beginning: `2026-11-27` or `2026-11-27T13`."""
    n: int = 0
    """Answers, also those that were left to a person."""
    n_small: int = 0
    n_large: int = 0
    small_usd: float = 0.0
    """Cost of the answers that stayed small."""
    large_usd: float = 0.0
    """Cost of the large model's answers, their discarded drafts included."""
    draft_usd: float = 0.0
    """Part of `large_usd` that discarded drafts cost."""
    audit_usd: float = 0.0
    """Cost of comparing answers that chance drew."""
    other_usd: float = 0.0
    """Cost of requests that no model answered: failed, left by the client, or left to a person."""
    own_usd: float = 0.0
    """Part of small answers, drafts and audits that is time of machines of our own."""

    @property
    def cost_usd(self) -> float:
        """Cost of everything that was asked, audits included."""
        return self.small_usd + self.large_usd + self.audit_usd + self.other_usd

    def saved_usd(self, large_usd: float) -> float:
        """Return USD less than if the large model, at `large_usd` a request, had answered what stayed small.

        Negative where it cost more. Drafts and audits are counted as what they cost.
        """
        return self.n_small * large_usd - self.small_usd - self.draft_usd - self.audit_usd


def periods(
    ledger: Ledger, task: str, since: datetime, until: datetime, *, every: Literal["day", "hour"] = "day"
) -> tuple[TaskPeriod, ...]:
    """Return the periods that begin in [since, until), those before the first request left out, gaps as zeros.

    `since` is rounded down to the beginning of its period.
    """
    start = since.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    start = start.replace(hour=0) if every == "day" else start
    rows: dict[str, list[Sums]] = {}
    for row in ledger.sums(start, until, by=("kind", "stage", "outcome"), every=every, task=task):
        if row.kind in ("answer", "audit"):
            rows.setdefault(row.period, []).append(row)
    length = 10 if every == "day" else 13
    steps = (start + i * _STEPS[every] for i in range((until - start) // _STEPS[every] + 1))
    names = (moment.isoformat()[:length] for moment in takewhile(lambda moment: moment < until, steps))
    first = min(rows, default="")
    return tuple(_period(name, rows.get(name, ())) for name in names if rows and name >= first)


def total(found: Iterable[TaskPeriod], period: str = "") -> TaskPeriod:
    """Return the sums over several periods."""
    every = list(found)
    names = [name for name in TaskPeriod.model_fields if name != "period"]
    return TaskPeriod.model_validate({"period": period} | {n: sum(getattr(one, n) for one in every) for n in names})


def _period(name: str, rows: Sequence[Sums]) -> TaskPeriod:
    answered = [row for row in rows if row.outcome == "answered"]
    small = [row for row in answered if is_small(row.stage)]
    large = [row for row in answered if row.stage == "large"]
    audits = [row for row in rows if row.kind == "audit"]
    small_usd, large_usd, draft_usd = (
        math.fsum(amounts)
        for amounts in (
            (row.cost_usd for row in small),
            (row.cost_usd for row in large),
            (row.draft_usd for row in large),
        )
    )
    return TaskPeriod(
        period=name,
        n=sum(row.n for row in answered),
        n_small=sum(row.n for row in small),
        n_large=sum(row.n for row in large),
        small_usd=small_usd,
        large_usd=large_usd,
        draft_usd=draft_usd,
        audit_usd=sum(row.cost_usd for row in audits),
        other_usd=math.fsum(row.cost_usd for row in rows if row not in (*small, *large, *audits)),
        own_usd=draft_usd + sum(row.machine_usd for row in (*small, *audits)),
    )
