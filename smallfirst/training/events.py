"""The event log of a run: one JSON object a line, append-only, flushed to disk; the status is derived from it."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

from smallfirst.base.records import Record

EventKind = Literal[
    "CREATED",
    "QUEUED",
    "REQUEUED",
    "STARTED",
    "DATA_VALIDATED",
    "MODEL_INITIALIZED",
    "TRAIN_STARTED",
    "TRAIN_UPDATED",
    "EPOCH_FINISHED",
    "CHECKPOINT_SAVED",
    "CHECKPOINT_FAILED",
    "RESUMED",
    "TRAIN_FINISHED",
    "COMPLETED",
    "FAILED",
    "STOPPED",
]


class Event(Record):
    """Something that happened to a run."""

    kind: EventKind
    at: str
    """When, ISO 8601 in UTC."""
    message: str
    values: dict[str, Any] = {}

    @property
    def in_one_line(self) -> str:
        return f"{datetime.fromisoformat(self.at).astimezone():%Y-%m-%d %H:%M:%S}  {self.kind:<18}{self.message}"


class EventLog:
    """The events of one run in one file; without `writes` only read."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    def append(self, kind: EventKind, message: str, **values: Any) -> Event:
        event = Event(kind=kind, at=datetime.now(UTC).isoformat(timespec="seconds"), message=message, values=values)
        if not self.writes:
            return event
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            # A line cut short by a crash must not take this one with it.
            file.write(b"" if self._ends_whole(file) else b"\n")
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
        """Return the kind of the last event; `UNKNOWN` without one."""
        events = self.read()
        return events[-1].kind if events else "UNKNOWN"

    @staticmethod
    def _ends_whole(file: BinaryIO) -> bool:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
