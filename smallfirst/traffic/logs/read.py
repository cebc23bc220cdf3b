"""Read logs of any known format as exchanges in one form; what cannot be read is named and skipped."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from smallfirst.base.errors import Problem
from smallfirst.base.records import fingerprint
from smallfirst.models.pricing import PriceBook
from smallfirst.traffic.exchange import Exchange, billed, kept_body
from smallfirst.traffic.logs.files import LogRecord, file_records, log_files
from smallfirst.traffic.logs.formats import (
    FORMATS,
    NO_TIME,
    LogFormat,
    batch_entry,
    exchange_of,
    experiment_records,
    is_batch,
    is_batch_request,
)

ADDRESS = "mlflow:"
"""What an address of an experiment's traces begins with: `mlflow:support`."""
MOST_PROBLEMS = 1000
"""Problems that are named; the last one counts the others."""


class LogReader:
    """Exchanges in records of any format; lines of a batch's two files wait for each other, in whatever order."""

    def __init__(self, formats: Collection[str] = tuple(FORMATS)) -> None:
        self._formats = [FORMATS[name] for name in FORMATS if name in formats]
        self._last: LogFormat | None = None
        self._path = ""
        self._waiting: tuple[dict[str, LogRecord], dict[str, LogRecord]] = ({}, {})
        """Requests and responses of batches by `custom_id`."""

    def format_of(self, values: dict[str, Any]) -> LogFormat | None:
        """Return the first format that knows a record."""
        return next((one for one in self._formats if one.recognizes(values)), None)

    def read(self, record: LogRecord) -> Iterator[Exchange | Problem]:
        """Yield the exchanges in a record, or why it is none."""
        try:
            if is_batch(record.values):
                yield from self._joined(record)
                return
            if self._path != record.path or self._last is None or not self._last.recognizes(record.values):
                self._path, self._last = record.path, self.format_of(record.values)  # lines of a file are mostly alike
            if self._last is not None:
                for entry in self._last.entries(record.values):
                    yield exchange_of(entry, record)
            else:
                named = ", ".join(map(repr, list(record.values)[:8]))
                yield Problem(record.path, record.line, f"no request and answer in it; it has {named}")
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
            # Nobody else's format is known in all its variants: the record is lost, and the log is not.
            yield Problem(record.path, record.line, f"of another form than its format has: {error}"[:200])

    def _joined(self, record: LogRecord) -> Iterator[Exchange | Problem]:
        id, is_request = record.values["custom_id"], is_batch_request(record.values)
        kept, others = self._waiting if is_request else self._waiting[::-1]
        other = others.pop(id, None)
        if other is None:
            kept[id] = record
        else:
            asked, answered = (record, other) if is_request else (other, record)
            yield exchange_of(batch_entry(asked.values, answered.values), asked)

    def left(self) -> list[Problem]:
        """Return the lines of batches whose other file was not read."""
        return [
            Problem(record.path, record.line, f"no {missing} to custom_id {id!r} in the batch's other file")
            for waiting, missing in zip(self._waiting, ("response", "request"), strict=True)
            for id, record in waiting.items()
        ]


def read_logs(
    sources: Sequence[str | Path], *, prices: PriceBook | None = None
) -> tuple[Iterator[Exchange], list[Problem]]:
    """Return the exchanges in files, folders and MLflow experiments (`mlflow:NAME`), and the problems met.

    Exchanges come in the order of the logs; the list of problems grows while they are read. Bodies are redacted like
    captured ones. A price that the log does not have is taken from `prices`, then from the catalogue. Raise ConfigError
    for a source that does not exist.
    """
    places: list[str | Path] = []
    for source in sources:
        places += [source] if str(source).startswith(ADDRESS) else log_files(Path(source))
    problems = _Problems()
    return _exchanges(places, problems, prices or PriceBook()), problems


class _Problems(list[Problem]):
    """The first problems, and the number of all."""

    n = 0

    def add(self, problem: Problem) -> None:
        self.n += 1
        if self.n > MOST_PROBLEMS:
            more = f"{self.n - MOST_PROBLEMS:,} more that are not named"
            self[MOST_PROBLEMS:] = [Problem(problem.path, problem.line, f"{problem.rule}; and {more}")]
        else:
            self.append(problem)


def _exchanges(places: Sequence[str | Path], problems: _Problems, prices: PriceBook) -> Iterator[Exchange]:
    """Yield whole exchanges, redacted; one that was read before is left out, as exports overlap."""
    reader = LogReader()
    seen = sqlite3.connect("", check_same_thread=False)  # a file without a name once it outgrows its cache
    seen.execute("CREATE TABLE seen (id BLOB PRIMARY KEY, content TEXT) WITHOUT ROWID")
    for place in places:
        path = Path(place)
        at = datetime.fromtimestamp(path.stat().st_mtime, UTC) if path.exists() else datetime.now(UTC)
        for record in experiment_records(place) if isinstance(place, str) else file_records(path):
            for one in [record] if isinstance(record, Problem) else reader.read(record):
                if isinstance(one, Problem):
                    problems.add(one)
                elif whole := _whole(one, seen, at):
                    yield billed(whole, prices)
    for problem in reader.left():
        problems.add(problem)


def _whole(one: Exchange, seen: sqlite3.Connection, file_time: datetime) -> Exchange | None:
    """Return the exchange with id and time, redacted; None if it was read before."""
    request, response = kept_body(one.request), kept_body(one.response)
    id, content = one.id or one.source, fingerprint([request, response])
    key = id.encode("utf-8", "backslashreplace")  # the name of a file may be any bytes
    before = seen.execute("SELECT content FROM seen WHERE id = ?", (key,)).fetchone()
    if before == (content,):
        return None
    seen.execute("INSERT OR REPLACE INTO seen VALUES (?, ?)", (key, content))
    if before is not None:
        id = f"{id}#{one.source}"  # one id for several
    timed, line = one.at != NO_TIME, int(one.source.rpartition(":")[2] or 0)
    at = one.at if timed else file_time + timedelta(milliseconds=line)
    return one.model_copy(update={"id": id, "at": at, "timed": timed, "request": request, "response": response})
