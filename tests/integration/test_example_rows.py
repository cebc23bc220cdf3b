"""The rows of the demo's second task: as many as its page says, valid under its schema, each in one part, readable."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest

from smallfirst.base.progress import Progress
from smallfirst.data.dataset import fold_text
from smallfirst.path.project.project import Project
from smallfirst.path.project.task_file import read_task_file

FOLDER = Path(__file__).parents[2] / "examples" / "claim_details"
PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, Any]]]:
    read = {part: (FOLDER / f"{part}.jsonl").read_text(encoding="utf-8").splitlines() for part in PARTS}
    return {part: [json.loads(line) for line in lines] for part, lines in read.items()}


def test_there_are_as_many_rows_as_the_page_says(rows: dict[str, list[dict[str, Any]]]) -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    said = {name: int(count) for name, count in re.findall(r"`(\w+)\.jsonl` \| (\d+) \|", page)}
    assert said == {part: len(rows[part]) for part in PARTS}
    assert f"\n{sum(said.values())} messages " in page


def test_no_message_stands_twice_and_each_in_one_part(rows: dict[str, list[dict[str, Any]]]) -> None:
    texts = [fold_text(row["text"]) for part in PARTS for row in rows[part]]
    assert len(set(texts)) == len(texts)
    begins = [" ".join(text.split()[:4]) for text in texts]
    assert max(map(begins.count, begins)) <= 2  # no frame is filled in again and again


def test_the_project_reads_every_row_under_its_schema() -> None:
    project = Project.read(read_task_file(FOLDER), Progress(quiet=True))
    parts = (project.rows.train, project.rows.selection, project.rows.calibration, project.rows.test)
    for part in parts:
        for example in part.examples:
            parsed = project.task.parse(example.answer)
            assert parsed is not None
            assert project.task.score((example.answer,), parsed) == 1


def test_values_are_words_of_the_message_days_and_sums(rows: dict[str, list[dict[str, Any]]]) -> None:
    for row in (row for part in PARTS for row in rows[part]):
        text, target = row["text"], row["target"]
        for name in ("claim_number", "plate", "place"):
            assert target[name] is None or target[name] in text
        if target["date_of_loss"]:
            day = datetime.date.fromisoformat(target["date_of_loss"])
            assert str(day.year) in text
            assert re.search(rf"(?<!\d)0?{day.day}(?!\d)", text)
        if target["amount"] is not None:
            assert f"{target['amount']:.2f}".rstrip("0").rstrip(".") in re.sub(
                r"(?<=\d)[ ,.](?=\d{3})", "", text
            ).replace(",", ".")
