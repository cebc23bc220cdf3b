"""What to do after a run: words and commands for each outcome."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from fixtures.certificates import certificate

from smallfirst.errors import ConfigError, DataError, TrainingError, Unavailable
from smallfirst.gate.check_result import CheckResult
from smallfirst.gate.verdict import LabelsNeeded, Outcome, Verdict
from smallfirst.pipeline.next_step import after_certificate, after_gate, hint_of, next_steps
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.run_folder import GateVerdicts, RunFolder
from smallfirst.project.task_file import read_task_file
from smallfirst.stats.intervals import wilson

PASSED = CheckResult(requirement="accuracy at least 0.8", measured="0.9", passed=True)
LARGE = {"large": {"endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "big"}}}


def project(folder: Path, **settings: Any) -> Project:
    rows = [{"text": f"it's number {i}", "label": ("card", "fee")[i % 2]} for i in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"name": "desk", "data": {"train": "rows.jsonl"}, "ladder": ["words", "encoder"], **settings}
    (folder / "task.yaml").write_text(json.dumps(values))
    return Project.read(read_task_file(folder), Progress(quiet=True))


def verdict(candidate: str, *checks: CheckResult) -> Verdict:
    passed = all(check.passed for check in checks)
    return Verdict(candidate=candidate, checks=checks, passed=passed, evaluation_fingerprint="e")


def missed(name: str, share: int, *, more_rows: int | None) -> CheckResult:
    """A check of 0.8 that `share` of 20 rows failed to show."""
    estimate = wilson(share, 20)
    return CheckResult(
        name=f"{name}_at_least",
        threshold=0.8,
        requirement=f"{name} at least 0.8",
        measured=f"{share / 20:.2f}",
        passed=False,
        advice="do something",
        estimate=estimate,
        more_rows=more_rows,
    )


def test_a_certified_version_is_served_and_asked_a_row_of_the_task(tmp_path: Path) -> None:
    serve, ask = after_certificate(project(tmp_path, **LARGE), certificate(0.5), task="desk")
    assert serve.command == "smallfirst serve desk"
    assert serve.what.endswith("the rest goes to the large model")
    kept, _ = after_certificate(project(tmp_path, **LARGE), certificate(0.5, below="keep"), task="desk")
    assert kept.what.endswith("the rest stays small too, without it")
    body = json.loads(shlex.split(ask.command)[-1])
    assert body["model"] == "desk"
    assert body["messages"][-1]["content"].startswith("it's number ")  # quoted for the shell


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        ({}, ' --uncertified "a trial"', "serve it without a certificate: there is no large model"),
        (LARGE, "", "serve it: nothing is certified, so the large model answers every request"),
        ({"large": {"recorded": "answers.jsonl"}}, " --replay-large", "serve it: nothing is certified, so the large"),
        ({"routing": {"override": {"by": "Ada", "because": "a pilot"}}}, "", "serve it uncertified: Ada signed for it"),
    ],
)
def test_without_a_certificate_there_is_a_way_to_serve_and_rows_to_label(
    tmp_path: Path, settings: dict[str, Any], options: str, words: str
) -> None:
    refused = certificate(0.5, issued=False).model_copy(update={"labels_missing": 12})
    serve, _, label = after_certificate(project(tmp_path, **settings), refused, task="desk")
    assert serve.command == f"smallfirst serve desk{options}"
    assert serve.what.startswith(words)
    assert label.what.startswith("to have it certified, label 12 more calibration rows, which is about ")
    assert label.what.endswith(" more rows in rows.jsonl, then: smallfirst run desk")


def test_rows_are_asked_for_where_rows_would_do(tmp_path: Path) -> None:
    gate = GateVerdicts(
        verdicts=(
            verdict("words", missed("accuracy", 15, more_rows=None)),
            verdict("encoder", missed("accuracy", 17, more_rows=40)),
        ),
        smallest=None,
    )
    part, label, suspects, sign = after_gate(project(tmp_path), RunFolder(tmp_path), gate, task="desk")
    assert part.command == "smallfirst calibrate desk"  # a part of the requests was not looked for yet
    assert label.what.startswith(
        "encoder comes nearest; furthest off is accuracy at least 0.8, measured 0.85. Label 40"
    )
    assert label.command == ""
    assert suspects.command == "smallfirst suspects desk"
    assert sign.command == "smallfirst override desk --candidate encoder --by NAME --because REASON"


def test_the_bar_that_is_furthest_off_is_named_and_which_rows_help(tmp_path: Path) -> None:
    checks = missed("macro_f1", 15, more_rows=None), missed("accuracy", 9, more_rows=None)
    gate = GateVerdicts(verdicts=(verdict("words", *checks),), smallest=None)
    needed = LabelsNeeded(part="calibration", n_rows=7, n_data_rows=40, in_words="7 more calibration rows")
    Outcome(kind="cannot be told yet", sentence="-", labels_needed=needed).save(tmp_path / "outcome.json")
    rows, label, *_ = after_gate(project(tmp_path), RunFolder(tmp_path), gate, task="desk")
    assert rows.what == "label 7 more calibration rows, then: smallfirst run desk"
    assert "furthest off is accuracy at least 0.8, measured 0.45" in label.what
    assert "More test rows will not help: label more training rows." in label.what


def test_another_candidate_that_passes_is_offered(tmp_path: Path) -> None:
    named = project(tmp_path, routing={"small": "encoder"})
    gate = GateVerdicts(
        verdicts=(verdict("words", PASSED), verdict("encoder", missed("accuracy", 9, more_rows=None))), smallest="words"
    )
    (step,) = after_gate(named, RunFolder(tmp_path), gate, task="desk")
    assert step.command == "smallfirst promote desk --candidate words"


def test_errors_that_leave_something_behind_are_resumed_and_others_speak_for_themselves(tmp_path: Path) -> None:
    ready = project(tmp_path, **LARGE)
    for error in (Unavailable("down"), KeyboardInterrupt(), TrainingError("disk full")):
        assert next_steps(ready, None, error, task="desk")[0].command == "smallfirst run desk --resume"
    assert next_steps(None, None, DataError("bad"), task="desk")[0].command == "smallfirst check desk"
    assert next_steps(None, None, ConfigError("bad"), task="desk") == ()


def test_an_error_keeps_its_own_hint_before_the_steps() -> None:
    error = DataError("bad", hint="mend line 3")
    assert hint_of(error, next_steps(None, None, error)) == (
        "mend line 3\n"
        "        see what is wrong with the rows, and where:\n"
        "          smallfirst check task.yaml\n"
        "        mend them or label more, then: smallfirst run task.yaml"
    )
