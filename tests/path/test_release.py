"""Which candidate goes live, and what is watched then; the whole matrix is in tests/integration/test_one_story.py."""

from pathlib import Path
from typing import Any, cast

import pytest
from fixtures.certificates import certificate
from fixtures.cli import evaluated, measured

from smallfirst.base.progress import Progress
from smallfirst.base.stats.intervals import wilson
from smallfirst.measuring.verdict import CheckResult, Verdict, override
from smallfirst.path.calibrate import Certified
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import GateVerdicts, RunFolder
from smallfirst.path.project.task_file import TaskFile, read_task_file
from smallfirst.path.release import chosen_candidate, gate_line, gate_stage, holds_to_gate, may_go_alone
from smallfirst.path.router_setup import RouterParts


def project_of(**settings: Any) -> Project:
    file = TaskFile.model_validate({"name": "desk", "data": {"train": "train.jsonl"}, **settings})
    return Project(file, cast(Any, None), cast(Any, None), cast(Any, None))


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
    found = verdict("words", right)
    if signed:
        [found] = override([found], "words", by="Ada", because="a pilot")
    assert may_go_alone(project_of(**settings), found) is may


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
    verdicts = verdict("words", words), verdict("small", small)
    winner = next((one.candidate for one in verdicts if one.passed), None)
    assert chosen_candidate(project_of(**settings), GateVerdicts(verdicts=verdicts, winner=winner)) == wanted


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


def test_the_line_of_a_gate_that_nobody_wrote_is_the_default() -> None:
    assert gate_line(project_of()) == "gate: {accuracy_at_least: 0.8}"


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
    found = project_of(**settings).file.with_minutes(5)
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
    project = project_of(**({"gate": {"accuracy_at_least": 0.7}} if written else {}))
    certified = Certified(plan=plan, certificate=certificate(issued=issued), parts=RouterParts())
    assert holds_to_gate(project, certified, verdict("words", 95), all_small=all_small) is holds
