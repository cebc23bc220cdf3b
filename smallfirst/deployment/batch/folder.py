"""The folder of a batch: its parts, each written once, and the answers that were kept.

Answers are kept by the hash of their request, one transaction each time, so a process may die at any moment: what was
kept is not asked again, and equal rows are asked once. A part is written when all its rows have an answer or an error.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import smallfirst
from smallfirst.base.errors import ConfigError
from smallfirst.base.files import try_lock, write_atomically
from smallfirst.base.records import Record
from smallfirst.deployment.batch.rows import BatchRow, RowSource, request_hash

ABOUT, WORK = "_batch.json", "_work"
"""Names that readers of a folder of Parquet leave out."""
_TABLES = """
CREATE TABLE IF NOT EXISTS parts (number INTEGER PRIMARY KEY, n_rows INTEGER, n_errors INTEGER);
CREATE TABLE IF NOT EXISTS requests (
    hash TEXT PRIMARY KEY, answer TEXT, error TEXT,
    cost_usd REAL DEFAULT 0, sent_usd REAL DEFAULT 0, lost_usd REAL DEFAULT 0
);
UPDATE requests SET lost_usd = lost_usd + sent_usd, sent_usd = 0 WHERE sent_usd > 0;
"""
"""`sent_usd` is what a request under way may cost; a process that died leaves it to be counted as lost."""
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
    """Rows in written parts."""
    n_requests: int = 0
    """Different requests that have an answer or an error; equal rows are asked once."""
    n_errors: int = 0
    """Rows that have an error in place of an answer."""
    cost_usd: float = 0.0
    lost_usd: float = 0.0
    """Most that was paid for requests whose answer never arrived, or was asked for again."""


class BatchAbout(Record):
    """The file `_batch.json` of a folder."""

    identity: BatchIdentity
    smallfirst: str
    counts: BatchCounts = BatchCounts()
    finished: bool = False
    """True once every row is in a part; `_work` is gone unless something can be asked again."""


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
        self.is_done = self.about.finished and not (retry_errors and self.work.is_dir())
        """True if there is nothing to do; the other methods are for a folder that is not done."""
        if self.is_done:
            return
        self.work.mkdir(parents=True, exist_ok=True)
        lock = try_lock(self.work / "lock")
        if lock is None:
            raise ConfigError(f"{folder} is in use: another process works on it", hint="wait for it to end")
        self._lock = lock
        self._db = sqlite3.connect(self.work / "batch.db", isolation_level=None, check_same_thread=False)
        self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; BEGIN; {_TABLES} COMMIT;")
        if retry_errors:
            forgotten = "answer = NULL, error = NULL, lost_usd = lost_usd + cost_usd, cost_usd = 0"
            with self._transaction() as db:
                db.execute(f"UPDATE requests SET {forgotten} WHERE error IS NOT NULL")
                db.execute("DELETE FROM parts WHERE n_errors > 0")
        self._save(finished=False)

    def parts(self, source: RowSource) -> Iterator[tuple[int, list[BatchRow]]]:
        """Yield the parts that are not written yet, each with its number and rows."""
        rows, number = iter(source), 0
        written = {one for (one,) in self._db.execute("SELECT number FROM parts")}
        while part := list(islice(rows, self.identity.part_rows)):
            if number not in written:
                yield number, part
            number += 1

    def open_requests(self, rows: Iterable[BatchRow]) -> dict[str, str]:
        """Return the requests of rows that have no answer, by their hash."""
        asked = {request_hash(row.request): row.request for row in rows if row.request}
        return {key: request for key, request in asked.items() if self._answer(key) is None}

    def set_aside(self, key: str, usd: float) -> None:
        """Note what a request may cost before it is sent."""
        again = "ON CONFLICT (hash) DO UPDATE SET sent_usd = excluded.sent_usd"
        self._db.execute(f"INSERT INTO requests (hash, sent_usd) VALUES (?, ?) {again}", (key, usd))

    def keep(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Keep answers, each with the `hash` of its request; once this returns they survive the process."""
        rows = [
            (one["hash"], json.dumps(one, ensure_ascii=False), one["error"], one["cost_usd"] or 0.0) for one in answers
        ]
        known = ("answer", "error", "cost_usd", "sent_usd")
        again = f"ON CONFLICT (hash) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in known)}"
        with self._transaction() as db:
            db.executemany(f"INSERT INTO requests (hash, {', '.join(known)}) VALUES (?, ?, ?, ?, 0) {again}", rows)

    def write(self, number: int, rows: Sequence[BatchRow]) -> None:
        """Write a part, each row beside its answer. All requests must have one; kept columns are text or JSON."""
        found = [
            self._answer(request_hash(row.request)) if row.request else {"error": "bad_row", "message": row.rule}
            for row in rows
        ]
        answers = [one or {} for one in found]
        columns: dict[str, Sequence[Any]] = {"row": [row.number for row in rows]}
        columns |= {name: [_text(row.kept[i]) for row in rows] for i, name in enumerate(self.identity.keep)}
        columns |= {name: [one.get(name) for one in answers] for name in ANSWER}
        columns["certificate"] = [self.identity.certificate if one.get("certified") else None for one in answers]
        kinds = {"row": "int64", **dict.fromkeys(self.identity.keep, "string"), **ANSWER, "certificate": "string"}
        import pyarrow.parquet

        types = [(name, getattr(pyarrow, kind)()) for name, kind in kinds.items()]
        schema = pyarrow.schema(types, metadata={"smallfirst": self.identity.model_dump_json()})
        buffer = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), buffer)
        write_atomically(self.folder / f"part-{number:05d}.parquet", buffer.getvalue())
        n_errors = sum(one.get("error") is not None for one in answers)
        self._db.execute("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", (number, len(rows), n_errors))

    def close(self, *, finished: bool = False) -> BatchCounts:
        """Return how far the batch is; if it is finished and nothing can be asked again, remove the working files."""
        if self.is_done:
            return self.about.counts
        self._save(counts=self.counts, finished=finished)
        (n_failed,) = self._row("SELECT count(error) FROM requests")
        self._db.close()
        os.close(self._lock)
        if finished and not n_failed:
            shutil.rmtree(self.work, ignore_errors=True)
        return self.about.counts

    @property
    def counts(self) -> BatchCounts:
        n_rows, n_errors = self._row("SELECT coalesce(sum(n_rows), 0), coalesce(sum(n_errors), 0) FROM parts")
        sums = "count(answer), coalesce(sum(cost_usd), 0.0), coalesce(sum(lost_usd), 0.0)"
        n_requests, cost_usd, lost_usd = self._row(f"SELECT {sums} FROM requests")
        return BatchCounts(
            n_rows=n_rows, n_requests=n_requests, n_errors=n_errors, cost_usd=cost_usd, lost_usd=lost_usd
        )

    def _answer(self, key: str) -> dict[str, Any] | None:
        found = self._row("SELECT answer FROM requests WHERE hash = ? AND answer IS NOT NULL", key)
        return json.loads(found[0]) if found else None

    def _row(self, query: str, *values: Any) -> Any:
        return self._db.execute(query, values).fetchone()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db

    def _save(self, **changes: Any) -> None:
        self.about = self.about.model_copy(update=changes)
        self.about.save(self.folder / ABOUT)


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


def _text(value: Any) -> str | None:
    return value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False, default=str)
