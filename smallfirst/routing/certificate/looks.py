"""How many certificates were tried on the same calibration rows, and the error probability that each of them spends.

LARGE of the error probability is one portion, spent by one look at connected rows; what is left is for all others
together, of which the j-th takes SMALL / (j (j + 1)). So all looks together spend at most the whole of it, however many
there are and whichever comes first. Certificates that were fixed together before rows were read (`SharedLook`) are one
look and divide its portion.

A look counts before its certificate is made, issued or not, for any model and any guarantee of the task; the same
certificate from the same answers is the same look. Rows are connected that share a text with an earlier look, or with
one that shares rows with it. Where rows are joined that have spent the whole apart, a look spends nothing and its
certificate is refused.

All that a certificate proves something with tells one look from another: whoever tries ten selections, groupings or
confidences of fields has ten chances. What is not covered: a model fitted to calibration rows, and the same rows under
the name of another task.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from smallfirst.base.files import locked
from smallfirst.base.records import Record, fingerprint
from smallfirst.base.stats.sequential import spent_level
from smallfirst.data.dataset import fold_text

FOLDED = "\0folded:"
"""Begins a row's text of which only the fingerprint is known; no text of a file begins so."""
LARGE, SMALL = 0.8, 0.2
"""Shares of the error probability: of one look at connected rows, and of all others together."""
Portion = Literal["large", "small"]
"""Which share a look takes: the large one, if no look at connected rows has taken it, or the next small one."""


class Look(Record):
    """One certificate that was tried."""

    number: int
    """From 1."""
    trial: str
    """Fingerprint of all that the certificate was made from."""
    rows: tuple[str, ...]
    """Fingerprints of the texts of its calibration rows."""
    portion: Portion
    """What it, with its family, took."""
    spent: float
    """Share of the error probability that counts as spent with it: 0 for all but the first of a family."""
    share: float
    """Share of the error probability at which its own certificate was made."""
    family: str = ""
    """Name of its SharedLook."""
    part: float = 1.0
    """Its part of the family's portion."""


class Looks(Record):
    """The looks of a task, in order."""

    looks: tuple[Look, ...] = ()
    read: dict[str, str] = {}
    """By fingerprint of a test row's text: the run that read it first."""

    @classmethod
    def of(cls, path: Path) -> Looks:
        return cls.load(path) if path.exists() else cls()


class SharedLook(NamedTuple):
    """A certificate among those that were fixed together, before a row of theirs was read.

    Their parts sum to at most 1, so all of them hold together at the level of one look, whichever are tried.
    """

    name: str = ""
    """Names the certificates with their parts; empty: it is the only one."""
    part: float = 1.0
    """Part of the look's portion, in (0, 1]."""


ALONE = SharedLook()


class LookRequest(NamedTuple):
    """How a certificate is counted among those that are tried on the same rows."""

    path: Path
    """The file of the task's Looks."""
    portion: Portion = "large"
    shared: SharedLook = ALONE
    n_once: int = 0
    """How many of the rows a later look may not use."""


def count_look(asked: LookRequest, rows: Collection[str], trial: str) -> Look:
    """Return this look, and record it in the task's file unless it is there."""
    with locked(asked.path.with_suffix(".lock")):
        found = Looks.of(asked.path)
        for one in found.looks:
            if one.trial == trial:
                return one
        look = _next(found.looks, set(rows), trial, asked.portion, asked.shared)
        found.model_copy(update={"looks": (*found.looks, look)}).save(asked.path)
    return look


def next_look(path: Path, rows: Collection[str]) -> Look:
    """Return the look that the next new certificate on these rows would be; nothing is recorded."""
    return _next(Looks.of(path).looks, set(rows), "", "large", ALONE)


def _next(earlier: Sequence[Look], rows: set[str], trial: str, portion: Portion, family: SharedLook) -> Look:
    near = _connected(earlier, rows)
    spent_before = sum(one.spent for one in near)
    kin = [one for one in near if family.name and one.family == family.name]
    if joins := bool(kin) and sum(one.part for one in kin) + family.part <= 1 + 1e-9:
        taken, spent, wanted = kin[0].portion, 0.0, kin[0].spent if spent_before <= 1 else 0.0
    else:
        large_is_left = all(one.portion == "small" for one in near)
        taken = "large" if portion == "large" and large_is_left else "small"
        n_small = sum(one.portion == "small" and one.spent > 0 for one in near)
        left = 1 - spent_before - (LARGE if taken == "small" and large_is_left else 0.0)
        wanted = LARGE if taken == "large" else spent_level(SMALL, 1 + n_small)
        wanted = spent = min(wanted, left if left > 1e-9 else 0.0)
    return Look(
        number=1 + len(near),
        trial=trial,
        rows=tuple(sorted(rows)),
        portion=taken,
        spent=spent,
        share=family.part * wanted,
        family=family.name if joins or not kin else "",
        part=family.part,
    )


def _connected(earlier: Sequence[Look], rows: set[str]) -> list[Look]:
    """Return the looks that share a row with these, or with a look that does."""
    apart, found = list(earlier), list[Look]()
    while near := [one for one in apart if not rows.isdisjoint(one.rows)]:
        apart = [one for one in apart if one not in near]
        found += near
        rows = rows.union(*(one.rows for one in near))
    return [one for one in earlier if one in found]


def mark_read(path: Path, run: str, rows: Collection[str]) -> None:
    """Record in the file `path` that `run` reads test rows with these fingerprints, unless an earlier one has."""
    with locked(path.with_suffix(".lock")):
        found = Looks.of(path)
        if new := {row: run for row in sorted(rows) if row not in found.read}:
            found.model_copy(update={"read": found.read | new}).save(path)


def read_before(path: Path, run: str, rows: Collection[str]) -> set[str]:
    """Return those fingerprints of test rows that a run before `run` has read."""
    read = Looks.of(path).read
    return {row for row in rows if read.get(row, run) != run}


def text_fingerprints(texts: Iterable[str]) -> set[str]:
    """Return what names calibration rows by their texts, whatever the spacing, case and punctuation."""
    return {text.removeprefix(FOLDED) if text.startswith(FOLDED) else fingerprint(fold_text(text)) for text in texts}
