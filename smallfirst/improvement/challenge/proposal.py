"""Why a retrain is proposed: the new rows, what the watch over the live Router said, and how much is sent on lately."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from datetime import datetime
from pathlib import Path

from smallfirst.data.sources.text_files import file_format
from smallfirst.improvement.harvest import open_ledger
from smallfirst.improvement.harvest.result import SOURCES
from smallfirst.paths import home
from smallfirst.records import Record
from smallfirst.serving.ledger.rows import LedgerRow, StateRow
from smallfirst.stats.intervals import Estimate, wilson

LATELY = 1000
"""Newest answers that «lately» means."""


class Proposal(Record):
    """The reason for a retrain."""

    champion: int
    """Version of the champion."""
    since: datetime
    """When it was registered; what happened since counts."""
    n_new: int
    """Rows that the champion has not seen."""
    by_source: dict[str, int] = {}
    """The rows of the file by where their answer comes from, as far as the file says it."""
    changes: tuple[str, ...] = ()
    """Changes of the task's state since then, oldest first."""
    n_alarms: int = 0
    """How many of them were a drift or a fallback."""
    sent_on: Estimate | None = None
    """Share of the latest answers that the large model or a person gave; None without answers since then."""
    sent_on_in_test: float | None = None
    """The same share on test rows when the champion went live; None if it was not measured."""

    @property
    def in_words(self) -> list[str]:
        """The reason, one line each."""
        sources = ", ".join(f"{n:,} {SOURCES.get(name, name)}" for name, n in self.by_source.items())  # type: ignore[call-overload]
        lines = [
            f"{self.n_new:,} new rows for version {self.champion}" + (f" (in the file: {sources})" if sources else "")
        ]
        alarms = f", {self.n_alarms} of them alarms" if self.changes else ""
        lines.append(f"{len(self.changes)} changes of state since {self.since:%Y-%m-%d}{alarms}")
        lines += [f"  {change}" for change in self.changes[-5:]]
        if self.sent_on is not None:
            then = "" if self.sent_on_in_test is None else f"; on test rows it was {self.sent_on_in_test:.3f}"
            lines.append(f"of the last {self.sent_on.n:,} answers {self.sent_on} were not the small model's{then}")
        return lines


def propose(
    task: str,
    champion: tuple[int, datetime],
    rows: tuple[Path, int],
    *,
    ledger: Path | None = None,
    sent_on_in_test: float | None = None,
) -> Proposal:
    """The reason to retrain a task's champion: its version, and when it was registered.

    `rows` are the file and how many of its rows are new. Without a ledger only the rows speak. Raises ConfigError if
    `ledger` is named and not there.
    """
    version, since = champion
    made = Proposal(
        champion=version,
        since=since,
        n_new=rows[1],
        by_source=_sources(rows[0]),
        sent_on_in_test=sent_on_in_test,
    )
    if ledger is None and not (home() / "ledger.db").is_file():
        return made
    with closing(open_ledger(ledger)) as opened:
        states = [s for s in opened.entries(StateRow, task=task, since=since) if s.before]
        answers = opened.entries(LedgerRow, task=task, since=since, limit=LATELY)
    stages = [row.stage for row in answers if row.status == 200]
    away = sum(stage in ("large", "person") for stage in stages)
    return made.model_copy(
        update={
            "changes": tuple(f"{s.at:%Y-%m-%d %H:%M}  {s.before} -> {s.after}: {s.why}" for s in states),
            "n_alarms": sum(s.after in ("drift", "fallback") for s in states),
            "sent_on": wilson(away, len(stages)) if stages else None,
        }
    )


def _sources(path: Path) -> dict[str, int]:
    """The rows by their `source`, most first; those of a file that says nothing of it are left out."""
    if file_format(path) not in (".jsonl", ".ndjson", ".json") or path.suffix == ".gz":
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    return dict(Counter(str(row["source"]) for row in rows if row.get("source")).most_common())
