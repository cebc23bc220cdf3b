"""A found task becomes a folder that the other verbs read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.traffic import SORT, SORT_AGAIN, cases_of, exchange, read_bookings, sorted_tickets, template_of

from smallfirst.project.task_file import read_task_file
from smallfirst.traffic.discovery.draft import known_name, rows_of, source_of, task_settings, write_draft
from smallfirst.traffic.discovery.outlook import Outlook
from smallfirst.traffic.discovery.tasks import RecurringTask, find_tasks
from smallfirst.traffic.messages import Answer
from smallfirst.traffic.task_source import TaskSource, Teacher


def drafted(task: RecurringTask, folder: Path, **options: object) -> TaskSource:
    rows, settings = rows_of(task), task_settings(task, rows_of(task))
    source = source_of(task, Outlook(), 0.05, **options)  # type: ignore[arg-type]
    assert source is not None
    assert not isinstance(settings, str)
    assert write_draft(task, source, settings, rows, folder, 0.05)
    return source


def tickets(n: int = 60) -> RecurringTask:
    old, new = sorted_tickets(n), sorted_tickets(n // 2, SORT_AGAIN, start=n, seed=1, frame='{"queue": "{}"}')
    mined = {template_of(SORT, "Message: "): cases_of(old), template_of(SORT_AGAIN, "Message: "): cases_of(new)}
    return find_tasks(mined)[0]


def test_labels_are_drafted_with_both_formats(tmp_path: Path) -> None:
    task = tickets()
    written = drafted(task, tmp_path / "tickets")
    file = read_task_file(tmp_path / "tickets")
    assert (file.kind, file.routing.labels, file.routing.guarantee.max_error) == ("classify", "large", 0.05)
    assert sorted(file.settings["labels"]) == ["account", "billing", "delivery"]
    assert file.requests_per_month == 90 * 30
    assert file.routing.small == "tuned"
    read = TaskSource.of(tmp_path / "tickets")
    assert read == written
    followed = [[one for one in written.templates if one.text(case.prompt) is not None] for case, _, _ in task.cases]
    assert [len(found) for found in followed] == [1] * 90
    formats = [one.answer_format or written.answer_format for (one,) in followed]
    assert {one.render("billing") for one in formats} == {Answer("billing"), Answer('{"queue": "billing"}')}
    rows = [json.loads(line) for line in (tmp_path / "tickets" / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["text"] for row in rows}) <= 90
    assert {"text", "label", "teacher", "labelled_on", "id", "n", "cost_usd", "latency_ms"} <= rows[0].keys()
    assert sum(row["n"] for row in rows) == 90


def test_the_newest_rows_test_where_there_are_enough(tmp_path: Path) -> None:
    exchanges = [exchange(i, SORT, f"Message: ticket number {i}", ("billing", "account")[i % 2]) for i in range(500)]
    (task,) = find_tasks({template_of(SORT, "Message: "): cases_of(exchanges)})
    drafted(task, tmp_path / "t")
    parts = [(tmp_path / "t" / f"{name}.jsonl").read_text().splitlines() for name in ("rows", "validation", "test")]
    assert [len(part) for part in parts] == [250, 175, 75]
    assert json.loads(parts[2][-1])["id"] == "x499"
    file = read_task_file(tmp_path / "t")
    assert file.data.test == Path("test.jsonl")
    assert file.data.validation == Path("validation.jsonl")


def test_fields_are_drafted_with_their_schema(tmp_path: Path) -> None:
    mined = {template_of("Read the booking as JSON: name, people."): cases_of(read_bookings(60))}
    drafted(find_tasks(mined)[0], tmp_path / "b")
    file = read_task_file(tmp_path / "b")
    assert file.kind == "extract"
    assert set(file.settings["json_schema"]["properties"]) == {"name", "people"}


def test_the_most_frequent_answer_to_a_case_counts() -> None:
    answers = ["billing", "billing", "account", "account", "delivery", "delivery"] * 8
    exchanges = [exchange(i, SORT, f"Message: {i // 6 % 2}", a) for i, a in enumerate(answers)]
    exchanges.append(exchange(99, SORT, "Message: 0", "billing"))
    (task,) = find_tasks({template_of(SORT, "Message: "): cases_of(exchanges)})
    rows = {row.text: row for row in rows_of(task)}
    assert (rows["0"].value, rows["0"].n, rows["0"].case.id) == ("billing", 25, "x99")
    assert rows["1"].value == "delivery"  # equally frequent: the newest


def test_a_changed_task_file_is_kept(tmp_path: Path) -> None:
    task = tickets()
    drafted(task, tmp_path)
    drafted(task, tmp_path)
    path = tmp_path / "task.yaml"
    path.write_text(path.read_text() + "minutes: 5\n")
    rows, source = rows_of(task), source_of(task, Outlook(), 0.05)
    settings = task_settings(task, rows)
    assert source is not None
    assert not isinstance(settings, str)
    assert not write_draft(task, source, settings, rows, tmp_path, 0.05)
    assert read_task_file(tmp_path).minutes == 5


def test_a_task_keeps_its_name(tmp_path: Path) -> None:
    source = drafted(tickets(), tmp_path / "renamed")
    assert known_name([source.templates[0].template.id], tmp_path) == "renamed"
    assert known_name(["0" * 16], tmp_path) is None
    (tmp_path / "renamed" / "source.json").write_text("{")
    assert known_name([source.templates[0].template.id], tmp_path) is None


def test_the_teachers_terms_are_those_of_the_settings(tmp_path: Path) -> None:
    def terms(model: str, *asked_as: str) -> Teacher:
        return Teacher(model=model, licence=f"as {', '.join(asked_as)}", training_allowed=False)

    source = drafted(tickets(), tmp_path, teacher_of=terms)
    assert source.teacher == Teacher(model="big-2026", licence="as big", training_allowed=False)


@pytest.mark.parametrize("answer", ["Well, " + "it depends on many things. " * 9, "{}"])
def test_what_no_kind_can_hold_is_said(answer: str) -> None:
    exchanges = [exchange(i, "Do it.", str(i), answer.replace("1", str(i))) for i in range(40)]
    (task,) = find_tasks({template_of("Do it."): cases_of(exchanges)})
    assert isinstance(task_settings(task, rows_of(task)), str)
