"""Which candidate goes live."""

from __future__ import annotations

from typing import Any, cast

import pytest

from smallfirst.gate.verdict import CheckResult, Verdict, override
from smallfirst.pipeline.plans.outcome import may_go_alone
from smallfirst.pipeline.release import chosen_candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import GateVerdicts
from smallfirst.project.task_file import TaskFile
from smallfirst.stats.intervals import wilson


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
