"""A job reads its rows once, harvested ones among those to learn from, and refuses what must not be learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.preflight import task_of

from smallfirst.base.errors import DataError
from smallfirst.path.project.project import Project


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
