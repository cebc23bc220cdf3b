"""A new candidate is one file and one registration, as in CONTRIBUTING.md: every stage takes it from the registry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from fixtures.contributing import Install

from smallfirst.cli.main import main
from smallfirst.project.candidate_registry import CANDIDATES
from smallfirst.project.run_folder import RunFolder


@pytest.fixture
def installed(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe's package, and a registry that forgets it after the test."""
    monkeypatch.setattr(CANDIDATES, "_loaded", dict(CANDIDATES._loaded))
    install("Add a candidate")


@pytest.fixture
def task(tmp_path: Path, tiny_folder: Path) -> Path:
    rows = [
        {"text": f"{word} number {i} of {i * 7919 % 1000}", "label": label}
        for i in range(60)
        for word, label in (("card", "cards"), ("fee", "fees"), ("pin", "codes"))
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = {
        "name": "desk",
        "data": {"train": "train.jsonl"},
        "ladder": ["first-word", "small"],
        "small": {"base": str(tiny_folder), "training": {"duration": "1ba"}},
        "gate": {"accuracy_at_least": 0.8},
        "routing": {"small": "smallest"},
    }
    (tmp_path / "task.yaml").write_text(json.dumps(file), encoding="utf-8")
    return tmp_path / "task.yaml"


def test_a_candidate_of_another_package_is_checked_trained_evaluated_gated_and_reported(
    installed: None, task: Path
) -> None:
    for command in ("check", "train", "evaluate", "gate", "report"):
        result = CliRunner().invoke(main, [command, str(task)])
        assert result.exit_code == 0, f"{command}: {result.output}"
        if command == "gate":
            assert "goes live by the gate: first-word" in result.output
    run_folder = RunFolder.latest("desk")
    verdicts = run_folder.verdicts()
    assert [verdict.candidate for verdict in verdicts.verdicts] == ["first-word", "small"]
    assert verdicts.of("first-word").passed
    page = (run_folder.path / "report.html").read_text(encoding="utf-8")
    assert ": a table of first words" in page  # described below the table of candidates
    assert ": a table of first words is good enough" in page  # the headline


def test_a_candidate_that_is_not_installed_is_refused_by_name(task: Path) -> None:
    result = CliRunner().invoke(main, ["check", str(task)])
    assert result.exit_code == 2
    known = ", ".join(CANDIDATES.names())
    assert f'ladder: "first-word" is no candidate; known: {known}' in result.output
