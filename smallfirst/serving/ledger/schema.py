"""Tables of the ledger's file and their migrations. Triggers refuse changes and deletions of what was recorded."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from smallfirst.errors import ConfigError

VERSION = 12
_FIRST = """
CREATE TABLE answers (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    at TEXT NOT NULL,
    served_name TEXT NOT NULL,
    status INTEGER NOT NULL,
    latency_ms REAL NOT NULL,
    error_code TEXT,
    answered_by TEXT,
    stage TEXT,
    certified INTEGER,
    confidence REAL,
    threshold REAL,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    cost_usd REAL,
    request_sha256 TEXT,
    request_text TEXT,
    answer_text TEXT
);
CREATE INDEX answers_at ON answers (at);
CREATE TRIGGER answers_stay BEFORE UPDATE ON answers
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER answers_last BEFORE DELETE ON answers
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
_SECOND = """
ALTER TABLE answers ADD COLUMN task TEXT;
ALTER TABLE answers ADD COLUMN trail TEXT;
ALTER TABLE answers ADD COLUMN promise TEXT;
ALTER TABLE answers ADD COLUMN audit_share REAL;
ALTER TABLE answers ADD COLUMN audited INTEGER NOT NULL DEFAULT 0;
CREATE TABLE audits (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    at TEXT NOT NULL,
    task TEXT NOT NULL,
    certificate TEXT NOT NULL,
    propensity REAL NOT NULL,
    wrong INTEGER NOT NULL,
    judged_by TEXT NOT NULL,
    cost_usd REAL NOT NULL,
    draft TEXT,
    other TEXT
);
CREATE TABLE feedback (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    at TEXT NOT NULL,
    verdict TEXT NOT NULL,
    answer TEXT,
    caller TEXT NOT NULL
);
CREATE TABLE states (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    task TEXT NOT NULL,
    before TEXT NOT NULL,
    after TEXT NOT NULL,
    why TEXT NOT NULL,
    certificate TEXT NOT NULL
);
CREATE INDEX audits_id ON audits (id);
CREATE INDEX feedback_id ON feedback (id);
CREATE TRIGGER audits_stay BEFORE UPDATE ON audits BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER audits_last BEFORE DELETE ON audits BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER feedback_stay BEFORE UPDATE ON feedback BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER feedback_last BEFORE DELETE ON feedback BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER states_stay BEFORE UPDATE ON states BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER states_last BEFORE DELETE ON states BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
_THIRD = "ALTER TABLE answers ADD COLUMN first_token_ms REAL;\n"
_FOURTH = "ALTER TABLE states ADD COLUMN cause TEXT NOT NULL DEFAULT '';\n"
_FIFTH = "ALTER TABLE answers RENAME COLUMN promise TO guarantee;\n"
_SIXTH = "ALTER TABLE answers ADD COLUMN owner TEXT;\n"
_SEVENTH = "ALTER TABLE answers ADD COLUMN estimated INTEGER NOT NULL DEFAULT 0;\n"
_EIGHTH = """
ALTER TABLE audits ADD COLUMN revision INTEGER;
CREATE UNIQUE INDEX audits_once ON audits (id, revision);
ALTER TABLE feedback ADD COLUMN judge INTEGER NOT NULL DEFAULT 1;
ALTER TABLE feedback ADD COLUMN counted INTEGER NOT NULL DEFAULT 0;
CREATE TABLE drafts (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    at TEXT NOT NULL,
    task TEXT NOT NULL,
    certificate TEXT NOT NULL
);
CREATE TRIGGER drafts_stay BEFORE UPDATE ON drafts BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER drafts_last BEFORE DELETE ON drafts BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
"""Rows of older formats have no revision, and an index takes any number of those."""
_NINTH = """
CREATE TABLE attempts (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    at TEXT NOT NULL,
    purpose TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    model TEXT NOT NULL,
    outcome TEXT NOT NULL,
    cost_usd REAL,
    latency_ms REAL NOT NULL
);
CREATE INDEX attempts_id ON attempts (id);
CREATE TRIGGER attempts_stay BEFORE UPDATE ON attempts BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER attempts_last BEFORE DELETE ON attempts BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
_TENTH = """
ALTER TABLE answers ADD COLUMN audit_weight REAL NOT NULL DEFAULT 1;
ALTER TABLE audits ADD COLUMN weight REAL NOT NULL DEFAULT 1;
"""
"""Audits of older formats were drawn uniformly, so all have the weight 1."""
_ELEVENTH = """
ALTER TABLE answers ADD COLUMN cached_tokens INTEGER;
ALTER TABLE answers ADD COLUMN charges TEXT;
ALTER TABLE audits ADD COLUMN charges TEXT;
CREATE TABLE expenses (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    at TEXT NOT NULL,
    task TEXT NOT NULL,
    kind TEXT NOT NULL,
    cost_usd REAL NOT NULL,
    what TEXT NOT NULL,
    busy_s REAL NOT NULL
);
CREATE TRIGGER expenses_stay BEFORE UPDATE ON expenses BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER expenses_last BEFORE DELETE ON expenses BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
_TWELFTH = """
CREATE TABLE machine_hours (
    hour TEXT NOT NULL,
    machine TEXT NOT NULL,
    host TEXT NOT NULL,
    up_s REAL NOT NULL,
    noted_until TEXT NOT NULL,
    PRIMARY KEY (hour, machine, host)
) WITHOUT ROWID;
"""
_MIGRATIONS = (
    *(_FIRST, _SECOND, _THIRD, _FOURTH, _FIFTH, _SIXTH, _SEVENTH, _EIGHTH, _NINTH, _TENTH),
    *(_ELEVENTH, _TWELFTH),
)
"""The migration to each format from the one before."""


def open_ledger(path: Path) -> sqlite3.Connection:
    """Return a connection to the file, which is created or migrated first where necessary. Raise ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        connection = sqlite3.connect(path, check_same_thread=False, timeout=10)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        with connection:
            # Before the version is read, so that two processes cannot both create the tables.
            connection.execute("BEGIN IMMEDIATE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version < VERSION:
                _migrate(connection, version)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(
            f"{path} cannot be used as a ledger: {error}", hint="choose another path for the ledger"
        ) from None
    if version > VERSION:
        connection.close()
        raise ConfigError(
            f"{path} is a ledger of format {version}; this smallfirst reads format {VERSION}",
            hint="pip install --upgrade smallfirst, or choose another path for the ledger",
        )
    return connection


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    # Not executescript(), which would commit first and so end the transaction.
    statement = ""
    for line in "".join(_MIGRATIONS[version:]).splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
    connection.execute(f"PRAGMA user_version = {VERSION}")
