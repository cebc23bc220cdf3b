"""What an importer makes of the rows of its format: a table with one asked and one answered side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from smallfirst.data.importers.table import Table
from smallfirst.data.sources.reader import RawRow
from smallfirst.errors import Problem


class Converted(NamedTuple):
    """The rows of a format as a table."""

    table: Table
    unused: tuple[Problem, ...] = ()
    """Rows that cannot be used, each with the reason."""
    notes: tuple[str, ...] = ()
    """What was assumed, changed or left out, in words for the user."""
    about: str = ""
    """The job in words: the system prompt that all rows share."""
    model: str = ""
    """The model that gave the answers; empty for people's."""


class Importer(Protocol):
    """One format of rows that is no table."""

    title: str
    """What the format is called, such as "Label Studio export"."""

    def recognizes(self, row: dict[str, Any]) -> bool:
        """Return True if the row is of this format."""

    def convert(self, rows: Sequence[RawRow]) -> Converted:
        """Return the rows as a table. Rows that break a rule are not among them."""
