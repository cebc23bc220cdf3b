"""Lists that show themselves as escaped tables in a notebook and convert to pandas frames."""

from __future__ import annotations

import html
import importlib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Self, TypeVar

from smallfirst.errors import MissingExtra

T = TypeVar("T")


class ObjectList(list[T]):
    """A list of objects of one kind."""

    def __init__(self, data: Iterable[T] = (), columns: Mapping[str, str] | None = None) -> None:
        """`columns` maps each heading to the attribute shown under it."""
        super().__init__(data)
        self.columns = dict(columns or {})

    def to_pandas(self) -> Any:
        """Return a DataFrame of the columns. Raise MissingExtra if pandas is not installed."""
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise MissingExtra("to_pandas()", "databricks") from None
        values = {heading: [getattr(item, name) for item in self] for heading, name in self.columns.items()}
        return pandas.DataFrame(values)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(heading)}</th>" for heading in self.columns)
        rows = ["".join(f"<td>{table_cell(getattr(item, a))}</td>" for a in self.columns.values()) for item in self]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class PagedList(ObjectList[T]):
    """One page of a longer list."""

    def __init__(
        self, data: Iterable[T], columns: Mapping[str, str], load_next: Callable[[int | None], Self] | None = None
    ) -> None:
        super().__init__(data, columns)
        self._load_next = load_next

    @property
    def has_next_page(self) -> bool:
        return self._load_next is not None

    def next_page(self, limit: int | None = None) -> Self:
        """Return the next page, as long as this one unless `limit` is given. Raise StopIteration on the last page."""
        if self._load_next is None:
            raise StopIteration
        return self._load_next(limit)


def table_cell(value: object) -> str:
    """Return a value as the escaped text of a table cell; empty for None."""
    if value is None:
        return ""
    text = f"{value:%Y-%m-%d %H:%M:%S %Z}" if isinstance(value, datetime) else str(value)
    return html.escape(text)
