"""Calibration rows are judged by whoever labelled them, and by people where some were asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.base.errors import DataError
from smallfirst.base.progress import Progress
from smallfirst.base.stats.intervals import upper_bound
from smallfirst.measuring.evaluate import Evaluation, judge_by
from smallfirst.path.calibrate import (
    _label_sources,
    gold_answers,
    guarantee_of,
)
from smallfirst.path.project.project import Project, labelled_by
from smallfirst.path.project.task_file import read_task_file
from smallfirst.routing.certificate.calibration_set import CalibrationSet
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.certificate.certify import certify

LABELS = ("billing", "delivery")


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"text": t, "label": a}) + "\n" for t, a in rows), encoding="utf-8")
    return path


def project(folder: Path, gold: list[tuple[str, str]], **routing: Any) -> Project:
    """400 validation rows that the large model answered, every tenth one wrongly."""
    write(folder / "train.jsonl", [(f"old {i}", LABELS[i % 2]) for i in range(20)])
    write(folder / "validation.jsonl", [(f"row {i}", said_by_large(i)) for i in range(400)])
    write(folder / "test.jsonl", [(f"new {i}", LABELS[i % 2]) for i in range(20)])
    write(folder / "gold.jsonl", gold)
    file = {
        "name": "desk",
        "labels": list(LABELS),
        "data": {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl", "gold": "gold.jsonl"},
        "routing": {"guarantee": {"max_error": 0.2}, "labels": "large", **routing},
    }
    (folder / "task.yaml").write_text(json.dumps(file), encoding="utf-8")
    return Project.read(read_task_file(folder / "task.yaml"), Progress(quiet=True))


def truth(i: int) -> str:
    return LABELS[i % 2]


def said_by_large(i: int) -> str:
    return LABELS[(i + 1) % 2] if i % 10 == 0 else truth(i)


def small(of: Project) -> Evaluation:
    """A small model that is always right, so that it differs from the large one in every tenth row."""
    rows = [
        evaluated_row(e.key, e.answer, truth(int(e.text.split()[1])), text=e.text, confidence=0.9)
        for e in of.rows.calibration.examples
    ]
    return evaluation_of(rows, split="calibration", cost_usd_per_1k=0.0)


def certified(of: Project) -> Certificate:
    judged = judge_by(small(of), of.task, gold_answers(of, small(of)))
    return certify(CalibrationSet.of([judged]), of.file.routing.guarantee, model_fingerprint="m")


def test_where_calibration_rows_repeat_a_text_the_promise_counts_each_text_once(tmp_path: Path) -> None:
    assert "counted once" not in guarantee_of(project(tmp_path, [])).in_words
    with (tmp_path / "validation.jsonl").open("a", encoding="utf-8") as rows:
        rows.writelines(json.dumps({"text": f"row {i}", "label": LABELS[0]}) + "\n" for i in range(50))
    again = Project.read(read_task_file(tmp_path / "task.yaml"), Progress(quiet=True))
    assert guarantee_of(again).in_words == "at most 20 % of kept answers wrong, each text counted once (95 %)"


def test_peoples_answers_alone_certify_true_errors(tmp_path: Path) -> None:
    # The large model's labels call the small model wrong in every tenth row; people do not.
    of = project(tmp_path, [(f"row {i}", truth(i)) for i in range(0, 400, 2)])
    found = certified(of)
    n_gold = sum(int(e.text.split()[1]) % 2 == 0 for e in of.rows.calibration.examples)
    assert (found.issued, found.evidence.n_labels, found.evidence.n_errors) == (True, n_gold, 0)
    assert found.evidence.risks[0].bound == upper_bound(0, n_gold)
    assert found.dataset_fingerprint != small(of).dataset_fingerprint


def test_a_few_of_them_show_nothing_yet(tmp_path: Path) -> None:
    found = certified(project(tmp_path, [("row 1", truth(1)), ("row 3", truth(3)), ("row 5", truth(5))]))
    assert not found.issued
    assert found.evidence.n_labels <= 3


def test_rows_that_only_choose_certify_nothing(tmp_path: Path) -> None:
    of = project(tmp_path, [(f"row {i}", truth(i)) for i in range(400)])
    choosing = {e.text for e in of.rows.selection.examples}
    found = gold_answers(of, small(of))
    assert len(choosing) > 40
    assert len(found) == 400 - len(choosing)


def test_an_answer_to_a_row_that_is_not_there_is_refused_by_its_line(tmp_path: Path) -> None:
    of = project(tmp_path, [("row 2", truth(2)), ("row 999", "billing")])
    with pytest.raises(DataError, match=r"gold\.jsonl:2: no validation row has this text \(1 such rows\)"):
        certified(of)


def test_a_model_s_labels_are_never_gold(tmp_path: Path) -> None:
    of = project(tmp_path, [], labels="gold")
    assert (labelled_by(of), _label_sources(of.rows.calibration)) == ("gold", "")
    lines = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text(encoding="utf-8").splitlines()]
    mixed = [
        line | {"teacher": "big-1" if i % 2 else None, "labelled_on": "2026-11-26"} for i, line in enumerate(lines)
    ]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in mixed), encoding="utf-8")
    of = Project.read(of.file, Progress(quiet=True))
    n = sum(example.source == "big-1" for example in of.rows.calibration.examples)
    assert 0 < n < len(of.rows.calibration)
    assert labelled_by(of) == "large"
    assert f"({n} of {len(of.rows.calibration)} by big-1)" in _label_sources(of.rows.calibration)
