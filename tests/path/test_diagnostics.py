"""Copies and wrong labels are found where they are, once, and no held-out label is corrected by what models say."""

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fixtures.preflight import task_of

from smallfirst.base.errors import ConfigError, DataError
from smallfirst.data.copies import LeakReport
from smallfirst.data.dataset import Example
from smallfirst.measuring.data_issues import DataIssue
from smallfirst.measuring.evaluate import EvaluationSetup, evaluate
from smallfirst.models.protocol import Request
from smallfirst.models.recorded import request_key
from smallfirst.path import large_model as large_path
from smallfirst.path.diagnostics import (
    export_suspects,
    find_split_leaks,
    systematic_doubt,
    unsettled_issues,
    without_copies,
)
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.settlements import settle, text_key, undo

LABELS = ("card", "fee", "pin")


def row(i: int) -> dict[str, str]:
    """A text that shares few words with any other, and its label."""
    return {"text": " ".join(f"w{i}{letter}" for letter in "abcdefgh"), "label": LABELS[i % 3]}


def recording(path: Path, project: Project, answers: dict[int, str]) -> None:
    """A recording of the large model's answers to the test rows: right ones, but for those in `answers`."""
    test = project.rows.test.examples
    lines = [{"recorded": {"model": "big", "made_at": "2026-11-25", "smallfirst": "0.1.0", "n": len(test)}}]
    figures = {"prompt_tokens": 1, "completion_tokens": 1, "latency_ms": 1.0, "cost_usd": 0.001}
    for i, example in enumerate(test):
        said = {"key": request_key(Request(messages=example.messages)), "text": example.text}
        lines.append(said | figures | {"answer": answers.get(i, example.answer)})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Thirty training rows and twelve test rows, of which one stands in both; a recording."""
    parts = {"train": range(30), "validation": range(40, 60), "test": [*range(60, 71), 0]}
    rows = {part: [row(i) for i in numbers] for part, numbers in parts.items()}
    project = task_of(tmp_path, rows, large={"recorded": "big.jsonl"})
    recording(tmp_path / "big.jsonl", project, {3: "fee"})
    return project


@pytest.fixture
def run_folder(project: Project) -> RunFolder:
    """A run in which the large model was evaluated on the test rows."""
    run_folder = RunFolder.new("desk")
    told, setup = project.progress, EvaluationSetup(project.task, project.rows.test, split="test")
    large = asyncio.run(large_path.recorded_answers(project.file, project.task, project.rows, progress=told))
    found = asyncio.run(evaluate(large, setup, candidate="large"))
    run_folder.save_evaluation(found)
    return run_folder


def test_a_row_that_stands_in_both_is_found_once_for_the_same_rows(project: Project, run_folder: RunFolder) -> None:
    found = find_split_leaks(project, run_folder)
    assert found.n_leaked == 1
    found.model_copy(update={"leaks": ()}).save(run_folder.path / "leaks.json")
    assert find_split_leaks(project, run_folder).n_leaked == 0  # read back, not looked for again
    fewer = project.rows.test.subset("test", project.rows.test.examples[:4])
    other = project._replace(rows=project.rows.model_copy(update={"test": fewer}))
    assert find_split_leaks(other, run_folder).n_test == 4


def test_an_evaluation_without_copies_has_every_other_row(project: Project, run_folder: RunFolder) -> None:
    leaks, whole = find_split_leaks(project, run_folder), run_folder.evaluation("large", "test")
    clean = without_copies(project, whole, leaks)
    assert [row.key for row in clean.rows] == [row.key for row in whole.rows[:-1]]  # the last test row is a copy
    assert (clean.accuracy.n, clean.split) == (11, "test")
    assert clean.measures["macro_f1"].n == 11
    none = LeakReport(n_test=leaks.n_test, test_fingerprint=leaks.test_fingerprint)
    assert without_copies(project, whole, none) is whole


def labelled(folder: Path, **files: object) -> Project:
    """A task whose words tell the label; of 200 training and 80 validation rows each 20th is given another one."""
    rows = {
        part: [
            {"text": f"my {LABELS[i % 3]} {part}{i} today", "label": LABELS[(i + (i % 20 == 3)) % 3]} for i in range(n)
        ]
        for part, n in (("train", 200), ("validation", 80), ("test", 20))
    }
    return task_of(folder, rows, data=files)


def test_suspects_for_relabelling_are_training_rows_alone(tmp_path: Path) -> None:
    project = labelled(tmp_path)
    n = export_suspects(project, tmp_path / "suspects.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "suspects.jsonl").read_text(encoding="utf-8").splitlines()]
    wrong = {e.key for e in project.rows.train.examples if e.answer not in e.text}
    assert 8 <= n == len(lines) <= len(wrong) == 10
    assert {line["key"] for line in lines} <= wrong
    assert all(line["suggested"] in line["text"] and line["answer"] == "" for line in lines)


def relabels(examples: Sequence[Example], path: Path) -> None:
    """A person's right answers to these rows."""
    answers = [next(label for label in LABELS if label in e.text) for e in examples]
    rows = [
        {"key": e.key, "text": e.text, "given": e.answer, "suggested": a, "answer": a}
        for e, a in zip(examples, answers, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("part", ["calibration", "test"])
def test_held_out_labels_are_not_corrected_where_a_model_disagrees_alone(tmp_path: Path, part: str) -> None:
    """Each 20th label is wrong, and a model that knows better would be certified without a single error."""
    rows = getattr(labelled(tmp_path).rows, part)
    relabels([e for e in rows.examples if e.answer not in e.text], tmp_path / "mended.jsonl")
    with pytest.raises(DataError, match=rf"answers \d of {len(rows)} {part} rows, which would shift what they measure"):
        labelled(tmp_path, relabels="mended.jsonl")
    relabels(rows.examples, tmp_path / "mended.jsonl")
    mended = getattr(labelled(tmp_path, relabels="mended.jsonl").rows, part)
    assert [e.answer in e.text for e in mended.examples] == [True] * len(rows)


def test_of_calibration_rows_a_random_part_may_be_judged_and_certifies_alone(tmp_path: Path) -> None:
    calibration = labelled(tmp_path).rows.calibration
    export_suspects(labelled(tmp_path), tmp_path / "file.jsonl", n_random=20)
    lines = (tmp_path / "file.jsonl").read_text(encoding="utf-8").splitlines()
    drawn = [json.loads(line)["key"] for line in lines[-20:]]
    relabels([e for e in calibration.examples if e.key in drawn], tmp_path / "mended.jsonl")
    rows = labelled(tmp_path, relabels="mended.jsonl").rows
    assert len(rows.calibration) == 20 < len(calibration)
    assert all(e.answer in e.text for e in rows.calibration.examples)


def recorded(folder: Path, n: int = 360) -> Project:
    """Rows of a log: from row 240 on every label has another name, and tenant t5 always gets the next one."""
    rows = []
    for i in range(n):
        liar = i % 6 == 5
        label = LABELS[(i // 6 + liar) % 3]
        words = " ".join(f"{LABELS[i // 6 % 3]}{(i * k) % 5}" for k in (1, 2, 3))
        row = {"text": f"{words} w{i * 37 % 101} w{i * 53 % 103}", "label": f"new-{label}" if i >= 240 else label}
        rows.append(row | {"at": f"2026-10-{1 + i // 12:02d}T{i % 12:02d}:00:00+00:00", "tenant": f"t{i % 6}"})
    names = [*LABELS, *(f"new-{label}" for label in LABELS)]
    return task_of(folder, {"train": rows}, labels=names, data={"columns": {"at": "at", "tenant": "tenant"}})


def test_a_decision_settles_its_group_in_every_part_and_can_be_undone(tmp_path: Path) -> None:
    project = recorded(tmp_path)
    issues = {issue.kind: issue for issue in unsettled_issues(project)}
    assert issues["versions"].names == {label: f"new-{label}" for label in LABELS}
    assert issues["tenant"].tenant == "t5"
    assert 'tenant "t5"' in systematic_doubt(project)
    settle(tmp_path, issues["versions"], "map", labels=True)
    settle(tmp_path, issues["tenant"], "drop", labels=True)
    with pytest.raises(ConfigError, match="settles no finding of this kind"):
        settle(tmp_path, issues["tenant"], "map", labels=True)
    settled = recorded(tmp_path)
    rows = [e for part in ("train", "selection", "calibration", "test") for e in getattr(settled.rows, part).examples]
    assert {e.answer for e in rows} == set(settled.task.closed) == {f"new-{label}" for label in LABELS}
    assert not any(e.tenant == "t5" for e in rows)
    assert systematic_doubt(settled) == ""
    assert undo(tmp_path).kind == "tenant"
    assert 'tenant "t5"' in systematic_doubt(recorded(tmp_path))


def test_what_models_doubt_is_left_out_of_training_rows_alone(tmp_path: Path) -> None:
    project = labelled(tmp_path)
    before = {part: len(getattr(project.rows, part)) for part in ("train", "calibration", "test")}
    for issue in unsettled_issues(project):
        settle(tmp_path, issue, "accept", labels=True)
    rows = labelled(tmp_path).rows
    assert {part: len(getattr(rows, part)) for part in before} == before
    assert sum(e.answer not in e.text for e in rows.train.examples) <= 2 < 10
    assert [e.answer for e in rows.calibration.examples] == [e.answer for e in project.rows.calibration.examples]


@pytest.mark.parametrize(("decision", "left_out"), [("new", ("card", False)), ("old", ("pin", True))])
def test_of_a_changed_rule_training_rows_of_the_other_one_are_left_out_and_one_side_certifies(
    tmp_path: Path, decision: str, left_out: tuple[str, bool]
) -> None:
    day = datetime(2026, 10, 15, tzinfo=UTC)
    rule = DataIssue(kind="rule", what="a rule", n=9, of=240, keys=("k",), names={"card": "pin"}, since=day)

    def answers(part: str) -> list[tuple[str, bool]]:
        examples = getattr(recorded(tmp_path, 240).rows, part).examples
        return [(e.answer, datetime.fromisoformat(e.at) >= day) for e in examples]

    before, certified = answers("train"), answers("calibration")
    settle(tmp_path, rule, decision, labels=True)
    assert answers("train") == [one for one in before if one != left_out] != before
    assert answers("calibration") == [one for one in certified if one[1] == (decision == "new")]


def test_answers_outside_the_list_are_dropped_from_every_part(tmp_path: Path) -> None:
    example = labelled(tmp_path).rows.calibration.examples[0]
    issue = DataIssue(kind="outside", what="answers outside the list", n=1, of=100, keys=(text_key(example),))
    settle(tmp_path, issue, "drop", labels=True)
    assert example.text not in {e.text for e in labelled(tmp_path).rows.calibration.examples}
