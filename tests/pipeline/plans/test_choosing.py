"""What plans are chosen by: selection rows, and out-of-fold answers to training rows where those are few."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.evaluation.results import EvaluatedRow
from smallfirst.pipeline.plans.choosing import choosing_evaluations, expected_plans, expected_share
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.project.task_file import read_task_file
from smallfirst.routing.certificate.guarantee import Guarantee

LABELS = ("card lost", "money back")


def row(i: int, correct: bool, confidence: float) -> EvaluatedRow:
    return evaluated_row(str(i), "a", "a" if correct else "b", correct=correct, confidence=confidence)


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


def test_the_share_is_the_largest_that_is_wrong_as_seldom_as_is_guaranteed() -> None:
    rows = [row(i, i not in (5, 8, 9), 1 - i / 20) for i in range(10)]
    assert expected_share(rows, Guarantee(max_error=0.05)) == 0.5  # the sixth most confident is wrong
    assert expected_share(rows, Guarantee(max_error=0.2)) == 0.8
    assert expected_share(rows[::-1], Guarantee(max_error=0.3)) == 1.0
    assert expected_share(rows, Guarantee(max_error=None, max_accuracy_loss=0.01)) == 0.7
    assert expected_share([], Guarantee()) == 0.0


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


def test_the_cheapest_plan_comes_first(project: Project) -> None:
    run_folder = RunFolder.new("desk")
    rows = [row(i, i % 4 > 0, 0.5) for i in range(250)]
    for name, wrong, cost in (("words", 100, 0.001), ("small", 10, 0.2)):
        for split in ("selection", "calibration"):
            right = [row(i, i >= wrong, i / 250) for i in range(250)]
            made = evaluation_of(right, candidate=name, split=split)
            run_folder.save_evaluation(made.model_copy(update={"cost_usd_per_1k": cost}))
    many = project._replace(rows=project.rows.model_copy(update={"selection": project.rows.train}))
    many = many._replace(file=many.file.model_copy(update={"ladder": None}))
    plans = expected_plans(many, run_folder)
    assert [(plan.candidate, plan.usd_per_1k) for plan in plans] == [("small", None), ("words", None)]
    large = evaluation_of(rows, candidate="large", split="calibration")
    for price, order in ((2.0, ["small", "words"]), (0.1, ["words", "small"])):
        run_folder.save_evaluation(large.model_copy(update={"cost_usd_per_1k": price}))
        assert [plan.candidate for plan in expected_plans(many, run_folder)] == order
    # Each wrong answer costs a cent: the large model is wrong on a quarter, so what goes to it is dear.
    routing = many.file.routing.model_copy(update={"usd_per_wrong_answer": 0.01})
    priced = many._replace(file=many.file.model_copy(update={"routing": routing}))
    assert [plan.candidate for plan in expected_plans(priced, run_folder)] == ["small", "words"]
