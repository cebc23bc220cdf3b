"""How many certificates were tried on the same calibration rows, and the error probability that each of them spends.

LARGE of the error probability is one portion, spent by one look at connected rows; what is left is for all others
together, of which the j-th takes SMALL / (j (j + 1)). So all looks together spend at most the whole of it, however many
there are and whichever comes first. `certify(..., portion="large")` takes the large portion while it is there, and a
small one afterwards; `portion="small"` keeps the large one for a later look. Certificates that were fixed together
before rows were read (`SharedLook`) are one look and divide its portion.

A look counts before its certificate is made, issued or not, for any model and any guarantee of the task; the same
certificate from the same answers is the same look. Rows are connected that share a text with an earlier look, or with
one that shares rows with it; rows that share none begin anew. Where rows are joined that were certified apart, and have
spent the whole already, a look spends nothing and its certificate is refused.

`certify` counts itself, and all that it was given tells one look from another, but for what is named here: other
selection rows, groups, tags or confidences of fields prove something else, and whoever tries ten of them has ten
chances. What is not covered: a model fitted to calibration rows, and the same rows under the name of another task.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from smallfirst.data.dataset import fold_text
from smallfirst.evaluation.results import Evaluation
from smallfirst.files import locked
from smallfirst.records import Record, fingerprint
from smallfirst.stats.sequential import spent_level

FOLDED = "\0folded:"
"""Begins a row's text of which only the fingerprint is known; no text of a file begins so."""
PROVES_NOTHING = frozenset({"looks", "n_once", "alone", "person", "usd_per_wrong_answer"})
"""Parameters of `certify` without a part in what is proven: the file of the count, and what is to happen below the
threshold, of which nothing is guaranteed."""
DESCRIBES = frozenset(
    {"candidate", "model", "task", "split", "dataset_fingerprint", "accuracy", "measures", "parts", "cost_usd_per_1k"}
    | {"p50_ms", "p95_ms", "requests_per_s", "note", "probes_ms", "cost_usd", "latency_ms"}
)
"""Fields of an Evaluation, or of a row, that name it, follow from its rows, or are measured anew with equal answers: a
cost at most chooses among thresholds that are shown together."""


LARGE, SMALL = 0.8, 0.2
"""Shares of the error probability: of one look at connected rows, and of all others together."""
Portion = Literal["large", "small"]
"""Which share a look takes: the large one, if no look at connected rows has taken it, or the next small one."""


class Look(Record):
    """One certificate that was tried."""

    number: int
    """Number of the look, from 1."""
    trial: str
    """Fingerprint of all that the certificate was made from."""
    rows: tuple[str, ...]
    """Fingerprints of the texts of its calibration rows."""
    portion: Portion
    """What it, with its family, took."""
    spent: float
    """Share of the error probability that counts as spent with it, in [0, 1]: its family's whole portion for the first
    of a family, 0 for the others."""
    share: float
    """Share of the error probability at which its own certificate was made, in [0, 1]."""
    family: str = ""
    """Name of the certificates that were fixed together with it; empty for none."""
    part: float = 1.0
    """Its part of the family's portion, in (0, 1]."""


class Looks(Record):
    """The looks of a task, in order."""

    looks: tuple[Look, ...] = ()
    read: dict[str, str] = {}
    """By fingerprint of a test row's text: the run that read it first."""


class SharedLook(NamedTuple):
    """A certificate among those that were fixed together, before a row of theirs was read.

    Their parts sum to at most 1, so all of them hold together at the level of one look, whichever are tried.
    """

    name: str = ""
    """Names the certificates with their parts; empty: it is the only one."""
    part: float = 1.0
    """Part of the look's portion, in (0, 1]."""


ALONE = SharedLook()


def count_look(
    path: Path, rows: Collection[str], trial: str, portion: Portion = "large", family: SharedLook = ALONE
) -> Look:
    """Return this look, and record it in the file `path` unless it is there."""
    with locked(path.with_suffix(".lock")):
        found = _read(path)
        for one in found.looks:
            if one.trial == trial:
                return one
        look = _next(found.looks, set(rows), trial, portion, family)
        found.model_copy(update={"looks": (*found.looks, look)}).save(path)
    return look


def next_look(path: Path, rows: Collection[str], portion: Portion = "large") -> Look:
    """Return the look that the next new certificate on these rows would be; nothing is recorded."""
    return _next(_read(path).looks, set(rows), "", portion, ALONE)


def spent_by_look(number: int, first: Portion = "large") -> float:
    """Return the share that look `number` takes, in [0, 1], where the first takes `first` and the others small ones."""
    if first == "large" and number == 1:
        return LARGE
    return spent_level(SMALL, number - (first == "large"))


def _next(earlier: Sequence[Look], rows: set[str], trial: str, portion: Portion, family: SharedLook) -> Look:
    near = _connected(earlier, rows)
    number, kin = 1 + len(near), [one for one in near if family.name and one.family == family.name]
    look = Look(
        number=number, trial=trial, rows=tuple(sorted(rows)), portion=portion, spent=0, share=0, part=family.part
    )
    if kin and sum(one.part for one in kin) + family.part <= 1 + 1e-9:  # what the first of them took is for all
        first = kin[0]
        share = family.part * first.spent if sum(one.spent for one in near) <= 1 else 0.0
        return look.model_copy(update={"family": family.name, "portion": first.portion, "share": share})
    large_is_left = all(one.portion == "small" for one in near)
    taken: Portion = "large" if portion == "large" and large_is_left else "small"
    n_small = sum(one.portion == "small" and one.spent > 0 for one in near)
    wanted = LARGE if taken == "large" else spent_level(SMALL, 1 + n_small)
    reserved = LARGE if taken == "small" and large_is_left else 0.0
    left = max(0.0, 1 - reserved - sum(one.spent for one in near))
    spent = min(wanted, left if left > 1e-9 else 0.0)
    name = "" if kin else family.name
    return look.model_copy(update={"portion": taken, "spent": spent, "share": family.part * spent, "family": name})


def mark_read(path: Path, run: str, rows: Collection[str]) -> None:
    """Record in the file `path` that `run` reads test rows with these fingerprints, unless an earlier one has."""
    with locked(path.with_suffix(".lock")):
        found = _read(path)
        if new := {row: run for row in sorted(rows) if row not in found.read}:
            found.model_copy(update={"read": found.read | new}).save(path)


def read_before(path: Path, run: str, rows: Collection[str]) -> set[str]:
    """Return those fingerprints of test rows that a run before `run` has read."""
    read = _read(path).read
    return {row for row in rows if read.get(row, run) != run}


def _read(path: Path) -> Looks:
    return Looks.load(path) if path.exists() else Looks()


def _connected(earlier: Sequence[Look], rows: set[str]) -> list[Look]:
    """Return the looks that share a row with these, or with a look that does."""
    apart, found = list(earlier), list[Look]()
    while near := [one for one in apart if not rows.isdisjoint(one.rows)]:
        apart = [one for one in apart if one not in near]
        found += near
        rows = rows.union(*(one.rows for one in near))
    return [one for one in earlier if one in found]


def text_fingerprints(texts: Iterable[str]) -> set[str]:
    """Return what names calibration rows by their texts, whatever the spacing, case and punctuation."""
    return {text.removeprefix(FOLDED) if text.startswith(FOLDED) else fingerprint(fold_text(text)) for text in texts}


def trial_fingerprint(inputs: Mapping[str, object]) -> str:
    """Return what tells a certificate from another: the arguments of `certify` by name.

    Numbers count to the last digit; the order of rows does not.
    """
    return fingerprint({name: _plain(value) for name, value in inputs.items() if name not in PROVES_NOTHING})


def in_order(evaluation: Evaluation) -> Evaluation:
    """Return the evaluation with its rows in the order of their contents, wherever they stood."""
    unordered = {"cost_usd", "latency_ms"}
    rows = sorted(evaluation.rows, key=lambda row: row.model_dump_json(exclude=unordered))
    return evaluation.model_copy(update={"rows": tuple(rows)})


def _plain(value: object) -> Any:
    if isinstance(value, Evaluation):
        rows = [row.model_dump(mode="json", exclude=set(DESCRIBES)) for row in value.rows]
        return value.model_dump(mode="json", exclude={"rows", *DESCRIBES}) | {"rows": rows}
    if isinstance(value, Record):
        return value.model_dump(mode="json")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value
