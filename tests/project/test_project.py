"""A job reads its rows once, harvested ones among those to learn from, and refuses what must not be learnt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smallfirst.errors import DataError
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.task_file import read_task_file


def project(folder: Path, harvested: list[str]) -> Project:
    for part, n in (("train", 30), ("validation", 20), ("test", 10)):
        rows = [{"text": f"{part} card number {i}", "label": ("a", "b")[i % 2]} for i in range(n)]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rows = [{"text": text, "label": "b", "source": "feedback", "response_id": "chatcmpl-1"} for text in harvested]
    (folder / "harvested.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {part: f"{part}.jsonl" for part in ("train", "validation", "test")} | {"harvested": ["harvested.jsonl"]}
    (folder / "task.yaml").write_text(json.dumps({"name": "desk", "data": data}), encoding="utf-8")
    return Project.read(read_task_file(folder / "task.yaml"), Progress(quiet=True))


def test_harvested_rows_are_learnt_from_and_nothing_else(tmp_path: Path) -> None:
    found = project(tmp_path, ["an entirely new question about fees"])
    assert len(found.rows.train) == 31
    assert found.rows.train.examples[-1].text == "an entirely new question about fees"
    assert (len(found.rows.test), len(found.rows.selection) + len(found.rows.calibration)) == (10, 20)
    assert found.task.closed == ("a", "b")


def test_a_harvested_text_that_is_held_out_is_refused_by_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"harvested\.jsonl:2"):
        project(tmp_path, ["an entirely new question about fees", "Test card number 3!"])
