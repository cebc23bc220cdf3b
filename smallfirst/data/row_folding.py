"""What a value may be written as without meaning anything else: spaces around labels, numbers for labels, empty rows.

Each is read as what it means, counted, and noted with its first places; nothing is changed in silence.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from smallfirst.data.quality.findings import Finding, make_finding
from smallfirst.data.row_formats import TAG, RowLayout

_TRIMMED = {
    "label": ("text", "label"),
    "labels": ("text", "labels"),
    "target": ("text",),
    "question": ("question", "answer"),
}
_ANSWERS = ("label", "labels", "answer")
N_PLACES = 3
"""Places named of each kind of folding, which changes no meaning."""


def is_empty_row(values: Mapping[str, Any], layout: RowLayout | None = None) -> bool:
    """Return True if nothing stands in the row, or in the columns that make it."""
    beside = ("group", "source", TAG)
    keys = values if layout is None else [key for field, key in layout.keys.items() if not field.startswith(beside)]
    return all(is_blank(values[key]) for key in keys)


class Folding:
    """Folds the rows of one source and notes what it folded."""

    def __init__(self) -> None:
        self._n: dict[str, int] = defaultdict(int)
        self._places: dict[str, list[str]] = defaultdict(list)

    def fold(self, values: Mapping[str, Any], layout: RowLayout, path: str, line: int) -> Mapping[str, Any]:
        """Return the row with labels as text and no spaces around what is compared as a whole."""
        folded = dict(values)
        for field, key in layout.keys.items():
            if field in _ANSWERS:
                folded[key] = self._each(folded[key], _as_text)
                if folded[key] is not None and folded[key] != values[key]:
                    self._count(f'numbers, or true and false, in "{key}"', path, line)
            before = folded[key]
            if field in _TRIMMED.get(layout.shape, ()):
                folded[key] = self._each(before, lambda value: value.strip() if isinstance(value, str) else value)
                if folded[key] != before:
                    self._count(f'spaces around "{key}"', path, line)
        return folded

    def skip_empty(self, path: str, line: int) -> None:
        """Note an empty row, which is left out."""
        self._count("empty rows", path, line)

    @property
    def notes(self) -> tuple[Finding, ...]:
        """One finding for each kind of folding, with its number of rows and the first places."""
        rules = {"empty": "left out", "spaces": "read without them", "numbers,": "read as the text that they are"}
        return tuple(
            make_finding("note", f"{what}: {n:,} row{'s' * (n > 1)}", rules[what.split()[0]], self._places[what], n=n)
            for what, n in self._n.items()
        )

    def _count(self, what: str, path: str, line: int) -> None:
        self._n[what] += 1
        if len(self._places[what]) < N_PLACES:
            self._places[what].append(f"{path}:{line}")

    @staticmethod
    def _each(value: Any, change: Any) -> Any:
        return [change(item) for item in value] if isinstance(value, list) else change(value)


def scalar_text(value: Any) -> str:
    """Return a scalar of a table as text: `3` and not 3.0, `true` and not True."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def is_blank(value: Any) -> bool:
    """Return True for what says nothing: null, NaN, an empty text or list."""
    return value is None or value != value or value in ([], {}) or (isinstance(value, str) and not value.strip())


def _as_text(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None  # what pandas writes for a value that is missing
    return scalar_text(value) if isinstance(value, int | float) else value
