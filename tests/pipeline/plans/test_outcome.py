"""What a run's files say goes live; the whole matrix is in tests/integration/test_one_story.py."""

from __future__ import annotations

from typing import Any, cast

import pytest

from smallfirst.pipeline.plans.outcome import gate_line
from smallfirst.project.project import Project
from smallfirst.project.task_file import TaskFile


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
