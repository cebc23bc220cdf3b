"""The check of a statement that somebody sent: nothing in its folder was changed, and one follows from another.

What was signed is read in one way only: each name once, none that is unknown, byte for byte as it is written. The key
comes with the folder, so it shows that one hand made it all; whose hand, only a key shows that came another way.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.billing.statement import MADE_BY, PAGE, ROWS, SIGNED, STEP, Statement, canonical, read_content
from smallfirst.billing.statement_page import page_of
from smallfirst.billing.statement_rows import Figures, Line, Tally, digest, ledger_lines, read_lines
from smallfirst.errors import ConfigError
from smallfirst.files import sha256
from smallfirst.progress import ProgressCallback, no_progress
from smallfirst.serving.ledger.ledger import Ledger

_NAMES = ("public_key", "signature", "statement")


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
        raise _changed(f"{path}: {', '.join(differing)} do not follow from the rows", statement)
    if wrong := [words for name, words in statement.guarantees.items() if digest(words) != name]:
        raise _changed(f'{path}: the rows know no promise "{wrong[0]}"', statement)
    page = _check_page(folder / PAGE, statement, signer)
    if ledger is not None:
        _compare(read_lines(rows), statement, ledger)
    return Verified(statement, signer, page)


def _read_signed(path: Path) -> tuple[Any, str]:
    """Return what is signed, and the key. Raise ConfigError unless the file is as it is written, and the signature."""
    try:
        raw = path.read_bytes()
        signed = json.loads(raw, object_pairs_hook=_each_once, parse_constant=_no_constant)
        if not isinstance(signed, dict) or (missing := [name for name in _NAMES if name not in signed]):
            raise ValueError(f"{', '.join(missing)} is missing" if isinstance(signed, dict) else "not an object")
        if unknown := [name for name in signed if name not in _NAMES]:
            raise ValueError(f"{', '.join(unknown)}: nobody signed that; there is {', '.join(_NAMES)} and no more")
        if (written := canonical(signed)) != raw:
            at = next(i for i, (a, b) in enumerate(zip_longest(raw, written)) if a != b)
            near = raw[max(0, at - 20) : at + 20].decode(errors="replace")
            raise ValueError(f"byte {at}, at {near!r}: not as it is written, names in order and no spaces")
        key, signature = _bytes(signed, "public_key", 32), _bytes(signed, "signature", 64)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: no statement: {error}", hint="name the folder that holds it, as it was sent"
        ) from None
    _check_signature(key, signature, canonical(signed["statement"]))
    return signed["statement"], signed["public_key"]


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        beside = ", ".join(name for name in found if name != twice)
        raise ValueError(f'"{twice}" stands more than once, beside {beside or "nothing else"}; each name stands once')
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _bytes(signed: dict[str, Any], name: str, n: int) -> bytes:
    try:
        content = base64.b64decode(signed[name], validate=True)
    except ValueError:
        content = b""
    if len(content) != n or base64.b64encode(content).decode() != signed[name]:
        raise ValueError(f"{name} is not the Base64 of {n} bytes")
    return content


def _check_signature(public_key: bytes, signature: bytes, content: bytes) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, content)
    except InvalidSignature:
        raise _changed("the signature does not fit: the statement was changed after it was signed") from None


def _add_up(path: Path, statement: Statement, progress: ProgressCallback) -> Tally:
    """Return the sums of the rows. Raise ConfigError naming the first that was changed, or that these are others."""
    tally, n = Tally(), 0
    try:
        if sha256(path) != statement.rows_sha256:
            for _ in read_lines(path):  # the first that was changed is named
                pass
            raise _changed(f"{path}: these are other rows than those that were signed")
        for n, line in enumerate(read_lines(path)):
            tally.add(line)
            if n % STEP == 0:
                progress(n, statement.figures.n)
    except (OSError, ValueError, csv.Error) as error:
        raise _changed(f"{path}: row {n + 1} is not readable: {error}") from None
    return tally


def _check_page(path: Path, statement: Statement, public_key: str) -> str:
    """Say what was found out about the page. Raise ConfigError if it is not the one that was signed, or shows others.

    Pages of other versions look otherwise, so one that was signed by another version is only compared with its SHA-256.
    """
    if not path.exists():
        return f"{path.name} is not there: no page was compared"
    if sha256(path) != statement.page_sha256:
        raise _changed(f"{path} was changed after it was signed: its SHA-256 is another")
    if page_of(statement, public_key) == path.read_bytes():
        return f"{path.name} was made anew from these figures: equal, byte for byte"
    if statement.made_by == MADE_BY:
        raise _changed(f"{path} is not the page of these figures: made anew from them it is another")
    return f"{path.name} is as it was signed; {statement.made_by} made it, and {MADE_BY} cannot make the same again"


def _compare(lines: Iterator[Line], statement: Statement, ledger: Ledger) -> None:
    ours = ledger_lines(ledger, statement.since, statement.until, statement.tasks, {})
    for said, held in zip_longest(lines, ours):
        if said is None or held is None or said[:-1] != held[:-1]:
            one = said or held
            assert one is not None
            where = (
                "only in the ledger" if said is None else "only in the statement" if held is None else "not as there"
            )
            raise ConfigError(
                f"{one.kind} {one.id} of {one.at} is {where}: statement and ledger {ledger.place} differ",
                hint="rows that came later or expired differ too: make the statement anew, or look at the row with  "
                f"smallfirst explain {one.id}",
            )


def _changed(message: str, statement: Statement | None = None) -> ConfigError:
    if statement is not None and statement.made_by != MADE_BY:
        return ConfigError(
            message, hint=f"{statement.made_by} made it and this is {MADE_BY}: check it with that version"
        )
    return ConfigError(message, hint="ask the sender for the folder as it was signed")
