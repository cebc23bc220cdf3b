"""Verbs that judge: the verdict in words and exit codes, and a signature over it."""

from __future__ import annotations

import json
from pathlib import Path

from fixtures.cli import call, evaluated, failed

from smallfirst.project.run_folder import RunFolder


def test_a_signature_lets_a_failing_candidate_pass_and_keeps_what_it_missed(desk_folder: Path) -> None:
    evaluated(wrong=30)
    assert call("gate", desk_folder).exit_code == 3
    signed = call("override", desk_folder, "--candidate", "small", "--by", "Ada", "--because", "the pilot is small")
    assert signed.exit_code == 0
    assert "overridden by Ada" in signed.output
    assert "the pilot is small" in signed.output
    verdict = RunFolder.latest("desk").verdicts().of("small")
    assert verdict.passed
    assert len(verdict.failed_checks) == 1


def test_nobody_can_sign_for_a_candidate_that_was_not_judged(desk_folder: Path) -> None:
    evaluated(wrong=30)
    call("gate", desk_folder)
    message = failed(call("override", desk_folder, "--candidate", "smal", "--by", "Ada", "--because", "seen"), 2)
    assert 'no verdict on "smal" to override — did you mean "small"?' in message


def test_a_stage_that_comes_too_early_names_the_one_before(desk_folder: Path) -> None:
    for verb in ("evaluate", "gate", "promote", "calibrate", "report"):
        assert failed(call(verb, desk_folder), 1) == (
            f"StageMissing: desk has no finished run\n  next: smallfirst train {desk_folder}\n"
        )


def test_a_failing_gate_ends_with_three_and_prints_why(desk_folder: Path) -> None:
    evaluated(wrong=30)
    result = call("gate", desk_folder)
    failed(result, 3)
    assert result.stdout.splitlines()[0] == "small: FAIL"
    assert "goes live by the gate: none" in result.stdout.splitlines()
    assert f"smallfirst override {desk_folder} --candidate small --by NAME --because REASON" in result.stdout


def test_a_passing_gate_ends_with_zero(desk_folder: Path) -> None:
    evaluated(wrong=3)
    settings = (desk_folder / "task.yaml").read_text()
    (desk_folder / "task.yaml").write_text(settings + "gate: {accuracy_at_least: 0.8}\n")
    result = call("gate", desk_folder, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["winner"] == "small"


def test_a_default_gate_is_no_permission(desk_folder: Path) -> None:
    evaluated(wrong=3)
    result = call("gate", desk_folder)
    assert result.exit_code == 3
    assert "task.yaml sets no gate: this one is the default, and lets nobody answer alone" in result.stdout
    assert f"smallfirst calibrate {desk_folder}" in result.stdout
    refused = call("promote", desk_folder)
    assert refused.exit_code == 3
    assert "small meets the default gate, but task.yaml sets none" in refused.output
