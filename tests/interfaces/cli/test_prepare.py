"""Verbs before a run: the template, the check of the rows, the catalogue."""

import json
from pathlib import Path

import pytest
from fixtures.cli import call, failed

from smallfirst.models.catalog import CATALOG
from smallfirst.path.project.rows import read_rows
from smallfirst.path.project.task_file import read_task_file


def test_init_writes_a_template_that_is_read_once_the_rows_are_there(tmp_path: Path, desk_folder: Path) -> None:
    target = tmp_path / "new" / "task.yaml"
    result = call("init", target.parent)
    assert result.output == f"wrote {target}\nnext: put your rows beside it, then  smallfirst check {target}\n"
    assert [path.name for path in target.parent.iterdir()] == ["task.yaml"]
    (target.parent / "train.jsonl").write_bytes((desk_folder / "train.jsonl").read_bytes())
    task_file = read_task_file(target)
    assert task_file.name == "new"
    assert len(read_rows(task_file).train) > 30


def test_init_overwrites_nothing(desk_folder: Path) -> None:
    before = (desk_folder / "task.yaml").read_bytes()
    assert failed(call("init", desk_folder), 2) == (
        f"ConfigError: {desk_folder / 'task.yaml'} exists already\n  next: edit it, or name another folder\n"
    )
    assert (desk_folder / "task.yaml").read_bytes() == before


def test_rows_that_cannot_be_used_end_with_one_and_are_told_on_both_streams(desk_folder: Path) -> None:
    twice = (desk_folder / "train.jsonl").read_text()
    (desk_folder / "test.jsonl").write_text(twice)  # every test row is a training row
    (desk_folder / "task.yaml").write_text("name: desk\ndata: {train: train.jsonl, test: test.jsonl}\n")
    result = call("check", desk_folder)
    assert failed(result, 1) == ("DataError: the rows cannot be used as they are\n  next: mend what is marked stop\n")
    assert "NO" in result.stdout


def test_models_lists_the_catalogue_and_where_it_stands() -> None:
    result = call("models")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines] == [entry.name for entry in CATALOG]
    assert all(f"{entry.megabytes} MB" in line for entry, line in zip(CATALOG, lines, strict=True))


def test_init_from_rows_shows_them_and_the_next_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    topics = ("pin", "card")
    rows = [{"message": f"my {topics[i % 2]}, day {i}", "topic": topics[i % 2]} for i in range(40)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = call("init", "desk", "--from", "rows.jsonl")
    assert result.exit_code == 0, result.output
    assert result.output == (
        'classify: text "message" → label "topic" (2 different), 40 rows\n\n'
        "  text            label\n  my pin, day 0   pin\n  my card, day 1  card\n  my pin, day 2   pin\n\n"
        "wrote desk/task.yaml\nnext: smallfirst check desk   then  smallfirst run desk\n"
        "for a first result soon: smallfirst run desk --minutes 3\n"
    )
    assert "columns: {text: message, label: topic}" in Path("desk/task.yaml").read_text()


def test_of_documents_init_foretells_no_result_in_three_minutes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(12):
        (tmp_path / "in" / f"{i}.txt").write_text(f"Dear you,\fHam {i} Ltd asks for {i}.50 EUR")
    table = "".join(f"{i}.txt,Ham {i} Ltd,{i}.50\n" for i in range(12))
    (tmp_path / "in" / "table.csv").write_text(f"file,seller,total\n{table}")
    result = call("init", tmp_path / "task", "--from", tmp_path / "in")
    assert result.exit_code == 0, result.output
    assert f"next: smallfirst check {tmp_path / 'task'}" in result.output
    assert "--minutes" not in result.output
