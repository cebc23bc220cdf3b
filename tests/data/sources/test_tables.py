"""Headers and separators, told from the first lines of a table."""

from __future__ import annotations

import pytest

from smallfirst.data.row_formats import Columns
from smallfirst.data.sources.tables import detect_delimiter, table_rows

ROWS = [["I lost my card", "card"], ["too expensive", "fee"], ["card is gone", "card"]]


@pytest.mark.parametrize(
    ("sample", "delimiter"),
    [
        ("text,label\na; b,x\n", ","),
        ("text;label\nhello, world;x\nhi, there;y\n", ";"),
        ("id;text, long;label\n1;a;x\n2;b;y\n", ";"),
        ("text|label\na|x\n", "|"),
        ("text\nalone, with commas\n", ","),
        ("a,b;text;label\n1;2;3\n", ";"),  # the names decide
    ],
)
def test_the_separator_is_the_one_that_makes_columns(sample: str, delimiter: str) -> None:
    assert detect_delimiter(sample, ",", Columns(), answered=False) == delimiter


def read(*records: list[str], columns: Columns | None = None) -> tuple[bool, list[object]]:
    found = table_rows(iter(list(enumerate(records, start=1))), columns, answered=False)
    return found.has_header, [values for _, values in found.rows]


def test_names_have_no_outer_spaces_and_a_column_without_one_is_called_by_its_place() -> None:
    assert read(["", "\ufeff text ", "label"], ["0", "a", "x"]) == (
        True,
        [{"column 1": "0", "text": "a", "label": "x"}],
    )


def test_empty_lines_before_the_header_do_not_count_and_later_ones_are_empty_rows() -> None:
    assert read([""], ["text", "label"], ["", ""], ["a", "x", "", ""]) == (True, [{}, {"text": "a", "label": "x"}])


def test_a_first_line_that_is_a_row_is_told_and_asked_about() -> None:
    has_header, [rule] = read(*ROWS, columns=Columns())
    assert not has_header
    assert rule == (
        'the first line names no columns but is a row (1: "I lost my card", 2: "card"): add a header, or name them by '
        'their place, such as columns: {text: "column 1", label: "column 2"}'
    )


def test_columns_named_by_their_place_read_a_table_without_a_header() -> None:
    columns = Columns(text="column 1", label="column 2")
    assert read(*ROWS[:2], columns=columns) == (
        False,
        [dict(zip(("column 1", "column 2"), r, strict=True)) for r in ROWS[:2]],
    )


def test_without_columns_to_look_for_a_header_is_told_from_what_is_below_it() -> None:
    assert read(["message", "team"], *ROWS)[0]
    assert not read(*ROWS)[0]  # "card" comes again below
    assert not read(["What is the fee for this?", "fee"], ["a", "b"])[0]
    assert not read(["17", "a"], ["18", "b"])[0]


def test_a_header_of_other_names_is_one_problem() -> None:
    assert read(["text", "lable"], ["a", "x"], columns=Columns()) == (
        True,
        ['no column "label", but "lable" — did you mean "label"?'],
    )
