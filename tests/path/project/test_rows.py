"""Rows as they come out of a task's files, harvested ones among those to learn from; what must not be learnt."""

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.preflight import task_of

from smallfirst.base.errors import DataError
from smallfirst.path.project.project import Project
from smallfirst.path.project.rows import rows_to_split_off, split_off
from smallfirst.path.project.task_file import read_task_file


def project(folder: Path, harvested: list[str]) -> Project:
    rows = {
        part: [{"text": f"{part} card number {i}", "label": "ab"[i % 2]} for i in range(n)]
        for part, n in (("train", 30), ("validation", 20), ("test", 10))
    }
    new = {"label": "b", "source": "feedback", "response_id": "chatcmpl-1"}
    rows["harvested"] = [{"text": text, **new} for text in harvested]
    return task_of(folder, rows, data={"harvested": ["harvested.jsonl"]})


def test_harvested_rows_are_learnt_from_and_nothing_else(tmp_path: Path) -> None:
    found = project(tmp_path, ["an entirely new question about fees"])
    assert len(found.rows.train) == 31
    assert found.rows.train.examples[-1].text == "an entirely new question about fees"
    assert (len(found.rows.test), len(found.rows.selection) + len(found.rows.calibration)) == (10, 20)
    assert found.task.closed == ("a", "b")


def test_a_harvested_text_that_is_held_out_is_refused_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"harvested\.jsonl:2"):
        project(tmp_path, ["an entirely new question about fees", "Test card number 3!"])


def grouped(folder: Path, parts: dict[str, list[tuple[str, str]]], **data: Any) -> Project:
    """A task of these files of (text, customer)."""
    rows = {
        part: [{"text": t, "label": "ab"[i % 2], "customer": c} for i, (t, c) in enumerate(pairs)]
        for part, pairs in parts.items()
    }
    return task_of(folder, rows, data=data)


def test_calibration_rows_that_stand_in_train_do_not_count(tmp_path: Path) -> None:
    """334 of 400 validation rows are training rows in other letters: none of them may certify anything."""
    train = [(f"train question {i}", "x") for i in range(500)]
    validation = [(f"TRAIN question {i}!", "x") for i in range(334)] + [(f"new question {i}", "x") for i in range(66)]
    rows = grouped(tmp_path, {"train": train, "validation": validation, "test": [("t", "x"), ("u", "x")]}).rows
    assert all(e.text.startswith("new") for e in rows.calibration.examples)
    assert 40 < len(rows.calibration) <= 66
    assert rows.counted.n_leaked == len(rows.left_out) > 250


def test_a_group_is_in_one_split_and_counts_once(tmp_path: Path) -> None:
    pairs = [(f"question {i} of its own", f"customer {i // 10}") for i in range(1000)]
    rows = grouped(tmp_path, {"train": pairs}, columns={"group": "customer"}).rows
    parts = (rows.train, rows.selection, rows.calibration, rows.left_out, rows.test)
    groups = [{e.group for e in part.examples} for part in parts]
    assert sum(len(part) for part in parts) == 1000
    assert len(groups[2]) == len(rows.calibration) > 5
    assert groups[3] == groups[2]
    assert sum(map(len, groups)) - len(groups[3]) == 100


def test_a_file_without_the_group_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'no column "source", which columns\.group names'):
        grouped(tmp_path, {"train": [("a", "x"), ("b", "x")]}, columns={"group": "source"})


def of_file(folder: Path, settings: str, rows: str, name: str = "rows.csv") -> Project:
    (folder / name).write_text(rows, encoding="utf-8")
    (folder / "task.yaml").write_text(f"name: desk\n{settings}", encoding="utf-8")
    return Project.read(read_task_file(folder))


GOOD = "".join(f"question {i},{'card' if i % 2 else 'fee'}\n" for i in range(48))


def test_bad_rows_up_to_the_share_are_left_out_of_the_file_and_of_the_task(tmp_path: Path) -> None:
    settings = "labels: [card, fee]\ndata: {train: rows.csv, skip_bad_rows_up_to: 0.04}\n"
    found = of_file(tmp_path, settings, f"text,label\n{GOOD}no label,\nlate,crad\n").rows
    [skipped] = found.skipped
    assert skipped.what == f"bad rows that were left out of {tmp_path}/rows.csv: 2 of 50"
    assert [place.partition(" ")[0].rpartition(":")[2] for place in skipped.where] == ["50", "51"]
    with pytest.raises(DataError, match=r"2 bad and 48 good rows(.|\n)*data\.skip_bad_rows_up_to: 0\.04$"):
        of_file(tmp_path, settings.replace("0.04", "0.039"), f"text,label\n{GOOD}no label,\nlate,crad\n")


def test_rows_that_do_not_fit_the_task_count_as_bad_too(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"t{i}", "target": {"n": i}}) + "\n" for i in range(19))
    rows += json.dumps({"text": "odd", "target": {"n": "many"}}) + "\n"
    schema = "schema: {type: object, properties: {n: {type: integer}}}\n"
    settings = f"kind: extract\n{schema}data: {{train: rows.jsonl, skip_bad_rows_up_to: 0.05}}\n"
    found = of_file(tmp_path, settings, rows, "rows.jsonl").rows
    assert [(note.what, note.where) for note in found.skipped] == [
        (
            "bad rows that were left out of the task's rows: 1 of 20",
            (f"""{tmp_path}/rows.jsonl:20 no answer of this task: '{{"n": "many"}}'""",),
        )
    ]
    with pytest.raises(DataError, match="1 rows do not fit the task"):
        of_file(tmp_path, settings.replace("0.05", "0.04"), rows, "rows.jsonl")


def test_labels_of_a_file_may_be_whole_numbers(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"t{i}", "label": i % 2}) + "\n" for i in range(20))
    found = of_file(tmp_path, "labels: [0, 1]\ndata: {train: rows.jsonl}\n", rows, "rows.jsonl")
    assert found.task.closed == ("0", "1")
    assert [note.what for note in found.rows.notes] == ['numbers, or true and false, in "label": 20 rows']


def with_foreign(folder: Path, n_foreign: dict[str, int], **settings: Any) -> Project:
    rows = {
        part: [
            *({"text": f"{part} card number {i}", "label": "ab"[i % 2]} for i in range(40)),
            *({"text": f"{part} poem number {i}", "label": "oos"} for i in range(n)),
        ]
        for part, n in n_foreign.items()
    }
    return task_of(folder, rows, data={"out_of_scope_label": "oos"}, **settings)


def test_rows_out_of_scope_train_nothing_and_stand_among_the_foreign_ones(tmp_path: Path) -> None:
    found = with_foreign(tmp_path, {"train": 10, "validation": 6, "test": 5})
    rows = found.rows
    assert found.task.closed == ("a", "b")
    assert (len(rows.train), len(rows.selection) + len(rows.calibration), len(rows.test)) == (40, 40, 40)
    assert sorted(e.text.split()[0] for e in rows.open_ended.examples) == ["train"] * 10 + ["validation"] * 6
    assert [e.text for e in rows.foreign_test.examples] == [f"test poem number {i}" for i in range(5)]
    assert rows.notes[-1].what.startswith('21 rows of "oos" (10 train, ')
    assert rows.notes[-1].what.endswith("5 test)")
    assert rows.foreign_test in rows.held_out


def test_rows_out_of_scope_may_stand_in_the_test_file_alone(tmp_path: Path) -> None:
    rows = with_foreign(tmp_path, {"train": 0, "validation": 0, "test": 5}, labels=["a", "b"]).rows
    assert (len(rows.test), len(rows.foreign_test), rows.open_ended) == (40, 5, None)


def test_a_label_out_of_scope_without_a_row_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'data\.out_of_scope_label: no row has the label "oos"'):
        with_foreign(tmp_path, {"train": 0, "validation": 0, "test": 0})


def test_the_same_rows_have_the_same_parts_whatever_the_task_is_called(tmp_path: Path) -> None:
    parts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        found = of_file(tmp_path / name, "data: {train: rows.csv}\n", f"text,label\n{GOOD}").rows
        parts.append([[e.line for e in part.examples] for part in (found.train, *found.held_out)])
        (tmp_path / name / "task.yaml").write_text(f"name: {name}\ndata: {{train: rows.csv}}\n", encoding="utf-8")
        again = Project.read(read_task_file(tmp_path / name)).rows
        parts.append([[e.line for e in part.examples] for part in (again.train, *again.held_out)])
    assert parts[0] == parts[1] == parts[2] == parts[3]


def test_of_many_rows_a_smaller_share_is_split_off(tmp_path: Path) -> None:
    assert [split_off(n) for n in (100, 2500, 10_000)] == [20, 500, 1000]
    assert [rows_to_split_off(split_off(n)) for n in (100.0, 2500.0, 10_000.0)] == [100, 2500, 10_000]
    rows = grouped(tmp_path, {"train": [(f"question {i} of its own", str(i)) for i in range(4900)]}).rows
    assert len(rows.test) == len(rows.selection) + len(rows.calibration) + len(rows.left_out) == 700
