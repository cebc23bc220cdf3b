"""Read logs of any known format as exchanges in one form; what cannot be read is named and skipped."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from smallfirst.errors import Problem
from smallfirst.extensions import Registry
from smallfirst.pricing.prices import PriceBook
from smallfirst.records import fingerprint
from smallfirst.traffic.exchange import Exchange, billed, kept_body
from smallfirst.traffic.logs.files import LogRecord, file_records, log_files
from smallfirst.traffic.logs.formats import ADDRESS, NO_TIME, LogReader, experiment_records

READERS: Registry[type[LogReader]] = Registry(
    "smallfirst.log_readers",
    {
        "opentelemetry": "smallfirst.traffic.logs.opentelemetry:OpenTelemetryReader",
        "mlflow": "smallfirst.traffic.logs.formats:MLflowReader",
        "batch": "smallfirst.traffic.logs.formats:BatchReader",
        "langfuse": "smallfirst.traffic.logs.formats:LangfuseReader",
        "litellm": "smallfirst.traffic.logs.formats:LiteLLMReader",
        "pairs": "smallfirst.traffic.logs.formats:PairReader",
        "nested": "smallfirst.traffic.logs.formats:NestedReader",
        "table": "smallfirst.traffic.logs.formats:TableReader",
    },
    noun="log reader",
)
"""Formats of logs, in the order in which they are tried."""
MOST_PROBLEMS = 1000
"""Problems that are named; the last one counts the others."""


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
    return _Reading(problems, prices or PriceBook()).exchanges(places), problems


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


class _Reading:
    """One pass over logs."""

    def __init__(self, problems: _Problems, prices: PriceBook) -> None:
        self._problems, self._prices = problems, prices
        self._readers = [reader() for _, reader in READERS]
        self._last: LogReader | None = None
        self._seen = sqlite3.connect("", check_same_thread=False)  # a file without a name once it outgrows its cache
        self._seen.execute("CREATE TABLE seen (id BLOB PRIMARY KEY, content TEXT) WITHOUT ROWID")
        self._file_time = NO_TIME

    def exchanges(self, places: Iterable[str | Path]) -> Iterator[Exchange]:
        for place in places:
            path, self._last = Path(place), None
            self._file_time = datetime.fromtimestamp(path.stat().st_mtime, UTC) if path.exists() else datetime.now(UTC)
            for record in experiment_records(place) if isinstance(place, str) else file_records(path):
                if isinstance(record, Problem):
                    self._problems.add(record)
                elif reader := self._reader_of(record):
                    yield from self._checked(reader.read(record), record)
        for reader in self._readers:
            yield from self._checked(reader.finish(), LogRecord(reader.title, 0, {}))

    def _reader_of(self, record: LogRecord) -> LogReader | None:
        """Return the reader that knows the record: the first in order, but the one of the record before at once."""
        if self._last is None or not self._last.recognizes(record.values):
            self._last = next((one for one in self._readers if one.recognizes(record.values)), None)
        if self._last is None:
            named = ", ".join(map(repr, list(record.values)[:8]))
            self._problems.add(Problem(record.path, record.line, f"no request and answer in it; it has {named}"))
        return self._last

    def _checked(self, found: Iterable[Exchange | Problem], record: LogRecord) -> Iterator[Exchange]:
        try:
            for one in found:
                if isinstance(one, Problem):
                    self._problems.add(one)
                elif whole := self._whole(one):
                    yield whole
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
            # Nobody else's format is known in all its variants: the record is lost, and the log is not.
            self._problems.add(Problem(record.path, record.line, f"of another form than its format has: {error}"[:200]))

    def _whole(self, one: Exchange) -> Exchange | None:
        """Return the exchange with id, time and price, redacted; None if it was read before, as exports overlap."""
        request, response = kept_body(one.request), kept_body(one.response)
        id, content = one.id or one.source, fingerprint([request, response])
        seen = self._seen.execute("SELECT content FROM seen WHERE id = ?", (_key(id),)).fetchone()
        if seen == (content,):
            return None
        if seen is not None:
            id = f"{id}#{one.source}"  # one id for several
        self._seen.execute("INSERT OR REPLACE INTO seen VALUES (?, ?)", (_key(id), content))
        timed = one.at != NO_TIME
        line = int(one.source.rpartition(":")[2] or 0)
        changes = {
            "id": id,
            "at": one.at if timed else self._file_time + timedelta(milliseconds=line),
            "timed": timed,
            "request": request,
            "response": response,
        }
        return billed(one.model_copy(update=changes), self._prices)


def _key(id: str) -> bytes:
    return id.encode("utf-8", "backslashreplace")  # the name of a file may be any bytes
