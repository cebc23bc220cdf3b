"""Lists that show themselves as tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

import pytest

from smallfirst.interfaces.databricks.object_list import ObjectList, PagedList, table_cell


class Thing(NamedTuple):
    name: str
    size: int | None


COLUMNS = {"Name": "name", "Its size": "size"}


def test_names_of_users_are_escaped_in_the_table() -> None:
    table = ObjectList([Thing("<script>", None)], COLUMNS)._repr_html_()
    assert table == (
        "<table><thead><tr><th>Name</th><th>Its size</th></tr></thead>"
        "<tbody><tr><td>&lt;script&gt;</td><td></td></tr></tbody></table>"
    )
    assert table_cell(datetime(2026, 11, 30, 12, tzinfo=UTC)) == "2026-11-30 12:00:00 UTC"


def test_the_shown_columns_make_a_frame() -> None:
    pytest.importorskip("pandas")
    frame = ObjectList([Thing("a", 1), Thing("b", 2)], COLUMNS).to_pandas()
    assert frame.to_dict("list") == {"Name": ["a", "b"], "Its size": [1, 2]}


def test_pages_end() -> None:
    last = PagedList([Thing("b", 2)], COLUMNS)
    limits: list[int | None] = []

    def load_next(limit: int | None) -> PagedList[Thing]:
        limits.append(limit)
        return last

    first = PagedList([Thing("a", 1)], COLUMNS, load_next)
    assert first.has_next_page
    assert first.next_page(7) is last
    assert limits == [7]
    assert not last.has_next_page
    with pytest.raises(StopIteration):
        last.next_page()
