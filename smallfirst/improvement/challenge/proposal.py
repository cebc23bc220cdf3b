"""The reason to retrain: new rows, alarms of the live Router, and the recent share of escalated answers."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from datetime import datetime
from pathlib import Path

from smallfirst.data.sources.text_files import file_format
from smallfirst.improvement.harvest import open_ledger
from smallfirst.improvement.harvest.result import SOURCES
from smallfirst.records import Record
from smallfirst.serving.ledger.ledger import open_existing
from smallfirst.serving.ledger.rows import LedgerRow, StateRow
from smallfirst.stats.intervals import Estimate, wilson

RECENT_ANSWERS = 1000
"""Latest answers whose escalated share is shown."""


class Proposal(Record):
    """The reason for a retrain."""

    champion: int
    since: datetime
    """When it was registered; later events count."""
    n_new: int
    """Rows that the champion was not trained on."""
    by_source: dict[str, int] = {}
    """Rows by source of their answer, where the file names it."""
    changes: tuple[str, ...] = ()
    """Changes of the task's state since then, oldest first."""
    n_alarms: int = 0
    """Number of these changes to drift or fallback."""
    sent_on: Estimate | None = None
    """Share of the latest answers given by the large model or a person; None without answers since then."""
    sent_on_in_test: float | None = None
    """That share on test rows when the champion went live; None if it was not measured."""

    @property
    def in_words(self) -> list[str]:
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
    ledger: Path | str | None = None,
    sent_on_in_test: float | None = None,
) -> Proposal:
    """Return the reason to retrain a champion, given by version and time of registration.

    `rows` are the file and how many of its rows are new. Raise ConfigError if `ledger` is named and does not exist.
    """
    version, since = champion
    made = Proposal(
        champion=version, since=since, n_new=rows[1], by_source=_sources(rows[0]), sent_on_in_test=sent_on_in_test
    )
    if (found := open_ledger(ledger) if ledger else open_existing()) is None:
        return made
    with closing(found) as opened:
        states = [s for s in opened.entries(StateRow, task=task, since=since) if s.before]
        answers = opened.entries(LedgerRow, task=task, since=since, limit=RECENT_ANSWERS)
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
    if file_format(path) not in (".jsonl", ".ndjson", ".json") or path.suffix == ".gz":
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    return dict(Counter(str(row["source"]) for row in rows if row.get("source")).most_common())
