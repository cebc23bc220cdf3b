"""A found task becomes a folder that the other verbs read."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fixtures.traffic import SORT, SORT_AGAIN, cases_of, exchange, read_bookings, sorted_tickets, template_of

from smallfirst.path.project.task_file import read_task_file
from smallfirst.traffic.discovery.draft import rows_of, source_of, task_settings, write_draft
from smallfirst.traffic.discovery.outlook import Outlook
from smallfirst.traffic.discovery.tasks import RecurringTask, find_tasks
from smallfirst.traffic.task_source import TaskSource, Teacher
from smallfirst.traffic.wire import ModelAnswer


def drafted(task: RecurringTask, folder: Path, **options: object) -> TaskSource:
    rows, settings = rows_of(task), task_settings(task, rows_of(task))
    source = source_of(task, Outlook(), **options)  # type: ignore[arg-type]
    assert source is not None
    assert not isinstance(settings, str)
    assert write_draft(task, source, settings, rows, folder, 0.05)
    return source


def read_parts(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the drafted files, by `rows`, `validation` and `test`."""
    names = ("rows", "validation", "test")
    return {name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for name in names}


def asked_tickets(texts: Sequence[int], answers: Sequence[str]) -> RecurringTask:
    """Return the task of requests about numbered tickets, in this order."""
    both = enumerate(zip(texts, answers, strict=True))
    exchanges = [exchange(i, SORT, f"Message: ticket number {text}", answer) for i, (text, answer) in both]
    (task,) = find_tasks({template_of(SORT, "Message: "): cases_of(exchanges)})
    return task


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
    assert "each text counted once" in file.routing.guarantee.in_words
    assert file.requests_per_month == 90 * 30
    assert file.routing.small == "tuned"
    read = TaskSource.of(tmp_path / "tickets")
    assert read == written
    followed = [[one for one in written.templates if one.text(case.prompt) is not None] for case, _, _ in task.cases]
    assert [len(found) for found in followed] == [1] * 90
    formats = [one.answer_format or written.answer_format for (one,) in followed]
    assert {one.render("billing") for one in formats} == {ModelAnswer("billing"), ModelAnswer('{"queue": "billing"}')}
    rows = [row for part in read_parts(tmp_path / "tickets").values() for row in part]
    assert len(rows) == len({row["text"] for row in rows}) <= 90
    assert {"text", "label", "teacher", "labelled_on", "id", "n", "cost_usd", "latency_ms"} <= rows[0].keys()
    assert sum(row["n"] for row in rows) == 90


def test_neither_frequency_nor_time_decides_what_a_case_is_used_for(tmp_path: Path) -> None:
    """A hundred of 600 cases are asked 20 times, all through the log: about half of them train, as of the others."""
    texts = [*range(600), *(text for text in range(100) for _ in range(19))]
    random.Random(0).shuffle(texts)
    drafted(asked_tickets(texts, [("billing", "account")[text % 2] for text in texts]), tmp_path)
    parts = read_parts(tmp_path)
    assert [len(part) for part in parts.values()] == [300, 210, 90]
    frequent = {name: sum(row["n"] == 20 for row in part) for name, part in parts.items()}
    assert sum(frequent.values()) == 100
    assert 35 <= frequent["rows"] <= 65
    assert 20 <= frequent["validation"] <= 50
    file = read_task_file(tmp_path)
    assert (file.data.validation, file.data.test) == (Path("validation.jsonl"), Path("test.jsonl"))


def test_a_case_keeps_its_part_whatever_else_is_asked(tmp_path: Path) -> None:
    answers = ["billing", "account"] * 400
    drafted(asked_tickets(range(800), answers), tmp_path / "old")
    drafted(asked_tickets([*reversed(range(800)), *range(40)], [*answers, *answers[:40]]), tmp_path / "new")
    old, new = read_parts(tmp_path / "old"), read_parts(tmp_path / "new")
    assert {n: {row["text"] for row in part} for n, part in old.items()} == {
        n: {row["text"] for row in part} for n, part in new.items()
    }


def test_of_few_cases_some_measure_and_of_hardly_any_none(tmp_path: Path) -> None:
    drafted(asked_tickets(range(50), ["billing", "account"] * 25), tmp_path / "few")
    assert [len(part) for part in read_parts(tmp_path / "few").values()] == [30, 10, 10]
    drafted(asked_tickets([0, 1] * 20, ["billing", "account"] * 20), tmp_path / "two")
    assert len((tmp_path / "two" / "rows.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "two" / "validation.jsonl").exists()


def test_one_asking_drawn_by_chance_measures_and_the_usual_answer_trains(tmp_path: Path) -> None:
    """The large model says something else in a fifth of its answers: so it does in the rows that certify and test."""
    draw = random.Random(0)
    texts = [text for text in range(1000) for _ in range(5)]
    draw.shuffle(texts)
    drafted(asked_tickets(texts, ["billing" if draw.random() < 0.8 else "account" for _ in texts]), tmp_path)
    parts = read_parts(tmp_path)
    other = {name: sum(row["label"] == "account" for row in part) / len(part) for name, part in parts.items()}
    assert other["rows"] < 0.1  # three or more of five: 0.058
    assert other["validation"] == pytest.approx(0.2, abs=0.07)
    assert other["test"] == pytest.approx(0.2, abs=0.1)
    exchanges = {f"x{i}": text for i, text in enumerate(texts)}
    assert all(row["text"] == f"ticket number {exchanges[row['id']]}" for part in parts.values() for row in part)


def test_fields_are_drafted_with_their_schema(tmp_path: Path) -> None:
    mined = {template_of("Read the booking as JSON: name, people."): cases_of(read_bookings(60))}
    drafted(find_tasks(mined)[0], tmp_path / "b")
    file = read_task_file(tmp_path / "b")
    assert file.kind == "extract"
    assert set(file.settings["json_schema"]["properties"]) == {"name", "people"}


def test_the_most_frequent_answer_to_a_case_is_the_usual_one() -> None:
    answers = ["billing", "billing", "account", "account", "delivery", "delivery"] * 8
    exchanges = [exchange(i, SORT, f"Message: {i // 6 % 2}", a) for i, a in enumerate(answers)]
    exchanges.append(exchange(99, SORT, "Message: 0", "billing"))
    (task,) = find_tasks({template_of(SORT, "Message: "): cases_of(exchanges)})
    rows = {row.usual.text: row for row in rows_of(task)}
    assert (rows["0"].usual.value, rows["0"].n, rows["0"].usual.case.id) == ("billing", 25, "x99")
    assert rows["1"].usual.value == "delivery"  # equally frequent: the newest


def test_a_changed_task_file_is_kept(tmp_path: Path) -> None:
    task = tickets()
    drafted(task, tmp_path)
    drafted(task, tmp_path)
    path = tmp_path / "task.yaml"
    path.write_text(path.read_text() + "minutes: 5\n")
    rows, source = rows_of(task), source_of(task, Outlook())
    settings = task_settings(task, rows)
    assert source is not None
    assert not isinstance(settings, str)
    assert not write_draft(task, source, settings, rows, tmp_path, 0.05)
    assert read_task_file(tmp_path).minutes == 5


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
