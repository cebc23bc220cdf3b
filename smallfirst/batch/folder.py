"""The folder of a batch: its different requests, what was answered, and the parts that are written.

A request that occurs twice is asked once. Answers are kept by its number, one transaction each time, so a process may
die at any moment: what was kept is not asked again. The parts are made of the rows and these answers in the end.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import smallfirst
from smallfirst.batch.rows import BatchRow, RowSource, request_hash
from smallfirst.data.sources.parquet import import_pyarrow
from smallfirst.errors import ConfigError
from smallfirst.files import try_lock, write_atomically
from smallfirst.records import Record

ABOUT, WORK = "_batch.json", "_work"
"""Names that readers of a folder of Parquet leave out."""
_TABLES = """
CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY, hash BLOB UNIQUE, asked TEXT, sent_usd REAL, answer TEXT, error TEXT, cost_usd REAL
);
CREATE TABLE IF NOT EXISTS lost (usd REAL);
INSERT INTO lost SELECT sent_usd FROM requests WHERE sent_usd IS NOT NULL;
UPDATE requests SET sent_usd = NULL WHERE sent_usd IS NOT NULL;
"""
ANSWER = {
    "answer": "string",
    "confidence": "float64",
    "stage": "string",
    "certified": "bool_",
    "cost_usd": "float64",
    "answered_by": "string",
    "error": "string",
    "message": "string",
}
"""Columns of an answer, and their types in Arrow."""
_NOT_ASKED = {"error": "not_asked", "message": "the batch ended before this request"}
_KINDS = {bool: "bool_", int: "int64", float: "float64", str: "string"}


class BatchIdentity(Record):
    """What all rows of a folder have in common; another one needs another folder."""

    rows: str
    """Address of the rows."""
    rows_fingerprint: str
    keep: tuple[str, ...] = ()
    text: str = ""
    part_rows: int
    model: str
    """Who answers, with its version."""
    model_fingerprint: str
    """Fingerprint of all that decides on the answers: versions, certificate, settings of the large model."""
    certificate: str = ""
    """Fingerprint of the certificate; empty without one."""


class BatchCounts(Record):
    """How far a batch is."""

    n_rows: int = 0
    n_requests: int = 0
    """Different requests; equal rows are asked once."""
    n_answered: int = 0
    """Requests that have an answer or an error."""
    n_errors: int = 0
    """Rows that have an error in place of an answer."""
    cost_usd: float = 0.0
    lost_usd: float = 0.0
    """Most that was paid for requests whose answer never arrived."""


class BatchAbout(Record):
    """The file `_batch.json` of a folder."""

    identity: BatchIdentity
    smallfirst: str
    kinds: dict[str, str] | None = None
    """Arrow type of each column that is kept; None until all rows were read."""
    counts: BatchCounts = BatchCounts()
    finished: bool = False
    """True once every row has its answer or error in a part; `_work` is gone unless something can be asked again."""


class BatchFolder:
    """Open in one process at a time."""

    def __init__(self, folder: Path, identity: BatchIdentity, *, retry_errors: bool = False) -> None:
        """Begin a folder or go on with it; `retry_errors` asks again what ended in an error.

        Raise ConfigError if it holds other rows or another model's answers.
        """
        self.folder, self.identity, self.work = folder, identity, folder / WORK
        self.about = BatchAbout(identity=identity, smallfirst=smallfirst.__version__)
        if (folder / ABOUT).is_file():
            self.about = BatchAbout.load(folder / ABOUT)
            _refuse_to_mix(folder, self.about.identity, identity)
        elif folder.is_dir() and any(one.name != WORK for one in folder.iterdir()):
            raise ConfigError(f"{folder} holds other files", hint="name an empty folder, or a new one: --out NAME")
        self.database = self.work / "batch.db"
        self.is_done = self.about.finished and not (retry_errors and self.work.is_dir())
        """True if there is nothing to do; the other methods are for a folder that is not done."""
        if self.is_done:
            return
        self.work.mkdir(parents=True, exist_ok=True)
        lock = try_lock(self.work / "lock")
        if lock is None:
            raise ConfigError(f"{folder} is in use: another process works on it", hint="wait for it to end")
        self._lock, self._db = lock, connect(self.database)
        self._db.executescript(f"BEGIN; {_TABLES} COMMIT;")
        if retry_errors:
            self._forget_errors()
        self._save(finished=False)
        self.n_answered, self.n_requests = self._row("SELECT count(answer), count(*) FROM requests")

    def read(self, source: RowSource, progress: Callable[[int], None]) -> None:
        """Number the different requests of the rows, unless that is done."""
        if self.about.kinds is not None:
            return
        kinds: dict[str, set[str]] = {name: set() for name in source.keep}
        n_rows = 0
        for rows in self._parts(source):
            asked = [(request_hash(row.request), row.request) for row in rows if row.request]
            with self._transaction():
                self._db.executemany("INSERT OR IGNORE INTO requests (hash, asked) VALUES (?, ?)", asked)
            for row in rows:
                _note_kinds(kinds, row)
            progress(n_rows := n_rows + len(rows))
        types = {name: next(iter(found)) if len(found) == 1 else "string" for name, found in kinds.items()}
        self._save(kinds=types, counts=BatchCounts(n_rows=n_rows))
        (self.n_requests,) = self._row("SELECT count(*) FROM requests")

    def open_requests(self) -> Iterator[list[tuple[int, str]]]:
        """Yield the requests that have no answer, each with its number, as many at a time as a part has rows."""
        query = "SELECT number, asked FROM requests WHERE answer IS NULL AND number > ? ORDER BY number LIMIT ?"
        last = 0
        while found := self._db.execute(query, (last, self.identity.part_rows)).fetchall():
            yield found
            last = found[-1][0]

    def keep(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Keep answers, each with the `number` of its request; once this returns they survive the process."""
        rows = [
            (json.dumps(one, ensure_ascii=False), one["error"], one["cost_usd"] or 0.0, one["number"])
            for one in answers
        ]
        with self._transaction():
            self._db.executemany(
                "UPDATE requests SET answer = ?, error = ?, cost_usd = ?, sent_usd = NULL WHERE number = ?", rows
            )
        self.n_answered += len(rows)

    def write(self, source: RowSource) -> None:
        """Write all rows in parts, each beside its answer; a row that was not asked yet has an error."""
        n_errors = sum(self._write_part(i, rows) for i, rows in enumerate(self._parts(source)))
        self._save(counts=self._counts(n_errors=n_errors), finished=self.n_answered == self.n_requests)

    def close(self) -> BatchCounts:
        """Return how far the batch is; if nothing is left to be asked, not even again, remove the working files."""
        if self.is_done:
            return self.about.counts
        self._save(counts=self._counts())
        (n_failed,) = self._row("SELECT count(error) FROM requests")
        self._db.close()
        os.close(self._lock)
        if self.about.finished and not n_failed:
            shutil.rmtree(self.work, ignore_errors=True)
        return self.about.counts

    @property
    def spent_usd(self) -> float:
        """What was paid, or may have been."""
        counts = self._counts()
        return counts.cost_usd + counts.lost_usd

    def _counts(self, **changes: int) -> BatchCounts:
        (cost_usd,) = self._row("SELECT coalesce(sum(cost_usd), 0.0) FROM requests")
        (lost_usd,) = self._row("SELECT coalesce(sum(usd), 0.0) FROM lost")
        now = {"n_requests": self.n_requests, "n_answered": self.n_answered, "cost_usd": cost_usd, "lost_usd": lost_usd}
        return self.about.counts.model_copy(update=now | changes)

    def _forget_errors(self) -> None:
        failed = "WHERE error IS NOT NULL"
        with self._transaction():
            self._db.execute(f"INSERT INTO lost SELECT coalesce(sum(cost_usd), 0) FROM requests {failed}")
            self._db.execute(f"UPDATE requests SET answer = NULL, error = NULL, cost_usd = NULL {failed}")

    def _row(self, query: str, values: Iterable[Any] = ()) -> Any:
        return self._db.execute(query, tuple(values)).fetchone()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield

    def _save(self, **changes: Any) -> None:
        self.about = self.about.model_copy(update=changes)
        self.about.save(self.folder / ABOUT)

    def _parts(self, source: RowSource) -> Iterator[list[BatchRow]]:
        rows = iter(source)
        while part := list(islice(rows, self.identity.part_rows)):
            yield part

    def _write_part(self, part: int, rows: Sequence[BatchRow]) -> int:
        """Write a part's results and return how many of its rows have an error."""
        assert self.about.kinds is not None
        found = [self._answer(row) for row in rows]
        kinds = {"row": "int64", **self.about.kinds, **ANSWER, "certificate": "string"}
        columns: dict[str, Sequence[Any]] = {"row": [row.number for row in rows]}
        for name, values in zip(self.about.kinds, zip(*(row.kept for row in rows), strict=True), strict=True):
            columns[name] = [_as_kind(value, kinds[name]) for value in values]
        columns |= {name: [one.get(name) for one in found] for name in ANSWER}
        columns["certificate"] = [self.identity.certificate if one.get("certified") else None for one in found]
        pyarrow = import_pyarrow("writing Parquet")
        types = [(name, getattr(pyarrow, kind)()) for name, kind in kinds.items()]
        schema = pyarrow.schema(types, metadata={"smallfirst": self.identity.model_dump_json()})
        buffer = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), buffer)
        write_atomically(self.folder / f"part-{part:05d}.parquet", buffer.getvalue())
        return sum(one["error"] is not None for one in found)

    def _answer(self, row: BatchRow) -> dict[str, Any]:
        if not row.request:
            return {"error": "bad_row", "message": row.rule}
        found = self._row("SELECT answer FROM requests WHERE hash = ?", [request_hash(row.request)])
        return json.loads(found[0]) if found and found[0] else _NOT_ASKED


def connect(database: Path) -> sqlite3.Connection:
    """Return a connection without transactions of its own; several processes of this machine may have one."""
    db = sqlite3.connect(database, timeout=60, isolation_level=None, check_same_thread=False)
    db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;")
    return db


def _refuse_to_mix(folder: Path, there: BatchIdentity, now: BatchIdentity) -> None:
    names = [name for name in BatchIdentity.model_fields if name != "rows"]  # their fingerprint has the whole path
    differs = [name for name in names if getattr(there, name) != getattr(now, name)]
    if not differs:
        return
    what = "; ".join(f"{name}: {getattr(there, name)} there, {getattr(now, name)} now" for name in differs)
    raise ConfigError(
        f"{folder} holds answers of another batch ({what}): two in one folder could not be told apart",
        hint="name another folder: --out NAME; or go on with what it was begun with",
    )


def _note_kinds(kinds: Mapping[str, set[str]], row: BatchRow) -> None:
    for (_, found), value in zip(kinds.items(), row.kept, strict=True):
        if value is not None:
            known = type(value) is not int or abs(value) < 1 << 63
            found.add(_KINDS.get(type(value), "string") if known else "string")


def _as_kind(value: Any, kind: str) -> Any:
    return json.dumps(value, ensure_ascii=False) if kind == "string" and not isinstance(value, str | None) else value
