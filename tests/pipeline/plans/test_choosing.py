"""What plans are chosen by: selection rows, and out-of-fold answers to training rows where those are few."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.pipeline.plans.choosing import choosing_evaluations
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.project.task_file import read_task_file

LABELS = ("card lost", "money back")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """120 training rows of two labels; words tell them apart but for every tenth row."""
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "home"))
    for name, n in (("train", 120), ("validation", 100), ("test", 20)):
        rows = [
            {"text": f"{name} {i} please {LABELS[(i + (i % 10 == 0)) % 2]} now", "label": LABELS[i % 2]}
            for i in range(n)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    (tmp_path / "task.yaml").write_text(
        "name: desk\nladder: [words]\ndata: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}\n",
        encoding="utf-8",
    )
    return Project.read(read_task_file(tmp_path), Progress(quiet=True))


def test_training_rows_are_answered_out_of_fold_where_selection_rows_are_few(project: Project) -> None:
    run_folder = RunFolder.new("desk")
    rows = [evaluated_row(e.key, e.answer, e.answer, confidence=0.9) for e in project.rows.selection.examples]
    run_folder.save_evaluation(evaluation_of(rows, candidate="words", split="selection"))
    (found,) = choosing_evaluations(project, run_folder)
    assert len(found.rows) == 120 + len(rows)
    answered = found.rows[:120]
    assert [one.key for one in answered] == [e.key for e in project.rows.train.examples]
    # A model that had seen these rows would be right on all; by words alone every tenth is wrong.
    assert [i for i, one in enumerate(answered) if not one.correct] == list(range(0, 120, 10))
    assert run_folder.evaluation("words", "choosing") == found
    (again,) = choosing_evaluations(project, run_folder)
    assert again == found


def test_candidates_are_compared_on_the_same_rows(project: Project) -> None:
    run_folder = RunFolder.new("desk")
    rows = [evaluated_row(e.key, e.answer, e.answer, confidence=0.9) for e in project.rows.selection.examples]
    for name in ("words", "small"):  # a language model is not fitted five times
        run_folder.save_evaluation(evaluation_of(rows, candidate=name, split="selection"))
    assert [len(found.rows) for found in choosing_evaluations(project, run_folder)] == [len(rows), len(rows)]
