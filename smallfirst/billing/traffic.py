"""A task's traffic by day or hour, summed from the ledger: who answered, and what it cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from smallfirst.billing.saved import is_small
from smallfirst.records import Record
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.sums import Sums

_STEPS = {"hour": (timedelta(hours=1), 13), "day": (timedelta(days=1), 10)}


class TaskPeriod(Record):
    """Answers of a task in some time, and their costs in USD."""

    period: str = ""
    """Beginning in UTC: `2026-11-27` or `2026-11-27T13`; empty for a sum over several."""
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
    def n(self) -> int:
        """Answers of both models."""
        return self.n_small + self.n_large

    def saved_usd(self, large_usd: float) -> float:
        """Return USD less than if the large model, at `large_usd` a request, had answered what stayed small.

        Negative where it cost more. Drafts and audits are counted as what they cost.
        """
        return self.n_small * large_usd - self.small_usd - self.draft_usd - self.audit_usd

    @classmethod
    def of(cls, sums: Iterable[Sums], period: str = "") -> TaskPeriod:
        """Return the figures of sums by kind, stage and outcome; expenses that come once are left out."""
        rows = [row for row in sums if row.kind in ("answer", "audit")]
        audits = [row for row in rows if row.kind == "audit"]
        small = [row for row in rows if row.outcome == "answered" and is_small(row.stage)]
        large = [row for row in rows if row.outcome == "answered" and row.stage == "large"]
        draft_usd = _usd(large, "draft_usd")
        return cls(
            period=period,
            n_small=sum(row.n for row in small),
            n_large=sum(row.n for row in large),
            small_usd=_usd(small),
            large_usd=_usd(large),
            draft_usd=draft_usd,
            audit_usd=_usd(audits),
            other_usd=_usd([row for row in rows if row not in (*small, *large, *audits)]),
            own_usd=draft_usd + _usd([*small, *audits], "machine_usd"),
        )


def periods(
    ledger: Ledger, task: str, since: datetime, until: datetime, *, every: Literal["day", "hour"] = "day"
) -> tuple[TaskPeriod, ...]:
    """Return the periods that begin in [since, until), those before the first request left out, gaps as zeros.

    `since` is rounded down to the beginning of its period.
    """
    step, length = _STEPS[every]
    start = since.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    start = start.replace(hour=0) if every == "day" else start
    rows: dict[str, list[Sums]] = defaultdict(list)
    for row in ledger.sums(start, until, by=("kind", "stage", "outcome"), every=every, latencies=False, task=task):
        if row.kind in ("answer", "audit"):
            rows[row.period].append(row)
    names = [(start + i * step).isoformat()[:length] for i in range(math.ceil((until - start) / step))]
    return tuple(TaskPeriod.of(rows[name], name) for name in names if rows and name >= min(rows))


def _usd(rows: Sequence[Sums], name: str = "cost_usd") -> float:
    return math.fsum(getattr(row, name) for row in rows)
