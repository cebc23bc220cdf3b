"""What every reader of rows yields, and how much of one source may be read."""

from __future__ import annotations

from typing import Any, NamedTuple

from smallfirst.base.errors import DataError

MAX_ROW_BYTES = 1_000_000
"""A longer row is refused: it is not a row of a narrow task but a file that lost its line ends."""
MAX_SOURCE_BYTES = 2_000_000_000
MAX_SOURCE_ROWS = 10_000_000
"""No more is read of one source: its rows must fit into memory, and a small packed file may claim any size."""

NumberedRow = tuple[int, dict[str, Any] | str]
"""Line or row number from 1, and the values by column or the rule that the row breaks."""


class RawRow(NamedTuple):
    """One row as it stands in its source."""

    path: str
    line: int
    """Line, or number of the row, from 1."""
    values: dict[str, Any] | str
    """Values by column, or the rule that the row breaks."""


def first_line(error: Exception) -> str:
    """Return the first line of what a library says, at most 300 characters; the type of an error without words."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def row_size_rule(n_bytes: int) -> str | None:
    """Return the rule that a row of that size breaks; None if it may be read."""
    return None if n_bytes <= MAX_ROW_BYTES else f"row of {n_bytes:,} bytes; at most {MAX_ROW_BYTES:,} are read"


class ReadBudget:
    """How much of one source may still be read, and what was found out about how it is written."""

    def __init__(self, where: str, max_rows: int | None = None) -> None:
        self.where = where
        self.notes: dict[str, list[str]] = {}
        """Paths by note, such as "read as cp1252, told from its bytes"."""
        self.n_bytes = MAX_SOURCE_BYTES
        self.n_rows = self.max_rows = MAX_SOURCE_ROWS if max_rows is None else max_rows

    def note(self, path: str, *notes: str) -> None:
        for note in notes:
            self.notes.setdefault(note, []).append(path)

    def claim(self, n_bytes: int, n_rows: int = 0) -> None:
        """Raise DataError if the source would be too large with so much more."""
        for left, more, limit, what in (
            (self.n_bytes, n_bytes, MAX_SOURCE_BYTES, "bytes"),
            (self.n_rows, n_rows, self.max_rows, "rows"),
        ):
            if more > left:
                raise DataError(
                    f"{self.where}: more than {limit:,} {what}; no more are read of one source",
                    hint="a narrow task needs no more: draw a random part of the rows",
                )

    def take(self, n_bytes: int, n_rows: int = 0) -> None:
        """Count so much as read. Raise DataError if that is too much."""
        self.claim(n_bytes, n_rows)
        self.n_bytes -= n_bytes
        self.n_rows -= n_rows
