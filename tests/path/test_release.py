"""Which candidate goes live."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from fixtures.cli import evaluated, measured

from smallfirst.base.progress import Progress
from smallfirst.base.stats.intervals import wilson
from smallfirst.measuring.verdict import CheckResult, Verdict, override
from smallfirst.path.plans.outcome import may_go_alone
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import GateVerdicts, RunFolder
from smallfirst.path.project.task_file import TaskFile, read_task_file
from smallfirst.path.release import chosen_candidate, gate_stage


def verdict(candidate: str, right: int) -> Verdict:
    """The verdict on a candidate that was right on so many of 100 rows; 0.8 had to be shown."""
    estimate = wilson(right, 100)
    check = CheckResult(
        name="accuracy_at_least",
        threshold=0.8,
        requirement="accuracy at least 0.8",
        measured=str(estimate),
        passed=estimate.low >= 0.8,
        estimate=estimate,
    )
    return Verdict(candidate=candidate, checks=(check,), passed=check.passed, evaluation_fingerprint="e")


@pytest.mark.parametrize(
    ("settings", "right", "signed", "may"),
    [
        ({"gate": {"accuracy_at_least": 0.8}}, 95, False, True),
        ({"gate": {"accuracy_at_least": 0.8}}, 60, False, False),
        ({}, 95, False, False),  # the default gate is a measure and no permission
        ({}, 60, True, True),
    ],
)
def test_who_may_answer_every_request(settings: dict[str, Any], right: int, signed: bool, may: bool) -> None:
    file = TaskFile.model_validate({"name": "desk", "data": {"train": "train.jsonl"}, **settings})
    project = Project(file, cast(Any, None), cast(Any, None), cast(Any, None))
    found = verdict("words", right)
    if signed:
        [found] = override([found], "words", by="Ada", because="a pilot")
    assert may_go_alone(project, found) is may


@pytest.mark.parametrize(
    ("settings", "words", "small", "wanted"),
    [
        ({}, 95, 95, "words"),  # the smallest that passes
        ({}, 95, 60, "words"),
        ({}, 60, 50, "words"),  # none passes: the one that comes nearest
        ({"routing": {"small": "small"}}, 95, 60, "small"),
        ({"routing": {"small": "smallest"}}, 95, 95, "words"),
        ({"ladder": ["words", "encoder"]}, 95, 95, "words"),
    ],
)
def test_the_candidate_that_is_to_go_live(settings: dict[str, Any], words: int, small: int, wanted: str) -> None:
    file = TaskFile.model_validate({"name": "desk", "data": {"train": "train.jsonl"}, **settings})
    verdicts = verdict("words", words), verdict("small", small)
    winner = next((one.candidate for one in verdicts if one.passed), None)
    project = Project(file, cast(Any, None), cast(Any, None), cast(Any, None))
    assert chosen_candidate(project, GateVerdicts(verdicts=verdicts, winner=winner)) == wanted


@pytest.mark.parametrize(("data", "alike"), [("", True), ("validation: validation.jsonl, ", False)])
def test_calibration_answers_foretell_only_where_all_rows_are_of_one_source(
    desk_folder: Path, data: str, alike: bool
) -> None:
    (desk_folder / "validation.jsonl").write_text((desk_folder / "train.jsonl").read_text().replace("question", "and"))
    words = f"name: desk\ndata: {{{data}train: train.jsonl}}\ngate: {{accuracy_at_least: 0.8}}\nladder: [small]\n"
    (desk_folder / "task.yaml").write_text(words)
    project = Project.read(read_task_file(desk_folder), Progress(quiet=True))
    evaluated(wrong=3, n=30)
    run_folder = RunFolder.latest("desk")
    alone = gate_stage(project, run_folder).verdicts[0].checks[0].more_rows
    run_folder.save_evaluation(measured(wrong=0, n=24).model_copy(update={"split": "calibration"}))
    beside = gate_stage(project, run_folder).verdicts[0].checks[0].more_rows
    assert alone is not None
    assert beside is not None
    assert (beside < alone) == alike
