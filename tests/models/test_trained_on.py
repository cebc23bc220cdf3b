"""A model's rows, their copies and their groups cannot certify it."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.errors import DataError
from smallfirst.models.trained_on import TRAINED_ON, TrainedOn, refuse_seen_rows


def rows_of(*pairs: tuple[str, str]) -> Dataset:
    examples = (
        Example(
            messages=(Message(role="user", content=text),), answer="a", shape="label", path="v.jsonl", line=i, group=g
        )
        for i, (text, g) in enumerate(pairs, 1)
    )
    return Dataset(name="rows", examples=tuple(examples))


def test_copies_and_groups_of_its_rows_are_refused_by_line(tmp_path: Path) -> None:
    folder = tmp_path / "words"
    TrainedOn.of(rows_of(("Where is my card?", ""), ("the fee", "shop 1"))).save(folder / TRAINED_ON)
    refuse_seen_rows(folder, rows_of(("where is my pin", ""), ("a fee", "shop 2")))
    with pytest.raises(DataError, match="2 of 3 rows to certify words with") as refused:
        refuse_seen_rows(folder, rows_of(("where is MY card", ""), ("another", "shop 1"), ("new", "")))
    assert [(one.path, one.line) for one in refused.value.problems] == [("v.jsonl", 1), ("v.jsonl", 2)]
    refuse_seen_rows(tmp_path / "older", rows_of(("the fee", "")))  # a model of before this was recorded


def test_nothing_of_the_texts_can_be_read_from_the_record() -> None:
    assert "card" not in TrainedOn.of(rows_of(("Where is my card?", "shop 1"))).model_dump_json()
