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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
CREATE TABLE IF NOT EXISTS requests (hash BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (number INTEGER PRIMARY KEY, answer TEXT, error TEXT, cost_usd REAL);
CREATE TABLE IF NOT EXISTS sent (number INTEGER PRIMARY KEY, worst_usd REAL);
CREATE TABLE IF NOT EXISTS lost (usd REAL);
INSERT INTO lost SELECT sum(worst_usd) FROM sent HAVING count(*) > 0;
DELETE FROM sent;
CREATE TABLE IF NOT EXISTS parts (
    part INTEGER PRIMARY KEY, n_rows INTEGER, first INTEGER, last INTEGER, written INTEGER DEFAULT 0, n_errors INTEGER
);
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
_WORK = {"row": "int64", "request": "int64", "asked": "string", "rule": "string", "kept": "string"}
_KINDS = {bool: "bool_", int: "int64", float: "float64", str: "string"}
_AT_ONCE = 500


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
        elif folder.is_dir() and any(one.name != WORK for one in folder.iterdir()):
            raise ConfigError(f"{folder} holds other files", hint="name an empty folder, or a new one: --out NAME")
        else:
            self.about = BatchAbout(identity=identity, smallfirst=smallfirst.__version__)
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
        self._db = sqlite3.connect(folder / WORK / "batch.db", isolation_level=None, check_same_thread=False)
        self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; BEGIN; {_TABLES} COMMIT;")

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
        n_there = "(SELECT count(*) FROM answers WHERE number BETWEEN first AND last)"
        self.pending = {part.part: part for part in self._parts(f"last - first + 1 > {n_there}")}
        self._unwritten = self._parts("NOT written")
        (self.n_requests,) = self._row("SELECT coalesce(max(last), 0) FROM parts")
        (self.n_answered,) = self._row("SELECT count(*) FROM answers")
        self._write_ready()

    def forget_errors(self) -> None:
        """Let requests that ended in an error be asked again, and the parts that hold them be written again."""
        with self._transaction():
            self._db.execute("INSERT INTO lost SELECT coalesce(sum(cost_usd), 0) FROM answers WHERE error IS NOT NULL")
            self._db.execute("DELETE FROM answers WHERE error IS NOT NULL")
            self._db.execute("UPDATE parts SET written = 0 WHERE n_errors > 0")

    def answered(self, part: Part) -> list[int]:
        """Return the numbers of those of a part's requests that have an answer."""
        found = self._db.execute("SELECT number FROM answers WHERE number BETWEEN ? AND ?", (part.first, part.last))
        return [number for (number,) in found]

    def work_file(self, part: Part) -> Path:
        """Return the file that `requests_in` reads."""
        return self.folder / WORK / f"rows-{part.part:05d}.parquet"

    def note_sent(self, number: int, worst_usd: float) -> None:
        """Note, before a request is sent, how much it may cost: should its answer be lost, so much counts as paid."""
        self._db.execute("INSERT OR REPLACE INTO sent VALUES (?, ?)", (number, worst_usd))

    def keep(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Keep answers, each with the `number` of its request; once this returns they survive the process."""
        rows = [
            (one["number"], json.dumps(one, ensure_ascii=False), one["error"], one["cost_usd"] or 0.0)
            for one in answers
        ]
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", rows)
            self._db.executemany("DELETE FROM sent WHERE number = ?", [row[:1] for row in rows])
        self.n_answered += len(rows)

    def finish(self, part: Part) -> None:
        """Note that all requests of a part are answered, and write the parts that have all they need."""
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
        n_rows, n_requests, n_errors, n_parts, n_written = self._row(
            "SELECT coalesce(sum(n_rows), 0), coalesce(max(last), 0), coalesce(sum(n_errors), 0), count(*), "
            "coalesce(sum(written), 0) FROM parts"
        )
        n_answered, n_failed, cost_usd = self._row(
            "SELECT count(*), count(error), coalesce(sum(cost_usd), 0) FROM answers"
        )
        counts = BatchCounts(
            n_rows=n_rows,
            n_requests=n_requests,
            n_answered=n_answered,
            n_errors=n_errors,
            cost_usd=cost_usd,
            lost_usd=self.lost_usd,
            n_parts=n_parts,
            n_written=n_written,
        )
        finished = self.about.cut and n_written == n_parts and not n_failed
        self._save(counts=counts, finished=finished)
        self._db.close()
        os.close(self._lock)

    @property
    def spent_usd(self) -> float:
        """What was paid, or may have been."""
        (paid_usd,) = self._row("SELECT coalesce(sum(cost_usd), 0) FROM answers")
        return float(paid_usd) + self.lost_usd

    @property
    def lost_usd(self) -> float:
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
        """Number the new requests of a part, write its working file, and return the number of requests so far."""
        first = n_requests + 1
        number = (rows[0].number - 1) // self.identity.part_rows
        columns: dict[str, list[Any]] = {"row": [], "request": [], "asked": [], "rule": [], "kept": []}
        with self._transaction():
            for row in rows:
                asked, known = None, None
                if row.request:
                    key = request_hash(row.request)
                    known = self._db.execute("SELECT number FROM requests WHERE hash = ?", (key,)).fetchone()
                    if known is None:
                        n_requests, asked = n_requests + 1, row.request
                        known = (n_requests,)
                        self._db.execute("INSERT INTO requests VALUES (?, ?)", (key, n_requests))
                values = (row.number, known and known[0], asked, row.rule or None, json.dumps(row.kept, default=str))
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
            part = Part(number, len(rows), first, n_requests)
            _write_parquet(self.work_file(part), columns, _WORK)
            self._db.execute("INSERT INTO parts (part, n_rows, first, last) VALUES (?, ?, ?, ?)", part)
        return n_requests

    def _write_ready(self) -> None:
        """Write parts in their order, up to the first with an open request: later ones may repeat it."""
        behind = min(self.pending, default=sys.maxsize)
        while self._unwritten and self._unwritten[0].part < behind:
            part = self._unwritten.pop(0)
            n_errors = self._write_part(part)
            self._db.execute("UPDATE parts SET written = 1, n_errors = ? WHERE part = ?", (n_errors, part.part))

    def _write_part(self, part: Part) -> int:
        """Write a part's results and return how many of its rows have an error."""
        work = _read_parquet(self.work_file(part), ["row", "request", "rule", "kept"])
        numbers = {number for number in work["request"] if number is not None}
        earlier = sorted(number for number in numbers if number < part.first)
        query = "SELECT number, answer FROM answers WHERE number "
        answers = dict(self._db.execute(f"{query} BETWEEN ? AND ?", (part.first, part.last)))
        for start in range(0, len(earlier), _AT_ONCE):
            some = earlier[start : start + _AT_ONCE]
            answers |= dict(self._db.execute(f"{query} IN ({','.join('?' * len(some))})", some))
        given = {number: json.loads(answer) for number, answer in answers.items()}
        bad = {"error": "bad_row"}
        found = [
            bad | {"message": rule} if number is None else given[number]
            for number, rule in zip(work["request"], work["rule"], strict=True)
        ]
        kept = [json.loads(values) for values in work["kept"]]
        columns = {"row": work["row"]}
        for i, (name, kind) in enumerate(self.about.kinds.items()):
            columns[name] = [_as_kind(values[i], kind) for values in kept]
        columns |= {name: [one.get(name) for one in found] for name in ANSWER}
        columns["certificate"] = [self.identity.certificate if one.get("certified") else None for one in found]
        types = {"row": "int64", **self.about.kinds, **ANSWER, "certificate": "string"}
        _write_parquet(self.folder / f"part-{part.part:05d}.parquet", columns, types, self.identity)
        return sum(one["error"] is not None for one in found)


def requests_in(work_file: Path, part: Part, answered: Iterable[int]) -> list[tuple[int, str]]:
    """Return the requests of a part that have no answer, each with its number."""
    work, done = _read_parquet(work_file, ["request", "asked"]), set(answered)
    pairs = zip(work["request"], work["asked"], strict=True)
    return [(number, asked) for number, asked in pairs if asked is not None and number not in done]


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


def _write_parquet(
    path: Path, columns: Mapping[str, Sequence[Any]], types: Mapping[str, str], about: Record | None = None
) -> None:
    pyarrow = import_pyarrow("writing Parquet")
    metadata = {"smallfirst": about.model_dump_json()} if about else None
    schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in types.items()], metadata=metadata)
    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(dict(columns), schema=schema), buffer)
    write_atomically(path, buffer.getvalue())


def _read_parquet(path: Path, columns: list[str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = (
        import_pyarrow("reading Parquet").parquet.read_table(path, columns=columns).to_pydict()
    )
    return found
