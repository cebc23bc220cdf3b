"""Every kind of task goes the whole path: rows in, a model that answers, figures of its kind, a report."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from smallfirst.base.errors import DataError, GateFailed
from smallfirst.base.paths import home
from smallfirst.base.progress import Progress
from smallfirst.deployment import service
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.protocol import Request
from smallfirst.path import run as pipeline
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.task_file import read_task_file

ITEMS = ("card", "refund", "pin", "parcel", "envelope", "euro rate")


def rows(kind: str) -> list[dict[str, Any]]:
    """72 rows of one kind, no text twice."""
    frames = ("where is my {}, number {}", "the {} again, day {}", "help with a {} of {}")
    found: list[dict[str, Any]] = []
    for i in range(72):
        text, item = frames[i % 3].format(ITEMS[i % 6], i), ITEMS[i % 6]
        if kind == "extract":
            found.append({"text": text, "target": {"item": item, "n": i} if i % 4 else {"item": item}})
        elif kind == "answer":
            found.append({"question": text, "context": f"It is a {item}.", "answer": [item, f"a {item}"]})
        elif kind == "multiple":
            found.append({"text": text, "labels": [item] if i % 2 else [item, "late"]})
        else:
            found.append({"prompt": text, "response": f"your {item}, please"})
    return found


def task_file(folder: Path, kind: str, base: Path, **settings: Any) -> Path:
    """A task.yaml (JSON is YAML) and its rows."""
    lines = "".join(json.dumps(row) + "\n" for row in rows(kind))
    (folder / "train.jsonl").write_text(lines, encoding="utf-8")
    file = {
        "name": f"{kind}-desk",
        "kind": "classify" if kind == "multiple" else kind,
        "data": {"train": "train.jsonl"},
        "small": {"base": str(base), "training": {"duration": "2ep", "learning_rate": 3e-3}, "sample_base": 4},
        "register_to": f"main.tests.{kind}",
        **({"multiple": True} if kind == "multiple" else {}),
        **settings,
    }
    (folder / "task.yaml").write_text(json.dumps(file), encoding="utf-8")
    return folder / "task.yaml"


@pytest.mark.parametrize(
    ("kind", "measure"),
    [("extract", "field_f1"), ("answer", "token_f1"), ("multiple", "micro_f1"), ("chat", "token_f1")],
)
def test_a_kind_goes_the_whole_path(kind: str, measure: str, tmp_path: Path, tiny_folder: Path) -> None:
    settings: dict[str, Any] = {"gate": {"accuracy_at_least": 0.0}, "max_answer_tokens": 24}
    if kind == "multiple":
        del settings["max_answer_tokens"]
        settings |= {"ladder": ["words", "small"], "routing": {"small": "small"}}
    if kind == "answer":
        settings["ladder"] = ["base", "small"]  # the base model is measured on request
    if kind == "extract":
        settings["ladder"] = ["small"]  # a tagger's path is in test_tagger.py
    path = task_file(tmp_path, kind, tiny_folder, **settings)
    file = read_task_file(path)
    outcome = pipeline.run(file, progress=Progress(quiet=True))
    assert list(outcome.paths) == [*settings.get("ladder", ["small"]), "routed"]  # linear candidates need labels
    assert measure in outcome.paths["small"].measures
    assert all(path.accuracy.n == 4 for name, path in outcome.paths.items() if name == "base")
    assert outcome.promoted is not None
    ledger = Ledger(home() / "ledger.db")
    models = service.deploy([file], ledger).models  # by its gate alone: four rows certify nothing
    answer = asyncio.run(models[file.name].complete(Request.ask("where is my card, number 3")))
    ledger.close()
    assert answer.answered_by == f"{file.name}-small@1"
    assert answer.route is not None
    why = "answered without a promise: the model passed its gate alone, and no certificate was issued"
    assert (answer.route.certified, answer.route.why) == (False, why)
    if kind == "extract":
        value = json.loads(answer.text)
        assert set(value) <= {"item", "n"}
        assert "item" in answer.field_confidence
        rows_of_small = RunFolder.latest(file.name).evaluation("small", "test").rows  # type: ignore[union-attr]
        assert all(row.answer is not None for row in rows_of_small)  # valid, however little was learnt
    page = Path(outcome.report).read_text(encoding="utf-8")
    assert f"{file.name}: small model or large?" in page
    assert len(page) < 2_000_000


def test_a_leak_fails_the_gate(tmp_path: Path, tiny_folder: Path) -> None:
    small = {"base": str(tiny_folder), "training": {"duration": "1ba"}}
    gate = {"accuracy_at_least": 0.0}
    path = task_file(tmp_path, "extract", tiny_folder, gate=gate, small=small, ladder=["small"], max_answer_tokens=16)
    train = (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "test.jsonl").write_text("".join(train[:16] + train[60:]), encoding="utf-8")
    (tmp_path / "validation.jsonl").write_text("".join(train[48:60]), encoding="utf-8")
    (tmp_path / "train.jsonl").write_text("".join(train[:48]), encoding="utf-8")
    values = json.loads(path.read_text(encoding="utf-8"))
    values["data"] |= {"validation": "validation.jsonl", "test": "test.jsonl"}
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(GateFailed, match=r"(?s)FAIL.*training"):
        pipeline.run(read_task_file(path), progress=Progress(quiet=True), despite_check=True)
    run_folder = RunFolder.latest("extract-desk")
    failing = [line for line in run_folder.verdicts().of("small").checks if not line.passed]
    assert len(failing) == 1
    assert "12 of 28, 16 left out" in failing[0].measured
    assert not (run_folder.path / "promoted.json").exists()


def test_rows_that_do_not_fit_the_task_are_named(tmp_path: Path, tiny_folder: Path) -> None:
    schema = {"type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]}
    path = task_file(tmp_path, "extract", tiny_folder, schema=schema)
    with pytest.raises(DataError, match=r"train.jsonl:2.*no answer of this task"):
        Project.read(read_task_file(path), Progress(quiet=True))
