"""A run whose rows the check refuses trains nothing unless it is told to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smallfirst.errors import DataError
from smallfirst.pipeline import run as module
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.task_file import TaskFile, read_task_file


class Trained(Exception):
    """Training has begun."""


@pytest.fixture
def leaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskFile:
    """Training rows that are the validation rows as well."""
    rows = [{"text": f"question {i} of topic {i * 7}", "label": "ab"[i % 2]} for i in range(100)]
    for part, some in (("train", rows), ("validation", rows[:90]), ("test", [{"text": "t", "label": "a"}])):
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    data = {part: f"{part}.jsonl" for part in ("train", "validation", "test")}
    (tmp_path / "task.yaml").write_text(json.dumps({"name": "desk", "data": data}), encoding="utf-8")

    def train_stage(project: Project, *, resume: bool) -> None:
        raise Trained

    monkeypatch.setattr(module, "train_stage", train_stage)
    return read_task_file(tmp_path)


def test_a_check_that_says_no_stops_the_run(leaky: TaskFile) -> None:
    with pytest.raises(DataError, match=r"check: NO, so nothing was trained: 90 of 90 validation texts are also in tr"):
        module.run(leaky, progress=Progress(quiet=True))
    with pytest.raises(Trained):
        module.run(leaky, progress=Progress(quiet=True), despite_check=True)
