"""The folder of a batch: which rows it has, what was answered, and the parts that are written.

Rows are cut into parts first, and a request that occurs twice gets one number. Answers are kept by that number in one
transaction each time, and a part's file is made of them and renamed into place. So a process may die at any moment:
what was kept is not asked again, and every row is in one part.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

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
CREATE TABLE IF NOT EXISTS rows (row INTEGER PRIMARY KEY, request INTEGER, rule TEXT, kept TEXT);
CREATE TABLE IF NOT EXISTS parts (
    part INTEGER PRIMARY KEY, n_rows INTEGER, first INTEGER, last INTEGER, n_errors INTEGER
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
_LAYOUT = 2
_OPEN = "FROM requests WHERE number BETWEEN first AND last AND answer IS NULL"
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
    n_parts: int = 0
    n_written: int = 0


class BatchAbout(Record):
    """The file `_batch.json` of a folder."""

    identity: BatchIdentity
    smallfirst: str
    layout: int = 1
    """Of the working files."""
    cut: bool = False
    """True once all rows are cut into parts."""
    kinds: dict[str, str] = {}
    """Arrow type of each column that is kept."""
    counts: BatchCounts = BatchCounts()
    finished: bool = False
    """True once every row has its answer; the folder `_work` is gone then."""


class Part(NamedTuple):
    """A part, and the numbers of the requests that occur in it first."""

    part: int
    n_rows: int
    first: int
    last: int


class BatchFolder:
    """Open in one process at a time."""

    def __init__(self, folder: Path, identity: BatchIdentity) -> None:
        """Begin a folder or go on with it. Raise ConfigError if it holds other rows or another model's answers."""
        self.folder, self.identity, about = folder, identity, folder / ABOUT
        if about.is_file():
            self.about = BatchAbout.load(about)
            _refuse_to_mix(folder, self.about.identity, identity)
            if not self.about.finished and self.about.layout != _LAYOUT:
                raise ConfigError(f"{folder} was begun by an earlier version", hint="name a new folder: --out NAME")
        elif folder.is_dir() and any(one.name != WORK for one in folder.iterdir()):
            raise ConfigError(f"{folder} holds other files", hint="name an empty folder, or a new one: --out NAME")
        else:
            self.about = BatchAbout(identity=identity, smallfirst=smallfirst.__version__, layout=_LAYOUT)
        self.pending: dict[int, Part] = {}
        """Parts with requests that have no answer yet."""
        self.n_requests = self.n_answered = 0
        self._unwritten: list[Part] = []
        if self.about.finished:
            return
        (folder / WORK).mkdir(parents=True, exist_ok=True)
        lock = try_lock(folder / WORK / "lock")
        if lock is None:
            raise ConfigError(f"{folder} is in use: another process works on it", hint="wait for it to end")
        self._lock = lock
        self.about.save(about)
        self.database = folder / WORK / "batch.db"
        self._db = connect(self.database)
        self._db.executescript(f"BEGIN; {_TABLES} COMMIT;")

    def cut(self, source: RowSource, progress: Callable[[int], None]) -> None:
        """Cut the rows into parts, after those that are cut already, and find what is left to do."""
        if not self.about.cut:
            done, n_requests = self._row("SELECT coalesce(sum(n_rows), 0), coalesce(max(last), 0) FROM parts")
            kinds: dict[str, set[str]] = {name: set() for name in source.keep}
            rows = iter(source)
            for row in islice(rows, done):
                _note_kinds(kinds, row)
            while part := list(islice(rows, self.identity.part_rows)):
                n_requests = self._cut_part(part, n_requests)
                for row in part:
                    _note_kinds(kinds, row)
                progress(part[-1].number)
            types = {name: next(iter(found)) if len(found) == 1 else "string" for name, found in kinds.items()}
            self._save(cut=True, kinds=types)
        self.pending = {part.part: part for part in self._parts(f"EXISTS (SELECT 1 {_OPEN})")}
        self._unwritten = self._parts("n_errors IS NULL")
        self.n_requests, self.n_answered = self._row("SELECT count(*), count(answer) FROM requests")
        self._write_ready()

    def forget_errors(self) -> None:
        """Let requests that ended in an error be asked again, and the parts that hold them be written again."""
        failed = "WHERE error IS NOT NULL"
        with self._transaction():
            self._db.execute(f"INSERT INTO lost SELECT coalesce(sum(cost_usd), 0) FROM requests {failed}")
            self._db.execute(f"UPDATE requests SET answer = NULL, error = NULL, cost_usd = NULL {failed}")
            self._db.execute("UPDATE parts SET n_errors = NULL WHERE n_errors > 0")

    def open_requests(self, part: Part) -> list[tuple[int, str]]:
        """Return the requests of a part that have no answer, each with its number."""
        query = "SELECT number, asked FROM requests WHERE number BETWEEN ? AND ? AND answer IS NULL ORDER BY number"
        return self._db.execute(query, (part.first, part.last)).fetchall()

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

    def finish(self, part: Part) -> None:
        """Note that a part was asked; write the parts whose requests, and those of all before them, are answered."""
        if not self._parts(f"part = {part.part} AND EXISTS (SELECT 1 {_OPEN})"):
            del self.pending[part.part]
            self._write_ready()

    def close(self) -> BatchCounts:
        """Return how far the batch is; if nothing is left to be asked, not even again, remove the working files."""
        if not self.about.finished:
            self._close()
        if self.about.finished:
            shutil.rmtree(self.folder / WORK, ignore_errors=True)
        return self.about.counts

    def _close(self) -> None:
        of_parts = self._db.execute(
            "SELECT coalesce(sum(n_rows), 0) n_rows, coalesce(sum(n_errors), 0) n_errors, count(*) n_parts, "
            "count(n_errors) n_written FROM parts"
        )
        of_requests = self._db.execute(
            "SELECT count(*) n_requests, count(answer) n_answered, coalesce(sum(cost_usd), 0) cost_usd FROM requests"
        )
        found = {
            name[0]: value
            for one in (of_parts, of_requests)
            for name, value in zip(one.description, one.fetchone(), strict=True)
        }
        counts = BatchCounts(**found, lost_usd=self._lost_usd)
        (n_failed,) = self._row("SELECT count(error) FROM requests")
        self._save(counts=counts, finished=self.about.cut and counts.n_written == counts.n_parts and not n_failed)
        self._db.close()
        os.close(self._lock)

    @property
    def spent_usd(self) -> float:
        """What was paid, or may have been."""
        (paid_usd,) = self._row("SELECT coalesce(sum(cost_usd), 0) FROM requests")
        return float(paid_usd) + self._lost_usd

    @property
    def _lost_usd(self) -> float:
        (lost_usd,) = self._row("SELECT coalesce(sum(usd), 0) FROM lost")
        return float(lost_usd)

    def _parts(self, condition: str) -> list[Part]:
        found = self._db.execute(f"SELECT part, n_rows, first, last FROM parts WHERE {condition} ORDER BY part")
        return [Part(*row) for row in found]

    def _row(self, query: str) -> Any:
        return self._db.execute(query).fetchone()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield

    def _save(self, **changes: Any) -> None:
        self.about = self.about.model_copy(update=changes)
        self.about.save(self.folder / ABOUT)

    def _cut_part(self, rows: Sequence[BatchRow], n_requests: int) -> int:
        """Number the new requests of a part and return the number of requests so far."""
        first, part = n_requests + 1, (rows[0].number - 1) // self.identity.part_rows
        with self._transaction():
            for row in rows:
                number = None
                if row.request:
                    new = (n_requests + 1, request_hash(row.request), row.request)
                    add = "INSERT OR IGNORE INTO requests (number, hash, asked) VALUES (?, ?, ?)"
                    n_requests += self._db.execute(add, new).rowcount
                    (number,) = self._db.execute("SELECT number FROM requests WHERE hash = ?", new[1:2]).fetchone()
                kept = json.dumps(row.kept, default=str)
                self._db.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", (row.number, number, row.rule, kept))
            self._db.execute("INSERT INTO parts VALUES (?, ?, ?, ?, NULL)", (part, len(rows), first, n_requests))
        return n_requests

    def _write_ready(self) -> None:
        """Write parts in their order, up to the first with an open request: later ones may repeat it."""
        behind = min(self.pending, default=sys.maxsize)
        while self._unwritten and self._unwritten[0].part < behind:
            part = self._unwritten.pop(0)
            n_errors = self._write_part(part)
            self._db.execute("UPDATE parts SET n_errors = ? WHERE part = ?", (n_errors, part.part))

    def _write_part(self, part: Part) -> int:
        """Write a part's results and return how many of its rows have an error."""
        start = part.part * self.identity.part_rows
        query = (
            "SELECT row, kept, answer, rule FROM rows LEFT JOIN requests ON number = request "
            "WHERE row > ? AND row <= ? ORDER BY row"
        )
        rows, kept, answers, rules = zip(*self._db.execute(query, (start, start + part.n_rows)), strict=True)
        found = [
            json.loads(answer) if answer else {"error": "bad_row", "message": rule}
            for answer, rule in zip(answers, rules, strict=True)
        ]
        values = dict(zip(self.about.kinds, zip(*map(json.loads, kept), strict=True), strict=True))
        kinds = {"row": "int64", **self.about.kinds, **ANSWER, "certificate": "string"}
        columns: dict[str, Sequence[Any]] = {"row": rows}
        columns |= {name: [_as_kind(value, kinds[name]) for value in of_all] for name, of_all in values.items()}
        columns |= {name: [one.get(name) for one in found] for name in ANSWER}
        columns["certificate"] = [self.identity.certificate if one.get("certified") else None for one in found]
        self._write_parquet(self.folder / f"part-{part.part:05d}.parquet", columns, kinds)
        return sum(one["error"] is not None for one in found)

    def _write_parquet(self, path: Path, columns: Mapping[str, Sequence[Any]], kinds: Mapping[str, str]) -> None:
        pyarrow = import_pyarrow("writing Parquet")
        types = [(name, getattr(pyarrow, kind)()) for name, kind in kinds.items()]
        schema = pyarrow.schema(types, metadata={"smallfirst": self.identity.model_dump_json()})
        buffer = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), buffer)
        write_atomically(path, buffer.getvalue())


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
