from __future__ import annotations

from typing import Any

import pytest

from smallfirst.data.row_folding import Folding, is_empty_row
from smallfirst.data.row_formats import RowLayout

LABEL = RowLayout("label", {"text": "body", "label": "team"})


@pytest.mark.parametrize(
    ("label", "read"),
    [(0, "0"), (2.0, "2"), (2.5, "2.5"), (True, "true"), (" a ", "a"), (None, None), ([1], ["1"])],
)
def test_a_label_is_read_as_the_text_that_it_is(label: Any, read: Any) -> None:
    folding = Folding()
    assert folding.fold({"body": "a", "team": label, "id": 7}, LABEL, "r.jsonl", 3) == {
        "body": "a",
        "team": read,
        "id": 7,
    }
    assert [note.where for note in folding.notes] == ([] if label is None else [("r.jsonl:3",)])


def test_what_a_person_wrote_to_be_said_keeps_its_spaces() -> None:
    layout = RowLayout("prompt", {"prompt": "prompt", "response": "response"})
    row = {"prompt": " a", "response": "  indented\n"}
    folding = Folding()
    assert folding.fold(row, layout, "r.jsonl", 1) == row
    assert not folding.notes


def test_places_of_many_rows_are_the_first_three_with_the_number_of_all() -> None:
    folding = Folding()
    for line in range(1, 151):
        folding.fold({"body": "a", "team": "x "}, LABEL, "r.csv", line)
    [note] = folding.notes
    assert (note.what, note.n, note.where[0], len(note.where)) == ('spaces around "team": 150 rows', 150, "r.csv:1", 3)


def test_a_row_is_empty_if_the_columns_that_make_it_are() -> None:
    assert is_empty_row({})
    assert is_empty_row({"body": " ", "team": None, "id": 7}, LABEL)
    assert is_empty_row({"body": float("nan"), "team": []}, LABEL)
    assert not is_empty_row({"body": "", "team": 0}, LABEL)
    assert not is_empty_row({"other": "a"})
