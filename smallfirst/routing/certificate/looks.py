"""How many certificates were tried on the same calibration rows, and the level that is left for the next one.

Look k spends 1 / (k (k + 1)) of the error probability, so all looks together spend at most the whole of it, however
many there are. A look counts before its certificate is made, issued or not, for any model and any guarantee of the
task; the same certificate from the same answers is the same look. Rows that share a text with an earlier look, or with
one that shares rows with it, continue the count; rows that share none begin at 1. What is not covered: a model fitted
to calibration rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from smallfirst.evaluation.results import Evaluation
from smallfirst.files import locked
from smallfirst.records import Record, fingerprint
from smallfirst.routing.certificate.guarantee import Guarantee


class Look(Record):
    """One certificate that was tried."""

    number: int
    """Number of the look, from 1."""
    trial: str
    """Fingerprint of the guarantee and of the answers that it was tried on."""
    rows: tuple[str, ...]
    """Fingerprints of the texts of its calibration rows."""


class Looks(Record):
    """The looks of a task, in order."""

    looks: tuple[Look, ...] = ()


def count_look(path: Path, rows: Collection[str], trial: str) -> int:
    """Return the number of this look, and record it in the file `path` unless it is there."""
    with locked(path.with_suffix(".lock")):
        earlier = _read(path)
        for one in earlier:
            if one.trial == trial:
                return one.number
        number = 1 + _n_connected(earlier, set(rows))
        new = Look(number=number, trial=trial, rows=tuple(sorted(rows)))
        Looks(looks=(*earlier, new)).save(path)
    return number


def next_look(path: Path, rows: Collection[str]) -> int:
    """Return the number that the next new certificate on these rows would have; nothing is recorded."""
    return 1 + _n_connected(_read(path), set(rows))


def _read(path: Path) -> tuple[Look, ...]:
    return Looks.load(path).looks if path.exists() else ()


def _n_connected(earlier: Sequence[Look], rows: set[str]) -> int:
    """Return how many looks share a row with these, or with a look that does."""
    apart, found = list(earlier), 1
    while found:
        near = [one for one in apart if not rows.isdisjoint(one.rows)]
        apart, found = [one for one in apart if one not in near], len(near)
        rows = rows.union(*(one.rows for one in near))
    return len(earlier) - len(apart)


def trial_fingerprint(
    drafts: Sequence[Evaluation],
    large: Evaluation | None,
    guarantee: Guarantee,
    foreign: Sequence[Sequence[float]] = (),
) -> str:
    """Return what tells a certificate from another: the guarantee, and what it limits of every answer.

    `foreign`: by stage the confidences of foreign rows, where the guarantee counts them.
    """
    measured: list[object] = [
        [
            (
                row.key,
                row.correct,
                round(row.confidence or 0.0, 6),
                row.cost_usd if guarantee.max_usd_per_1k else 0,
                row.latency_ms if guarantee.max_p95_ms else 0,
            )
            for row in evaluation.rows
        ]
        for evaluation in (*drafts, *([large] if large else []))
    ]
    if guarantee.max_foreign_share:
        measured.append([[round(value, 6) for value in stage] for stage in foreign])
    return fingerprint([guarantee.model_dump(), measured])
