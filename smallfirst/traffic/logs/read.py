"""Read logs of any known format as exchanges in one form; what cannot be read is named and skipped."""

from __future__ import annotations

import gzip
import json
import sqlite3
import sys
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

from smallfirst.base.errors import ConfigError, DataError, Problem
from smallfirst.base.records import fingerprint
from smallfirst.data.redaction import redact_body
from smallfirst.data.sources.arrow import DELTA_LOG, PARQUET
from smallfirst.data.sources.folders import FoundFile, list_files
from smallfirst.data.sources.load import iterate_raw
from smallfirst.data.sources.text_files import MAX_DOCUMENT_BYTES, RawRow, ReadBudget, file_format
from smallfirst.models.pricing import PriceBook
from smallfirst.traffic.capture_store import CaptureStore, is_store
from smallfirst.traffic.exchange import Exchange, billed
from smallfirst.traffic.logs.formats import (
    LOG_FORMATS,
    NESTED,
    NO_TIME,
    PAIRS,
    TABLE,
    LogFormat,
    batch_entry,
    exchange_of,
    experiment_records,
    is_batch,
    is_batch_request,
)
from smallfirst.traffic.settings import CaptureSettings

ADDRESS = "mlflow:"
"""What an address of an experiment's traces begins with: `mlflow:support`."""
_Values = tuple[RawRow, dict[str, Any]]
MOST_PROBLEMS = 1000
"""Problems that are named; the last one counts the others."""


class LogReader:
    """Exchanges in records of any format; lines of a batch's two files wait for each other, in whatever order."""

    def __init__(self, *, tables: bool = True) -> None:
        """Without `tables` a row of two columns of text is none."""
        self._formats = [one for _, one in LOG_FORMATS] + [PAIRS, NESTED, *([TABLE] if tables else [])]
        self._last: LogFormat | None = None
        self._path = ""
        self._waiting: tuple[dict[str, _Values], dict[str, _Values]] = ({}, {})
        """Requests and responses of batches by `custom_id`."""

    def format_of(self, values: dict[str, Any]) -> LogFormat | None:
        """Return the first format that knows a record."""
        return next((one for one in self._formats if one.recognizes(values)), None)

    def read(self, record: RawRow) -> Iterator[Exchange | Problem]:
        """Yield the exchanges in a record, or why it is none."""
        values = record.values
        try:
            if isinstance(values, str):
                yield Problem(*record[:2], values)
                return
            if is_batch(values):
                yield from self._joined(record, values)
                return
            if self._path != record.path or self._last is None or not self._last.recognizes(values):
                self._path, self._last = record.path, self.format_of(values)  # lines of a file are mostly alike
            if self._last is not None:
                for entry in self._last.entries(values):
                    yield exchange_of(entry, record)
            else:
                named = ", ".join(map(repr, list(values)[:8]))
                yield Problem(record.path, record.line, f"no request and answer in it; it has {named}")
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
            # Nobody else's format is known in all its variants: the record is lost, and the log is not.
            yield Problem(record.path, record.line, f"of another form than its format has: {error}"[:200])

    def _joined(self, record: RawRow, values: dict[str, Any]) -> Iterator[Exchange | Problem]:
        id, is_request = values["custom_id"], is_batch_request(values)
        kept, others = self._waiting if is_request else self._waiting[::-1]
        other = others.pop(id, None)
        if other is None:
            kept[id] = record, values
        else:
            asked, answered = ((record, values), other) if is_request else (other, (record, values))
            yield exchange_of(batch_entry(asked[1], answered[1]), asked[0])

    def left(self) -> list[Problem]:
        """Return the lines of batches whose other file was not read."""
        return [
            Problem(record.path, record.line, f"no {missing} to custom_id {id!r} in the batch's other file")
            for waiting, missing in zip(self._waiting, ("response", "request"), strict=True)
            for id, (record, _) in waiting.items()
        ]


def read_logs(
    sources: Sequence[str | Path], *, prices: PriceBook | None = None
) -> tuple[Iterator[Exchange], list[Problem]]:
    """Return the exchanges in files, folders and MLflow experiments (`mlflow:NAME`), and the problems met.

    A file that the proxy has kept is one as well. Exchanges come in the order of the logs; the list of problems grows
    while they are read. Bodies are redacted like captured ones. A price that the log does not have is taken from
    `prices`, then from the catalogue. Raise ConfigError for a source that does not exist.
    """
    places: list[str | Path] = []
    problems = _Problems()
    for source in sources:
        if str(source).startswith(ADDRESS):
            places.append(source)
            continue
        for path, rule in log_files(Path(source)):
            if rule:
                problems.add(Problem(str(path), 1, rule))
            else:
                places.append(path)
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
        if is_store(path):
            yield from CaptureStore(path, key=CaptureSettings().key()).exchanges()
            continue
        at = datetime.fromtimestamp(path.stat().st_mtime, UTC) if path.exists() else datetime.now(UTC)
        for record in experiment_records(place) if isinstance(place, str) else file_records(path):
            for one in reader.read(record):
                if isinstance(one, Problem):
                    problems.add(one)
                elif whole := _whole(one, seen, at):
                    yield billed(whole, prices)
    for problem in reader.left():
        problems.add(problem)


def _whole(one: Exchange, seen: sqlite3.Connection, file_time: datetime) -> Exchange | None:
    """Return the exchange with id and time, redacted; None if it was read before."""
    request, response = redact_body(one.request), redact_body(one.response)
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


# Records of files: lines of JSON, lists, documents that hold a list, tables

_JSON = (".jsonl", ".ndjson", ".json", ".log", ".txt", "")
_TABLES = (".csv", ".tsv", ".xlsx", PARQUET)
_HELD_IN = ("data", "observations", "traces", "records", "rows", "items", "logs", "results", "hits")
MAX_LINE_BYTES = 50_000_000
"""A longer line is named and skipped: it is no record."""


def log_files(source: Path) -> list[FoundFile]:
    """Return the file or Delta table, or the log files and links in a folder and below it, in the order of their names.

    What has a name that begins with a dot or an underscore, such as `_SUCCESS`, is left out. Raise ConfigError.
    """
    if source.is_file() or (source / DELTA_LOG).is_dir():
        return [FoundFile(source, None)]
    if not source.is_dir():
        raise ConfigError(f"{source}: no such file or folder", hint="name a log file, or a folder of them")
    known = [one for one in list_files(source) if one.path.is_dir() or file_format(one.path) in (*_JSON, *_TABLES)]
    if not known:
        raise ConfigError(f"{source}: no log file in it", hint="logs are .jsonl, .json, .csv or .parquet, perhaps .gz")
    return known


def file_records(file: Path) -> Iterator[RawRow]:
    """Yield the records of a file. One that cannot be read at all is one broken rule."""
    if file.is_dir() or file_format(file) in _TABLES:
        yield from _table_records(file)
        return
    try:
        with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as opened:
            yield from _json_records(str(file), opened)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        yield RawRow(str(file), 1, f"not readable: {error}")


def _json_records(path: str, opened: IO[bytes]) -> Iterator[RawRow]:
    """Yield one record a line, or those of one document if the first line is none by itself."""
    for number, line in enumerate(iter(lambda: opened.readline(MAX_LINE_BYTES), b""), 1):
        if not line.strip():
            continue
        value = _parsed(line)
        if number == 1 and not isinstance(value, dict) and line.lstrip(b" \xef\xbb\xbf")[:1] in (b"[", b"{"):
            rest = opened.read(MAX_DOCUMENT_BYTES)
            if opened.read(1):
                most = f"more than {MAX_DOCUMENT_BYTES:,} bytes in one JSON document; no more are read"
                yield RawRow(path, 1, f"{most}: write a record a line, jq -c '.[]' FILE > log.jsonl")
                return
            whole = _parsed(line + rest)
            if not isinstance(whole, str):
                yield from _of_document(path, whole)
                return
            for n, text in enumerate([line, *rest.split(b"\n")], 1):  # the first line is broken
                yield from [_record(path, n, _parsed(text))] if text.strip() else ()
            return
        yield from _of_document(path, value) if number == 1 else [_record(path, number, value)]


def _parsed(raw: bytes) -> Any:
    """Return the value of JSON, or a text that says what is wrong with it."""
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return f"broken JSON: {error}"[:200]
    return "not a JSON object" if isinstance(value, str) else value


def _record(path: str, number: int, value: Any) -> RawRow:
    if isinstance(value, dict) and isinstance(held := value.get("_source"), dict):  # Elasticsearch's
        value = held
    return RawRow(path, number, value if isinstance(value, dict | str) else "not a JSON object")


def _of_document(path: str, value: Any) -> Iterator[RawRow]:
    """Yield the items of a list, or of the list that a document holds, as APIs answer; else the object itself."""
    items = value if isinstance(value, list) else _held(value)
    for n, item in enumerate([value] if items is None else items, 1):
        yield _record(path, n, item)


def _held(value: Any) -> list[Any] | None:
    if not isinstance(value, dict):
        return None
    for name in _HELD_IN:
        inner = value.get(name)
        if isinstance(inner, list) and inner and isinstance(inner[0], dict) and len(value) <= 5:
            return inner
        if name == "hits" and isinstance(inner, dict) and isinstance(inner.get("hits"), list):
            return list(inner["hits"])
    return None


def _table_records(file: Path) -> Iterator[RawRow]:
    """Yield the rows of a table; one whose format has parts may be of any size."""
    budget = ReadBudget(str(file), sys.maxsize)
    if file.is_dir() or file_format(file) == PARQUET:
        budget.n_bytes = sys.maxsize
    try:
        yield from iterate_raw(file, budget)
    except DataError as error:
        yield RawRow(str(file), 1, str(error).splitlines()[0])
