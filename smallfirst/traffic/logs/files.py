"""Records of log files: lines of JSON, lists, documents that hold a list, tables; what cannot be read is a Problem."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from smallfirst.base.errors import ConfigError, DataError, Problem
from smallfirst.data.sources.arrow import DELTA_LOG, PARQUET
from smallfirst.data.sources.load import iterate_raw
from smallfirst.data.sources.reader import ReadBudget
from smallfirst.data.sources.text_files import file_format

_JSON = (".jsonl", ".ndjson", ".json", ".log", ".txt", "")
_TABLES = (".csv", ".tsv", PARQUET)
_HELD_IN = ("data", "observations", "traces", "records", "rows", "items", "logs", "results", "hits")
MAX_LINE_BYTES = 50_000_000
"""A longer line is named and skipped: it is no record."""


class LogRecord(NamedTuple):
    """One object of a log."""

    path: str
    line: int
    """Line, or number in its list, from 1."""
    values: dict[str, Any]


def log_files(source: Path) -> list[Path]:
    """Return the file or Delta table, or the log files in a folder and below it, in the order of their names.

    What has a name that begins with a dot or an underscore, such as `_SUCCESS`, is left out. Raise ConfigError.
    """
    if source.is_file() or (source / DELTA_LOG).is_dir():
        return [source]
    if not source.is_dir():
        raise ConfigError(f"{source}: no such file or folder", hint="name a log file, or a folder of them")
    visible = [f for f in sorted(source.rglob("*")) if not any(p[:1] in "._" for p in f.relative_to(source).parts)]
    known = [file for file in visible if file.is_file() and file_format(file) in (*_JSON, *_TABLES)]
    if not known:
        raise ConfigError(f"{source}: no log file in it", hint="logs are .jsonl, .json, .csv or .parquet, perhaps .gz")
    return known


def file_records(file: Path) -> Iterator[LogRecord | Problem]:
    """Yield the records of a file. One that cannot be read at all is one Problem."""
    if file.is_dir() or file_format(file) in _TABLES:
        yield from _table_records(file)
        return
    try:
        with _opened(file) as opened:
            yield from _json_records(str(file), opened)
    except (OSError, EOFError, zlib.error) as error:
        yield Problem(str(file), 1, f"not readable: {error}")


def _opened(file: Path) -> IO[bytes]:
    return gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb")  # type: ignore[return-value]


def _json_records(path: str, opened: IO[bytes]) -> Iterator[LogRecord | Problem]:
    """Yield one record a line, or those of one document if the first line is none by itself."""
    for number, line in enumerate(iter(lambda: opened.readline(MAX_LINE_BYTES), b""), 1):
        if not line.strip():
            continue
        value = _parsed(line)
        if number == 1 and not isinstance(value, dict) and line.lstrip(b" \xef\xbb\xbf")[:1] in (b"[", b"{"):
            rest = opened.read()
            whole = _parsed(line + rest)
            if not isinstance(whole, str):
                yield from _of_document(path, whole)
                return
            for n, text in enumerate([line, *rest.split(b"\n")], 1):  # the first line is broken
                yield from _of_line(path, n, _parsed(text)) if text.strip() else ()
            return
        yield from _of_document(path, value) if number == 1 else _of_line(path, number, value)


def _parsed(raw: bytes) -> Any:
    """Return the value of JSON, or a text that says what is wrong with it."""
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return f"broken JSON: {error}"[:200]
    return "not a JSON object" if isinstance(value, str) else value


def _of_line(path: str, number: int, value: Any) -> Iterator[LogRecord | Problem]:
    if isinstance(value, dict):
        held = value.get("_source")  # Elasticsearch's
        yield LogRecord(path, number, held if isinstance(held, dict) else value)
    else:
        yield Problem(path, number, value if isinstance(value, str) else "not a JSON object")


def _of_document(path: str, value: Any) -> Iterator[LogRecord | Problem]:
    """Yield the items of a list, or of the list that a document holds, as APIs answer; else the object itself."""
    items = value if isinstance(value, list) else _held(value)
    for n, item in enumerate([value] if items is None else items, 1):
        yield from _of_line(path, n, item)


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


def _table_records(file: Path) -> Iterator[LogRecord | Problem]:
    """Yield the rows of a table; one whose format has parts may be of any size."""
    budget = ReadBudget(str(file), sys.maxsize)
    if file.is_dir() or file_format(file) == PARQUET:
        budget.n_bytes = sys.maxsize
    try:
        for path, line, values in iterate_raw(file, budget):
            yield LogRecord(path, line, values) if isinstance(values, dict) else Problem(path, line, values)
    except DataError as error:
        yield Problem(str(file), 1, str(error).splitlines()[0])
