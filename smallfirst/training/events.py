"""The event log of a run: one JSON object a line, append-only, flushed to disk; the status is derived from it."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smallfirst.base.records import Record


class Event(Record):
    """Something that happened to a run."""

    kind: str
    """Such as CREATED, TRAIN_STARTED, EPOCH_FINISHED, CHECKPOINT_SAVED, RESUMED, COMPLETED, FAILED, STOPPED."""
    at: str
    message: str
    values: dict[str, Any] = {}

    @property
    def in_one_line(self) -> str:
        return f"{datetime.fromisoformat(self.at).astimezone():%Y-%m-%d %H:%M:%S}  {self.kind:<18}{self.message}"


class EventLog:
    """The events of one run in one file; without `writes` only read."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    def append(self, kind: str, message: str, **values: Any) -> Event:
        event = Event(kind=kind, at=datetime.now(UTC).isoformat(timespec="seconds"), message=message, values=values)
        if not self.writes:
            return event
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if file.tell():  # a line cut short by a crash must not take this one with it
                file.seek(-1, os.SEEK_END)
                file.write(b"" if file.read(1) == b"\n" else b"\n")
            file.write(event.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return event

    def read(self) -> tuple[Event, ...]:
        """Return all events, oldest first; a line cut short by a crash is left out."""
        if not self.path.exists():
            return ()
        events = []
        for line in self.path.read_bytes().split(b"\n"):
            try:
                events.append(Event.model_validate(json.loads(line)))
            except ValueError:
                continue
        return tuple(events)

    def status(self) -> str:
        events = self.read()
        return events[-1].kind if events else "UNKNOWN"
