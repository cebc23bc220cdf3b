"""Adding a task kind is one file and one entry point: the whole path runs with it, the package untouched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from smallfirst.cli.main import main
from smallfirst.errors import ConfigError
from smallfirst.pipeline.check import check_stage
from smallfirst.pipeline.evaluate import evaluate_stage
from smallfirst.pipeline.report_data import report_stage
from smallfirst.pipeline.train import train_stage
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.task_file import read_task_file
from smallfirst.tasks import TASK_KINDS

KIND = '''
from typing import ClassVar, Literal

from smallfirst.stats.intervals import wilson
from smallfirst.tasks.task import Task


class YesNo(Task):
    """Questions answered by yes or no."""

    kind: Literal["yes_no"] = "yes_no"
    yes: str = "yes"
    no: str = "no"

    request_noun: ClassVar = "questions"
    part: ClassVar = "label"
    pass_score: ClassVar = 1.0
    max_answer_tokens: ClassVar = 8

    @property
    def closed(self):
        return (self.yes, self.no)

    @property
    def row_formats(self):
        return ("question",)

    @classmethod
    def template(cls):
        return "name: mine\\nkind: yes_no\\ndata: {train: train.jsonl}\\n"

    def system_message(self):
        return f"Answer {self.yes} or {self.no}."

    def parse(self, text):
        return next((answer for answer in self.closed if text.strip().casefold() == answer), None)

    def score(self, golds, answer):
        return float(answer in golds)

    def measures(self, rows):
        said_yes = [row for row in rows if row.answer == self.yes]
        return {"yes_precision": wilson(sum(row.score == 1 for row in said_yes), len(said_yes))}
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of one file whose only entry point registers the kind."""
    package = tmp_path / "site"
    info = package / "yes_no_kind-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "yes_no_kind.py").write_text(KIND, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: yes-no-kind\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[smallfirst.task_kinds]\nyes_no = yes_no_kind:YesNo\n")
    monkeypatch.syspath_prepend(str(package))


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
        "small": {
            "base": str(tiny_folder),
            "training": {"duration": "2ba", "batch_tokens": 256},
            "candidates": ["words", "small"],
        },
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
