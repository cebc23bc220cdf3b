"""The statement of a month: what was asked, promised, proven, paid and saved, signed, with a row for each figure.

A folder holds `rows.csv`, `statement.html`, the page for people, and `statement.json`, which names the SHA-256 of both
and is signed with Ed25519. All figures come from the rows alone and the page from the figures, so that a reader who has
nothing but the folder adds them up and makes the page again (`verify`). The key comes with the folder, so it shows that
one hand made it all; whose hand, only a key shows that came another way.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import secrets
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import smallfirst
from smallfirst.base.errors import ConfigError, as_missing_extra
from smallfirst.base.files import sha256, write_atomically
from smallfirst.base.progress import ProgressCallback, no_progress
from smallfirst.base.records import Record, parse_record
from smallfirst.deployment.billing.saved import Amount, MachineCost, Saving, is_small, total
from smallfirst.deployment.billing.statement_rows import Figures, Line, Tally, digest, ledger_lines, read_lines
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import StateRow
from smallfirst.ledger.sums import Sums
from smallfirst.path.report.page import render_page

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY = "statement.key"
"""File of the private key in the state folder."""
ROWS, SIGNED, PAGE = "rows.csv", "statement.json", "statement.html"
MADE_BY = f"smallfirst {smallfirst.__version__}"
STEP = 10_000
"""Rows between two reports of progress."""


class Statement(Record):
    """All that is signed."""

    month: str
    """`2026-11`, in UTC."""
    since: datetime
    until: datetime
    so_far: bool
    """True if the month was not over."""
    made_at: datetime
    made_by: str
    tasks: tuple[str, ...]
    """The tasks that it is limited to; none: all that the ledger has."""
    rows_sha256: str
    page_sha256: str = ""
    n_refused_without_row: int
    """Refused requests beyond those that the ledger keeps a row of; they cost nothing."""
    guarantees: dict[str, str]
    """Words of each promise, by their digest in the rows."""
    changes: tuple[StateRow, ...]
    """Alarms, fallbacks and recoveries of the month."""
    evaluated: dict[str, Amount]
    """By task, the large model's mean bill on the rows of its evaluation."""
    machines: tuple[MachineCost, ...]
    """Machines of our own as they were used, from the servers' notes of their uptime."""
    figures: Figures

    @property
    def saving(self) -> Saving:
        """The saving of all tasks, before what comes once and before idle machines."""
        return total(self.figures.savings)

    @property
    def uncharged_usd(self) -> float:
        """Time of our own machines that no row carries; below 0 if they worked more than their price assumes."""
        return sum(machine.uncharged_usd for machine in self.machines)

    @property
    def net_usd(self) -> Amount | None:
        """What is left of the saving after what comes once and after idle machines; None if it is unknown."""
        saved = self.saving.saved_usd
        once = sum(one.cost_usd for one in self.figures.sums if one.kind not in ("answer", "audit"))
        return saved and saved.times(1, less=once + self.uncharged_usd)

    @property
    def total_usd(self) -> float:
        """All that was spent and is known."""
        return sum(one.cost_usd for one in self.figures.sums) + self.uncharged_usd

    @property
    def n_cost_unknown(self) -> int:
        """Rows of which nobody knows whether, or how much, is to be paid."""
        return sum(one.n_cost_unknown for one in self.figures.sums)

    @property
    def bill(self) -> dict[str, tuple[int, float]]:
        """Number and USD by kind of cost, in plain words; discarded drafts are apart from the answers they led to."""
        found: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
        for one in self.figures.sums:
            drafts = one.draft_usd * (one.stage == "large")
            for kind, amount in ((_kind(one), one.cost_usd - drafts), ("discarded drafts", drafts)):
                if amount or kind != "discarded drafts":
                    n, usd = found[kind]
                    found[kind] = n + one.n, usd + amount
        return dict(sorted(found.items(), key=lambda one: (*_KINDS, one[0]).index(one[0])))


def make(
    ledger: Ledger,
    month: str,
    folder: Path,
    *,
    key: Ed25519PrivateKey,
    tasks: Collection[str] = (),
    evaluated: Mapping[str, Amount] | None = None,
    machines: Sequence[MachineCost] = (),
    now: datetime | None = None,
    progress: ProgressCallback = no_progress,
) -> Statement:
    """Write rows, page and signed statement of a month into `folder`, and return it; `evaluated` as in `savings`.

    Raise ConfigError for a month that is none or has not begun, and if rows are missing that the ledger's sums count.
    """
    made_at = now or datetime.now(UTC)
    since, end = month_of(month)
    if since > made_at:
        raise ConfigError(f"{month} has not begun", hint="name a month that has: --month 2026-11")
    until = min(end, made_at)
    folder.mkdir(parents=True, exist_ok=True)
    tally, guarantees = _write_rows(ledger, folder / ROWS, since, until, tasks, progress)
    changes = [row for row in ledger.scan(StateRow, since, until) if row.before and (not tasks or row.task in tasks)]
    statement = Statement(
        month=month,
        since=since,
        until=until,
        so_far=until < end,
        made_at=made_at,
        made_by=MADE_BY,
        tasks=tuple(tasks),
        rows_sha256=sha256(folder / ROWS),
        n_refused_without_row=sum(one.n_without_row for one in _sums(ledger, since, until, tasks)),
        guarantees=guarantees,
        changes=tuple(changes),
        evaluated={task: cost for task, cost in (evaluated or {}).items() if cost},
        machines=tuple(machines),
        figures=tally.figures(evaluated or {}),
    )
    computed: Any = {"machines": {"__all__": set(MachineCost.model_computed_fields)}}
    content = statement.model_dump(mode="json", exclude_defaults=True, exclude=computed)
    public_key = public_text(key)
    page = page_of(read_content(content, where=SIGNED), public_key)  # as its reader makes it again
    content["page_sha256"] = hashlib.sha256(page).hexdigest()
    signature = base64.b64encode(key.sign(canonical(content))).decode()
    write_atomically(folder / PAGE, page)
    write_atomically(
        folder / SIGNED, canonical({"statement": content, "public_key": public_key, "signature": signature})
    )
    return read_content(content, where=SIGNED)


def read_content(content: Any, *, where: str) -> Statement:
    """Return what is signed as a record. Raise ConfigError naming `where` and the field."""
    return parse_record(Statement, json.loads(canonical(content)), where=where)


def _write_rows(
    ledger: Ledger, path: Path, since: datetime, until: datetime, tasks: Collection[str], progress: ProgressCallback
) -> tuple[Tally, dict[str, str]]:
    """Write a line for each row, and return their sums and the guarantees that they name; `path` is whole or not there.

    Raise ConfigError if rows are missing that the ledger's sums count.
    """
    hour = until.replace(minute=0, second=0, microsecond=0)
    n_rows = sum(one.n - one.n_without_row for one in _sums(ledger, since, hour, tasks))
    tally, guarantees, n_found = Tally(), dict[str, str](), 0
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Line._fields)
            for row in ledger_lines(ledger, since, until, tasks, guarantees):
                writer.writerow(row)
                tally.add(row)
                n_found += row.at < hour.isoformat()
                if n_found % STEP == 0:
                    progress(n_found, n_rows)
        if n_found < n_rows:
            raise ConfigError(
                f"of the {n_rows:,} rows of {since:%Y-%m} that the ledger's sums count, {n_found:,} are left: "
                "others expired",
                hint="make a statement before rows expire: smallfirst serve --keep-rows-days",
            )
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return tally, guarantees


def _sums(ledger: Ledger, since: datetime, until: datetime, tasks: Collection[str]) -> list[Sums]:
    return [one for one in ledger.sums(since, until, by=("task",)) if not tasks or one.task in tasks]


_KINDS = ("answers of small models", "answers of the large model", "discarded drafts", "audits", "other answers")
"""Kinds of cost that come first in a bill, in this order."""


def _kind(one: Sums) -> str:
    if one.kind != "answer":
        return "audits" if one.kind == "audit" else one.kind
    if one.outcome != "answered":
        return {"refused": "refused requests", "left": "requests the client left"}.get(one.outcome, "failed requests")
    if one.stage == "large":
        return "answers of the large model"
    return "answers of small models" if one.task and is_small(one.stage) else "other answers"


def month_of(month: str) -> tuple[datetime, datetime]:
    """Return begin and end of a month such as `2026-11` in UTC. Raise ConfigError if it is none."""
    found = re.fullmatch(r"(\d{4})-(0[1-9]|1[0-2])", month)
    if found is None:
        raise ConfigError(f'"{month}" is no month', hint="write year and month: --month 2026-11")
    year, number = int(found[1]), int(found[2])
    return datetime(year, number, 1, tzinfo=UTC), datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)


def signing_key(state: Path) -> Ed25519PrivateKey:
    """Return the key of a state folder; make it if there is none, readable by its owner only. Raise ConfigError."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ModuleNotFoundError as error:
        raise as_missing_extra(error) from None
    path = state / KEY
    try:
        if not path.exists():
            write_atomically(path, base64.b64encode(os.urandom(32)) + b"\n", mode=0o600)
        return Ed25519PrivateKey.from_private_bytes(base64.b64decode(path.read_bytes(), validate=False))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: no signing key: {error}", hint="put it back from a backup, or move it away"
        ) from None


def public_text(key: Ed25519PrivateKey) -> str:
    """Return the public key: 32 bytes in Base64."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def canonical(content: Any) -> bytes:
    """Return JSON with sorted keys and without spaces, in UTF-8: what is signed."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def page_of(statement: Statement, public_key: str) -> bytes:
    """Return the page of a statement: it follows from what is signed and the key, byte for byte."""
    title = f"Statement of {statement.since:%B %Y}{' so far' if statement.so_far else ''}"
    values = {"title": title, "statement": statement, "public_key": public_key}
    return render_page("statement.html", **values).encode()


class Verified(NamedTuple):
    """What was checked."""

    statement: Statement
    public_key: str
    """The key that signed it."""
    page: str
    """What was found out about the page, in words."""


def verify(
    folder: Path, *, public_key: str = "", ledger: Ledger | None = None, progress: ProgressCallback = no_progress
) -> Verified:
    """Return the statement in `folder` after all has been checked offline.

    Raise ConfigError, naming what does not fit: the signature, the key if `public_key` is given, the rows, figures that
    do not follow from the rows, the page, and with a `ledger` the first row that differs from it.
    """
    path, rows = folder / SIGNED, folder / ROWS
    content, signer = _read_signed(path)
    if public_key and public_key != signer:
        raise ConfigError(f"{path} is signed by {signer}, not by {public_key}", hint="ask who sent it to you")
    statement = read_content(content, where=str(path))
    found = _add_up(rows, statement, progress).figures(statement.evaluated)
    if differing := [name for name in Figures.model_fields if getattr(found, name) != getattr(statement.figures, name)]:
        made = "" if statement.made_by == MADE_BY else f"; {statement.made_by} made it: check it with that version"
        raise _changed(f"{path}: {', '.join(differing)} do not follow from the rows{made}")
    if wrong := [words for name, words in statement.guarantees.items() if digest(words) != name]:
        raise _changed(f'{path}: the rows know no promise "{wrong[0]}"')
    page = _check_page(folder / PAGE, statement, signer)
    if ledger is not None:
        _compare(rows, statement, ledger)
    return Verified(statement, signer, page)


def _read_signed(path: Path) -> tuple[Any, str]:
    """Return what is signed, and the key. Raise ConfigError unless the file is, byte for byte, as it is written.

    So each name stands once, and none that nobody signed.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        signed = json.loads(raw := path.read_bytes())
        if canonical(signed) != raw or sorted(signed) != ["public_key", "signature", "statement"]:
            raise ValueError("it is not as a statement is written")
        key, signature = (base64.b64decode(signed[name], validate=True) for name in ("public_key", "signature"))
        written = tuple(base64.b64encode(part).decode() for part in (key, signature))
        if written != (signed["public_key"], signed["signature"]):
            raise ValueError("key or signature is not as Base64 is written")
        Ed25519PublicKey.from_public_bytes(key).verify(signature, canonical(signed["statement"]))
    except InvalidSignature:
        raise _changed("the signature does not fit: the statement was changed after it was signed") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: no statement: {error}", hint="name the folder that holds it, as it was sent"
        ) from None
    return signed["statement"], signed["public_key"]


def _add_up(path: Path, statement: Statement, progress: ProgressCallback) -> Tally:
    """Return the sums of the rows. Raise ConfigError if they are not those that were signed."""
    tally = Tally()
    try:
        if sha256(path) != statement.rows_sha256:
            raise ValueError("its SHA-256 is another")
        for n, row in enumerate(read_lines(path)):
            tally.add(row)
            if n % STEP == 0:
                progress(n, statement.figures.n)
    except (OSError, ValueError, csv.Error) as error:
        raise _changed(f"{path}: these are not the rows that were signed: {error}") from None
    return tally


def _check_page(path: Path, statement: Statement, public_key: str) -> str:
    """Say what was found out about the page. Raise ConfigError if it is not the one that was signed, or shows others.

    Pages of other versions look otherwise, so one that was signed by another version is only compared with its SHA-256.
    """
    if not path.exists():
        return f"{path.name} is not there: no page was compared"
    if sha256(path) != statement.page_sha256:
        raise _changed(f"{path} was changed after it was signed: its SHA-256 is another")
    if statement.made_by != MADE_BY:
        return f"{path.name} is as it was signed, by {statement.made_by}"
    if page_of(statement, public_key) != path.read_bytes():
        raise _changed(f"{path} is not the page of these figures: made anew from them it is another")
    return f"{path.name} was made anew from these figures: equal, byte for byte"


def _compare(path: Path, statement: Statement, ledger: Ledger) -> None:
    ours = ledger_lines(ledger, statement.since, statement.until, statement.tasks, {})
    for said, held in zip_longest(read_lines(path), ours):
        if said != held:
            one = said or held
            where = "not as there" if said and held else f"only in the {'statement' if said else 'ledger'}"
            raise ConfigError(
                f"{one.kind} {one.id} of {one.at} is {where}: statement and ledger {ledger.place} differ",
                hint="rows that came later or expired differ too: make the statement anew, or look at the row with  "
                f"smallfirst explain {one.id}",
            )


def _changed(message: str) -> ConfigError:
    return ConfigError(message, hint="ask the sender for the folder as it was signed")
