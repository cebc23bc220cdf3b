"""The tagger says which tasks it does not suit, with the field that stands in the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from smallfirst.pipeline.candidates.tagger import TAGGER
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.task_file import read_task_file


def why(folder: Path, rows: list[dict[str, Any]], kind: str = "extract") -> str:
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.yaml").write_text(f"name: desk\nkind: {kind}\ndata: {{train: train.jsonl}}\n")
    return TAGGER.why_unsuitable(Project.read(read_task_file(folder), Progress(quiet=True)))


def row(n: int, **more: str) -> dict[str, Any]:
    return {"text": f"order {n} is late", "target": {"order": str(n), **more}}


def test_it_suits_rows_whose_values_stand_in_their_texts(tmp_path: Path) -> None:
    assert why(tmp_path, [row(n) for n in range(50)]) == ""


def test_a_field_that_needs_writing_is_named(tmp_path: Path) -> None:
    rows = [row(n, summary=f"the customer waits for {n + 1}") for n in range(50)]
    assert why(tmp_path, rows) == (
        "100 % of the values of `summary` do not occur in their texts: that needs writing, which small does"
    )


def test_other_kinds_of_task_are_refused(tmp_path: Path) -> None:
    rows = [{"text": f"number {n}", "label": "ab"[n % 2]} for n in range(40)]
    assert why(tmp_path, rows, "classify") == "it marks fields of kind extract; this task is of kind classify"
