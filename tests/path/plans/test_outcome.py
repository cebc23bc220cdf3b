"""What a run's files say goes live; the whole matrix is in tests/integration/test_one_story.py."""

from __future__ import annotations

from typing import Any, cast

import pytest
from fixtures.certificates import certificate

from smallfirst.measuring.verdict import CheckResult, Verdict
from smallfirst.path.calibrate import Certified
from smallfirst.path.confidence_heads import ConfidenceHeads
from smallfirst.path.plans.outcome import gate_line, holds_to_gate
from smallfirst.path.project.project import Project
from smallfirst.path.project.task_file import TaskFile
from smallfirst.path.router_setup import TrafficReference


def file(**settings: Any) -> TaskFile:
    return TaskFile.model_validate({"name": "desk", "data": {"train": "train.jsonl"}, **settings})


def test_the_line_of_a_gate_that_nobody_wrote_is_the_default() -> None:
    project = Project(file(), cast(Any, None), cast(Any, None), cast(Any, None))
    assert gate_line(project) == "gate: {accuracy_at_least: 0.8}"


@pytest.mark.parametrize(
    ("settings", "sets_gate", "binds"),
    [
        ({}, False, False),
        ({"gate": {"accuracy_at_least": 0.9}, "routing": {"guarantee": {"max_error": 0.1}}}, True, False),
        ({"large": {"recorded": "a.jsonl"}, "routing": {"person": True}}, False, False),
        ({"large": {"recorded": "a.jsonl"}, "routing": {"guarantee": {"max_error": 0.1}}}, False, True),
    ],
)
def test_what_task_yaml_says_is_told_from_the_defaults(settings: dict[str, Any], sets_gate: bool, binds: bool) -> None:
    found = file(**settings).with_minutes(5)
    assert (found.sets_gate, found.binds_answers) == (sets_gate, binds)


@pytest.mark.parametrize(
    ("issued", "all_small", "plan", "written", "holds"),
    [
        (False, True, "small alone", True, True),
        (True, True, "small alone", True, True),
        (False, False, "small alone", True, True),  # only the domain check sends requests on
        (True, False, "small alone", True, False),
        (True, False, "small first", True, False),
        (False, True, "small alone", False, False),
    ],
)
def test_audits_hold_small_answers_to_a_gate_that_was_written_and_passed(
    issued: bool, all_small: bool, plan: Any, written: bool, holds: bool
) -> None:
    settings = file(gate={"accuracy_at_least": 0.7}) if written else file()
    project = Project(settings, cast(Any, None), cast(Any, None), cast(Any, None))
    check = CheckResult(requirement="accuracy", measured="0.9", passed=True)
    verdict = Verdict(candidate="words", checks=(check,), passed=True, evaluation_fingerprint="e")
    certified = Certified(
        plan=plan, certificate=certificate(issued=issued), heads=ConfidenceHeads(), reference=TrafficReference()
    )
    assert holds_to_gate(project, certified, verdict, all_small=all_small) is holds
