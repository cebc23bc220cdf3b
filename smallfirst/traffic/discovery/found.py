"""What was found in traffic, as records: written to discovery.json and shown by the report."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal

from smallfirst.base.files import write_atomically
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate
from smallfirst.path.report.page import render_page
from smallfirst.traffic.discovery.outlook import Outlook, ShareAt
from smallfirst.traffic.discovery.tasks import MONTH, AnswerKind
from smallfirst.traffic.task_source import FormatCheck

Verdict = Literal["moves", "unclear", "stays"]
"""A share above 0 is expected to move, nothing is foretold, or nothing can move."""


def month_factor(days: float) -> float:
    """Return by what figures of so many days are multiplied for a month; 1 for logs without times or of hours."""
    return MONTH.total_seconds() / 86400 / days if days >= 1 else 1.0


class FoundWording(Record):
    """One wording of a task's prompt."""

    prompt: str
    """The messages, slots written as ⟨name⟩."""
    n_requests: int
    first_at: datetime
    last_at: datetime
    slots: dict[str, str]
    """What each slot is used for: text or ignored."""


class FoundTask(Record):
    """A recurring task."""

    name: str
    kind: AnswerKind
    folder: str = ""
    """Where it was drafted; empty if it was not."""
    n_requests: int
    n_cases: int
    """Different cases with an answer of the task's kind."""
    requests_per_month: int
    cost_usd: float | None
    """Of its answers; None if no price is known."""
    usd_per_month: float | None
    models: tuple[str, ...]
    answered_by: str
    first_at: datetime
    last_at: datetime
    wordings: tuple[FoundWording, ...]
    labels: dict[str, int] = {}
    """Labels with numbers of answers."""
    answer: str
    """The format of its answers in words."""
    format_check: FormatCheck | None
    repeats: Estimate
    """Share of repeated cases that got the same answer again."""
    examples: tuple[tuple[str, str], ...]
    outlook: Outlook
    verdict: Verdict
    why: str
    """What the verdict rests on."""


class Rest(Record):
    """Requests that belong to no task."""

    what: str
    n_requests: int
    cost_usd: float | None


class Discovery(Record):
    """What was found in traffic."""

    sources: tuple[str, ...]
    made_at: datetime
    n_exchanges: int
    n_drawn: int = 0
    """Of the others, those that were looked at; figures are theirs, and those of a month are scaled to all. 0: all."""
    left_out: dict[str, int]
    """Exchanges without a prompt or an answer, by reason."""
    since: datetime | None
    until: datetime | None
    days: float
    """Time from the first to the last request; 0 for a log without times."""
    cost_usd: float | None
    """Of all requests that were looked at."""
    max_error: float
    """Share of kept answers that may differ from the large model's, for which the shares are given."""
    tasks: tuple[FoundTask, ...]
    rest: tuple[Rest, ...]
    problems: tuple[str, ...] = ()
    """Lines of logs that could not be read."""

    @property
    def usd_per_month(self) -> float | None:
        return None if self.cost_usd is None else self.cost_usd * self.per_month

    @property
    def per_month(self) -> float:
        """By what figures of the log are multiplied for a month."""
        others = self.n_exchanges - sum(self.left_out.values())
        return month_factor(self.days) * (others / self.n_drawn if self.n_drawn else 1.0)

    @property
    def moving(self) -> ShareAt:
        """Share of the bill that can move, or of the requests if no price is known. The ends add those of the tasks."""
        total = self.cost_usd or float(sum(task.n_requests for task in self.tasks) + self.n_rest)
        parts = []
        for task in self.tasks:
            weight = (task.cost_usd or 0.0) if self.cost_usd else task.n_requests
            parts.append((weight / total if total else 0.0, task.outlook.at(self.max_error)))
        share, low, high = (
            round(sum(weight * getattr(one, end) for weight, one in parts), 4) for end in ("share", "low", "high")
        )
        return ShareAt(max_error=self.max_error, share=share, low=low, high=high)

    @property
    def n_rest(self) -> int:
        """Requests of no task."""
        return sum(rest.n_requests for rest in self.rest)


_ORDER = {"moves": 0, "unclear": 1, "stays": 2}
_WORDS = {"moves": "can move", "unclear": "unclear", "stays": "stays"}


def save_report(found: Discovery, path: Path) -> Path:
    """Write the report to `path` and return the path."""
    return write_atomically(path, render_report(found).encode())


def render_report(found: Discovery) -> str:
    """Return the report as HTML."""
    tasks = sorted(found.tasks, key=lambda task: (_ORDER[task.verdict], -_weight(task, found)))
    return render_page(
        "discovery.html",
        found=found,
        tasks=tasks,
        weight={task.name: _weight(task, found) for task in tasks},
        heaviest=max((_weight(task, found) for task in tasks), default=1.0) or 1.0,
        headline=headline(found),
        words=_WORDS,
    )


def headline(found: Discovery) -> str:
    """Return in a sentence how much can move."""
    if not found.tasks:
        return "No recurring task was found in this traffic"
    what = "bill" if found.cost_usd else "requests"
    at = found.moving
    if at.high < 0.005:
        if any(task.verdict == "unclear" for task in found.tasks):
            return f"What of the {what} can move cannot be told yet"
        return f"Nothing of the {what} can be expected to move"
    return f"About {at.share:.0%} of the {what} can move: between {at.low:.0%} and {at.high:.0%}"


def _weight(task: FoundTask, found: Discovery) -> float:
    """Return the task's part of the bill, or of the requests if no price is known."""
    return (task.cost_usd or 0.0) if found.cost_usd else float(task.n_requests)
