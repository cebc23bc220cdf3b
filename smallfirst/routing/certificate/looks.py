"""How many certificates were tried on the same calibration rows, and the level that is left for the next one.

Look k spends 1 / (k (k + 1)) of the error probability, so all looks together spend at most the whole of it, however
many there are. A look counts before its certificate is made, issued or not, for any model and any guarantee of the
task; the same certificate from the same answers is the same look. Rows that share a text with an earlier look, or with
one that shares rows with it, continue the count; rows that share none begin at 1.

`certify` counts itself, and all that it was given tells one look from another, but for what is named here: other
selection rows, groups, tags or confidences of fields prove something else, and whoever tries ten of them has ten
chances. What is not covered: a model fitted to calibration rows, and the same rows under the name of another task.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from smallfirst.data.dataset import fold_text
from smallfirst.evaluation.results import Evaluation
from smallfirst.files import locked
from smallfirst.records import Record, fingerprint

PROVES_NOTHING = frozenset({"looks", "alone", "person", "usd_per_wrong_answer"})
"""Parameters of `certify` without a part in what is proven: the file of the count, and what is to happen below the
threshold, of which nothing is guaranteed."""
DESCRIBES = frozenset(
    {"candidate", "model", "task", "split", "dataset_fingerprint", "accuracy", "measures", "parts", "cost_usd_per_1k"}
    | {"p50_ms", "p95_ms", "requests_per_s", "note", "probes_ms", "cost_usd", "latency_ms"}
)
"""Fields of an Evaluation, or of a row, that name it, follow from its rows, or are measured anew with equal answers: a
cost at most chooses among thresholds that are shown together."""


class Look(Record):
    """One certificate that was tried."""

    number: int
    """Number of the look, from 1."""
    trial: str
    """Fingerprint of all that the certificate was made from."""
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


def text_fingerprints(texts: Iterable[str]) -> set[str]:
    """Return what names calibration rows by their texts, whatever the spacing, case and punctuation."""
    return {fingerprint(fold_text(text)) for text in texts}


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
