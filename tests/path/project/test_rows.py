"""Rows as they come out of a task's files: bad ones left out by name, fields in the types of the schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smallfirst.base.errors import DataError
from smallfirst.path.project.project import Project
from smallfirst.path.project.task_file import read_task_file


def project(folder: Path, settings: str, rows: str, name: str = "rows.csv") -> Project:
    (folder / name).write_text(rows, encoding="utf-8")
    (folder / "task.yaml").write_text(f"name: desk\n{settings}", encoding="utf-8")
    return Project.read(read_task_file(folder))


GOOD = "".join(f"question {i},{'card' if i % 2 else 'fee'}\n" for i in range(48))


def test_bad_rows_up_to_the_share_are_left_out_of_the_file_and_of_the_task(tmp_path: Path) -> None:
    settings = "labels: [card, fee]\ndata: {train: rows.csv, skip_bad_rows_up_to: 0.04}\n"
    found = project(tmp_path, settings, f"text,label\n{GOOD}no label,\nlate,crad\n").rows
    [skipped] = found.skipped
    assert skipped.what == f"bad rows that were left out of {tmp_path}/rows.csv: 2 of 50"
    assert [place.partition(" ")[0].rpartition(":")[2] for place in skipped.where] == ["50", "51"]
    with pytest.raises(DataError, match=r"2 bad and 48 good rows(.|\n)*data\.skip_bad_rows_up_to: 0\.04$"):
        project(tmp_path, settings.replace("0.04", "0.039"), f"text,label\n{GOOD}no label,\nlate,crad\n")


def test_rows_that_do_not_fit_the_task_count_as_bad_too(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"t{i}", "target": {"n": i}}) + "\n" for i in range(19))
    rows += json.dumps({"text": "odd", "target": {"n": "many"}}) + "\n"
    schema = "schema: {type: object, properties: {n: {type: integer}}}\n"
    settings = f"kind: extract\n{schema}data: {{train: rows.jsonl, skip_bad_rows_up_to: 0.05}}\n"
    found = project(tmp_path, settings, rows, "rows.jsonl").rows
    assert [(note.what, note.where) for note in found.skipped] == [
        (
            "bad rows that were left out of the task's rows: 1 of 20",
            (f"""{tmp_path}/rows.jsonl:20 no answer of this task: '{{"n": "many"}}'""",),
        )
    ]
    with pytest.raises(DataError, match="1 rows do not fit the task"):
        project(tmp_path, settings.replace("0.05", "0.04"), rows, "rows.jsonl")


def test_labels_of_a_file_may_be_whole_numbers(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"t{i}", "label": i % 2}) + "\n" for i in range(20))
    found = project(tmp_path, "labels: [0, 1]\ndata: {train: rows.jsonl}\n", rows, "rows.jsonl")
    assert found.task.closed == ("0", "1")
    assert [note.what for note in found.rows.notes] == ['numbers, or true and false, in "label": 20 rows']


def test_the_same_rows_have_the_same_parts_whatever_the_task_is_called(tmp_path: Path) -> None:
    parts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        found = project(tmp_path / name, "data: {train: rows.csv}\n", f"text,label\n{GOOD}").rows
        parts.append([[e.line for e in part.examples] for part in (found.train, *found.held_out)])
        (tmp_path / name / "task.yaml").write_text(f"name: {name}\ndata: {{train: rows.csv}}\n", encoding="utf-8")
        again = Project.read(read_task_file(tmp_path / name)).rows
        parts.append([[e.line for e in part.examples] for part in (again.train, *again.held_out)])
    assert parts[0] == parts[1] == parts[2] == parts[3]
