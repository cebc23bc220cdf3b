"""A new task kind is one file and one entry point, as in CONTRIBUTING.md: the whole path runs with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from fixtures.contributing import Install

from smallfirst.cli.main import main
from smallfirst.errors import ConfigError
from smallfirst.pipeline.evaluate import evaluate_stage
from smallfirst.pipeline.preflight.check import check_stage
from smallfirst.pipeline.report_data import report_stage
from smallfirst.pipeline.train import train_stage
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.task_file import read_task_file
from smallfirst.tasks import TASK_KINDS


@pytest.fixture
def installed(install: Install) -> None:
    """The recipe's package."""
    install("Add a task kind")


@pytest.fixture
def project(installed: None, tmp_path: Path, tiny_folder: Path) -> Project:
    rows = [
        {
            "question": f"is number {n} {'even' if n % 3 else 'odd'}",
            "answer": "yes" if (n % 2 == 0) == (n % 3 > 0) else "no",
        }
        for n in range(80)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    settings = {
        "name": "parity",
        "kind": "yes_no",
        "data": {"train": "train.jsonl"},
        "ladder": ["words", "small"],
        "small": {"base": str(tiny_folder), "training": {"duration": "2ba", "batch_tokens": 256}},
    }
    (tmp_path / "task.yaml").write_text(json.dumps(settings), encoding="utf-8")
    return Project.read(read_task_file(tmp_path), Progress(quiet=True))


def test_a_kind_of_one_file_is_checked_trained_evaluated_and_reported(project: Project) -> None:
    assert check_stage(project).rows.n_rows["train"] == len(project.rows.train)
    run_folder = train_stage(project)
    found = {evaluation.candidate: evaluation for evaluation in evaluate_stage(project, run_folder)}
    assert found.keys() == {"words", "small"}
    for evaluation in found.values():
        assert evaluation.measures.keys() == {"yes_precision"}
        assert {row.answer for row in evaluation.rows} <= {"yes", "no"}
        assert [row.score for row in evaluation.rows] == [float(row.answer == row.gold) for row in evaluation.rows]
    assert "parity: small model or large?" in report_stage(project, run_folder).read_text(encoding="utf-8")


def test_init_writes_the_template_of_the_kind(installed: None, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["init", str(tmp_path / "new"), "--kind", "yes_no"])
    assert result.exit_code == 0, result.output
    assert read_task_file(tmp_path / "new").kind == "yes_no"


def test_settings_of_the_kind_are_checked_as_those_of_any_other(installed: None, tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(
        "name: parity\nkind: yes_no\nyess: da\nlabels: [a, b]\ndata: {train: t.jsonl}\n"
    )
    with pytest.raises(ConfigError) as refused:
        read_task_file(tmp_path)
    assert 'yess: unknown setting — did you mean "yes"?' in str(refused.value)
    assert "labels: a setting of kind classify, not of yes_no" in str(refused.value)


def test_the_built_in_kinds_come_first() -> None:
    assert TASK_KINDS.names()[:4] == ("classify", "extract", "answer", "chat")
