"""From rows as they stand in a source to a Dataset, or to every rule that they break: the same for all sources.

A row is told by its place (file, and line or row number). The price is that a source is kept whole in memory, so
there is a limit to what is read of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst.data.dataset import Dataset, Example, RowFormat
from smallfirst.data.row_formats import ROW_FORMATS, Columns, detect_layout, parse_row
from smallfirst.errors import DataError, Problem

MAX_ROW_BYTES = 1_000_000
"""A longer row is refused: it is no row of a narrow task, but a file with its line ends lost."""
MAX_SOURCE_BYTES = 2_000_000_000
MAX_SOURCE_ROWS = 10_000_000
"""More is not read of one source: its rows must fit into memory, and a small packed file may claim anything."""


class RawRow(NamedTuple):
    """One row as it stands in its source."""

    path: str
    """The file it stands in."""
    line: int
    """Its line, or the number of the row, from 1."""
    values: dict[str, Any] | str
    """Its values by column, or the rule that it breaks."""


class _Shaped(NamedTuple):
    """Which shape the n-th row of a source has."""

    n: int
    path: str
    line: int
    shape: RowFormat


class ReadBudget:
    """How much of one source may still be read."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.n_bytes = MAX_SOURCE_BYTES
        self.n_rows = MAX_SOURCE_ROWS

    def claim(self, n_bytes: int, n_rows: int = 0) -> None:
        """Raises DataError if the source would be too large with so much more."""
        for left, more, most, what in (
            (self.n_bytes, n_bytes, MAX_SOURCE_BYTES, "bytes"),
            (self.n_rows, n_rows, MAX_SOURCE_ROWS, "rows"),
        ):
            if more > left:
                raise DataError(
                    f"{self.where}: more than {most:,} {what}; no more are read of one source",
                    hint="a narrow task needs no more: take a part of the rows, drawn by chance",
                )

    def take(self, n_bytes: int, n_rows: int = 0) -> None:
        """Reads on by so much. Raises DataError if that is too much."""
        self.claim(n_bytes, n_rows)
        self.n_bytes -= n_bytes
        self.n_rows -= n_rows


def require_valid(where: Path | str, data: Dataset, problems: Sequence[Problem]) -> Dataset:
    """The data, if there are no problems. Raises DataError with all of them."""
    if problems:
        n_bad = len({(problem.path, problem.line) for problem in problems})
        raise DataError(
            f"{where}: {n_bad:,} bad and {len(data):,} good rows",
            problems,
            hint="mend these lines; map columns of other names with Columns(text=…, label=…)",
        )
    return data


def build_dataset(
    rows: Iterable[RawRow], name: str, *, columns: Columns, labels: Sequence[str] | None, empty: str
) -> tuple[Dataset, tuple[Problem, ...]]:
    """The good rows as a Dataset of that name, and the problems of the others; both in the order of the rows.

    Raises DataError saying `empty` if there are no rows.
    """
    allowed = dict.fromkeys(labels) if labels is not None else None
    good: list[Example] = []
    problems: list[tuple[int, Problem]] = []
    shaped: list[_Shaped] = []
    n = 0
    for n, (path, line, values) in enumerate(rows, start=1):
        found = values if isinstance(values, str) else detect_layout(values, columns, answered=allowed is not None)
        if isinstance(found, str) or isinstance(values, str):
            problems.append((n, Problem(path, line, str(found))))
            continue
        shaped.append(_Shaped(n, path, line, found.shape))
        example, rules = parse_row(values, found, path=path, line=line, labels=allowed)
        problems += [(n, Problem(path, line, rule)) for rule in rules]
        good += [example] if example else []
    if not n:
        raise DataError(empty)
    usual = Counter(row.shape for row in shaped).most_common(1)[0][0] if shaped else None
    problems = sorted([*problems, *_odd(shaped, usual)], key=lambda placed: placed[0])
    data = Dataset(name=name, examples=tuple(e for e in good if e.shape == usual))
    return data, tuple(problem for _, problem in problems)


def _odd(shaped: Sequence[_Shaped], usual: RowFormat | None) -> list[tuple[int, Problem]]:
    """The rows of another shape than the usual one, as problems."""
    if usual is None:
        return []
    whole = "this file" if len({row.path for row in shaped}) == 1 else "this source"
    rule = "a row of {}, while {} has rows of {}"
    return [
        (row.n, Problem(row.path, row.line, rule.format(ROW_FORMATS[row.shape], whole, ROW_FORMATS[usual])))
        for row in shaped
        if row.shape != usual
    ]
