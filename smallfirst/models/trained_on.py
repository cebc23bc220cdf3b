"""Which rows a model was fitted and chosen on, as fingerprints beside its weights: none of them can certify it."""

from __future__ import annotations

from pathlib import Path

from smallfirst.data.dataset import Dataset, Example, fold_text
from smallfirst.errors import DataError, Problem
from smallfirst.records import Record, fingerprint

TRAINED_ON = "trained_on.json"
"""File in a model's folder."""


class TrainedOn(Record):
    """The rows that a model was fitted and chosen on."""

    texts: frozenset[str] = frozenset()
    """Fingerprints of the texts without case, punctuation and spacing."""
    groups: frozenset[str] = frozenset()
    """Fingerprints of the groups."""

    @classmethod
    def of(cls, rows: Dataset) -> TrainedOn:
        texts = frozenset(fingerprint(fold_text(example.asked)) for example in rows.examples)
        return cls(texts=texts, groups=frozenset(fingerprint(e.group) for e in rows.examples if e.group))

    @classmethod
    def read(cls, folder: Path) -> TrainedOn | None:
        """Return what the model in a folder was fitted and chosen on; None in folders of before 2026-11-30."""
        path = folder / TRAINED_ON
        return cls.load(path) if path.is_file() else None

    def has_seen(self, example: Example) -> bool:
        """Return True if the row, a copy of it or its group is among these rows."""
        group = bool(example.group) and fingerprint(example.group) in self.groups
        return group or fingerprint(fold_text(example.asked)) in self.texts


def refuse_seen_rows(folder: Path, rows: Dataset) -> None:
    """Raise DataError if the model in a folder was fitted or chosen on one of these rows, a copy of it or its group.

    A certificate from such rows would promise too much: the model knows their answers.
    """
    known = TrainedOn.read(folder)
    seen = [example for example in rows.examples if known is not None and known.has_seen(example)]
    if seen:
        raise DataError(
            f"{len(seen)} of {len(rows)} rows to certify {folder.name} with are rows that it was fitted or chosen on",
            [Problem(e.path, e.line, "a copy of it, or its group, is among the model's rows") for e in seen],
            hint="smallfirst run task.yaml   fits a model without them; or take these rows out",
        )
