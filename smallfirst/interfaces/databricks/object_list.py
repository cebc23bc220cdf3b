"""A list that shows itself as a table: in a notebook, in a terminal, and as a pandas frame.

Names, paths and messages come from users, so all of them are escaped.
"""

from __future__ import annotations

import html
import importlib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Self, TypeVar

from smallfirst.errors import SmallfirstError

T = TypeVar("T")


class ObjectList(list[T]):
    """Objects of one kind; a list in every way."""

    def __init__(self, data: Iterable[T] = (), columns: Mapping[str, str] | None = None) -> None:
        """`columns`: by heading, the attribute that is shown under it."""
        super().__init__(data)
        self.columns = dict(columns or {})

    def __repr__(self) -> str:
        return f"[{', '.join(repr(item) for item in self)}]"

    def to_pandas(self) -> Any:
        """A DataFrame of the shown columns. Raises SmallfirstError if pandas is not installed."""
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise SmallfirstError(
                "to_pandas() needs pandas, which is not installed", hint="pip install pandas"
            ) from None
        values = {heading: [getattr(item, name) for item in self] for heading, name in self.columns.items()}
        return pandas.DataFrame(values)

    def _repr_html_(self) -> str:
        """The table, for a notebook."""
        head = "".join(f"<th>{html.escape(heading)}</th>" for heading in self.columns)
        rows = ["".join(f"<td>{table_cell(getattr(item, a))}</td>" for a in self.columns.values()) for item in self]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class PagedList(ObjectList[T]):
    """The first objects of a longer list, and the way to the next ones."""

    def __init__(
        self, data: Iterable[T], columns: Mapping[str, str], more: Callable[[int | None], Self] | None = None
    ) -> None:
        """`more` gives the next page of at most so many objects; None at the end."""
        super().__init__(data, columns)
        self._more = more

    @property
    def has_next_page(self) -> bool:
        """True if there are objects after these."""
        return self._more is not None

    def next_page(self, limit: int | None = None) -> Self:
        """The next page, as long as this one unless `limit` says otherwise. Raises StopIteration at the end."""
        if self._more is None:
            raise StopIteration
        return self._more(limit)


def table_cell(value: object) -> str:
    """A value as the text of a table cell, escaped; nothing for None."""
    if value is None:
        return ""
    text = f"{value:%Y-%m-%d %H:%M:%S %Z}" if isinstance(value, datetime) else str(value)
    return html.escape(text)
