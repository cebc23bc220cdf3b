"""The exam asks selection rows, and its score and calibration are those of the answers it got."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures.rows import answered_rows as rows

from smallfirst.base.errors import DataError
from smallfirst.data.dataset import Dataset
from smallfirst.measuring.calibration import accuracy_and_temperature
from smallfirst.models.label_model import LabelLogProbs
from smallfirst.models.local.tokenizer import choose_label_tokens
from smallfirst.models.manifest import Manifest
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.classify import Classify
from smallfirst.tasks.extract import Extract
from smallfirst.training import validation as exam
from smallfirst.training.validation import validate_generation, validate_labels

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 1}},
    "required": ["n"],
    "additionalProperties": False,
}


def test_written_answers_are_scored_by_the_task(tiny_fp32: tuple[Any, Any]) -> None:
    """The only valid answer is {"n": 1}, so exactly the rows that ask for it are right."""
    task = Extract(name="one", json_schema=SCHEMA)
    selection = rows(
        "s.jsonl", ("a card", '{"n": 1}'), ("a pin", '{"n": 1}'), ("a refund", '{"n": 2}'), ("late", '{"n": 1}')
    )
    found = validate_generation(*tiny_fp32, Manifest(kind="generative", task=task, base="tiny"), selection)
    assert found.value == pytest.approx(0.75)
    assert found.manifest.calibration.n_rows == 0  # four rows fit nothing


def test_only_the_first_rows_are_written(tiny_fp32: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exam, "MAX_GENERATED_ROWS", 1)
    task = Extract(name="one", json_schema=SCHEMA)
    selection = rows("s.jsonl", ("a refund", '{"n": 2}'), ("late", '{"n": 1}'))
    assert validate_generation(*tiny_fp32, Manifest(kind="generative", task=task, base="tiny"), selection).value == 0.0


def test_a_calibration_is_fitted_where_rows_suffice(tiny_fp32: tuple[Any, Any]) -> None:
    task = Answer(name="rules", max_answer_tokens=3)
    texts = [f"the card {i}" for i in range(40)]
    said = validate_generation(
        *tiny_fp32, Manifest(kind="generative", task=task, base="tiny"), rows("s.jsonl", *[(t, "no") for t in texts])
    )
    assert said.value == 0.0
    assert said.manifest.calibration.n_rows in (0, 40)  # all wrong: one flat step, or none


def test_no_selection_rows_no_score(tiny_fp32: tuple[Any, Any]) -> None:
    manifest = Manifest(kind="generative", task=Answer(name="rules"), base="tiny")
    assert validate_generation(*tiny_fp32, manifest, Dataset(name="selection", examples=())).value == 0.0


def test_codes_are_read_at_one_position(tiny_fp32: tuple[Any, Any], toy_task: Classify, toy_selection: Dataset) -> None:
    codes = choose_label_tokens(toy_task.closed, tiny_fp32[1])
    found = validate_labels(
        *tiny_fp32, Manifest(kind="label_tokens", task=toy_task, label_tokens=codes, base="tiny"), toy_selection
    )
    assert 0 <= found.value <= 1
    assert found.manifest.temperature != 1.0


def test_the_judge_names_rows_with_unknown_labels(toy_task: Classify) -> None:
    scored = [LabelLogProbs([0.0, -9.0, -9.0, -9.0], 1, 0.0)] * 2
    with pytest.raises(DataError, match=r's\.jsonl:2.*unknown label "nothing"'):
        accuracy_and_temperature(scored, rows("s.jsonl", ("a", toy_task.labels[0]), ("b", "nothing")), toy_task)
    accuracy, _ = accuracy_and_temperature(
        scored, rows("s.jsonl", ("a", toy_task.labels[0]), ("b", toy_task.labels[1])), toy_task
    )
    assert accuracy == 0.5
