"""A manifest is read as it was written; a model's rows, their copies and their groups cannot certify it."""

import json
from pathlib import Path

import pytest
from fixtures.rows import example

from smallfirst.base.errors import ConfigError, DataError
from smallfirst.data.dataset import Dataset
from smallfirst.models.manifest import TRAINED_ON, Manifest, TrainedOn, read_manifest, refuse_seen_rows, write_manifest
from smallfirst.tasks.classify import Classify

TASK = Classify(name="digits", labels=tuple(f"label-{i}" for i in range(7)))


def test_a_manifest_with_a_wrong_key_names_file_and_key(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest(kind="words", task=TASK, base=""))
    plain = json.loads((tmp_path / "smallfirst.json").read_text())
    (tmp_path / "smallfirst.json").write_text(json.dumps(plain | {"temprature": 2}))
    with pytest.raises(ConfigError) as caught:
        read_manifest(tmp_path)
    assert caught.value.args[0] == (
        f'{tmp_path}/smallfirst.json:\n  temprature: unknown setting — did you mean "temperature"?'
    )


def rows_of(*pairs: tuple[str, str]) -> Dataset:
    made = (example(text, "a", path="v.jsonl", line=i, group=group) for i, (text, group) in enumerate(pairs, 1))
    return Dataset(name="rows", examples=tuple(made))


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
