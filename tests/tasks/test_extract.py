"""The extraction task: what a model is asked, which answer is read, and what it is worth."""

import json
from typing import Any

import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.base.records import parse_record
from smallfirst.data.dataset import Message
from smallfirst.tasks.extract import Extract
from smallfirst.tasks.json.schema import closed_schema
from smallfirst.tasks.task import Shot, Task

TEXT = {"type": "string"}
FIELDS = {
    "people": {"type": "string", "description": "how many come"},
    "date": {"type": ["string", "null"]},
    "seat": {"enum": ["in", "out"]},
    "names": {"type": "array", "items": TEXT},
    "price": {"type": ["integer", "string"]},
    "kinds": {"type": "array", "items": {"enum": ["x", 1]}},
}
SCHEMA = {"type": "object", "properties": FIELDS, "required": ["people", "date"], "title": "Booking"}
TASK = Extract(name="bookings", json_schema=SCHEMA, normalise={"date": "date"})


def test_it_is_a_task_whose_answers_are_written_under_its_schema() -> None:
    task: Task = TASK
    assert (task.closed, task.max_answer_tokens, task.pass_score) == ((), 192, 1.0)
    assert task.answer_schema() == closed_schema(SCHEMA)
    assert "title" not in TASK.json_schema
    assert TASK.json_schema["additionalProperties"] is False


def test_a_general_model_is_told_the_fields_and_shown_solved_rows() -> None:
    told = TASK.instructions([Shot("four of us", '{"people": "4", "date": null}')])
    assert told[0].content.splitlines() == [
        "Read the user's message and give its fields.",
        "Answer with one JSON object of these fields, and nothing else:",
        "- people: text, always there (how many come)",
        "- date: text, or null, always there",
        '- seat: one of "in", "out"',
        "- names: list of text",
        "- price: whole number or text",
        '- kinds: list, each one of "x", 1',
        "Leave out a field that the message says nothing about.",
        "A field that must be there is null if the message says nothing about it.",
    ]
    assert told[1:] == (
        Message(role="user", content="four of us"),
        Message(role="assistant", content='{"people": "4", "date": null}'),
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"slots": {"type": "object", "properties": {"artist": TEXT}}},
        {"items": {"type": "array", "items": {"type": "object", "properties": {"price": TEXT}}}},
        {"any": {"type": "object", "additionalProperties": TEXT}},
        {"one": {"anyOf": [TEXT, {"type": "array", "items": TEXT}]}},
        {"a": TEXT, "any": {"anyOf": [TEXT, {"type": "object", "additionalProperties": TEXT}]}},
    ],
)
def test_a_nested_answer_is_told_by_its_schema(fields: dict[str, Any]) -> None:
    task = Extract(name="n", about="Read it.", json_schema={"type": "object", "properties": fields})
    lines = task.instructions([])[0].content.splitlines()
    assert lines[0] == "Read it."
    assert json.loads(lines[2]) == task.json_schema


def test_an_answer_is_found_checked_and_put_in_canonical_form() -> None:
    assert TASK.parse('Here: ```{"date":null,"people":"4"}```') == '{"people": "4", "date": null}'
    assert TASK.parse('{"people": "4"}') is None


def test_a_row_is_right_if_every_field_is() -> None:
    gold = '{"people": "4", "date": "2024-05-03"}'
    assert TASK.score([gold], '{"people": "4", "date": "May 3, 2024"}') == 1.0
    assert TASK.score([gold], '{"people": "5", "date": "May 3, 2024"}') == 0.5
    assert TASK.score([gold], None) == 0.0
    assert TASK.score([gold, '{"people": "5", "date": null}'], '{"people": "5", "date": null}') == 1.0


def test_a_normaliser_of_an_unknown_field_is_refused_with_the_nearest() -> None:
    values = {"name": "b", "json_schema": SCHEMA, "normalise": {"dates": "date", "where": "case"}}
    with pytest.raises(ConfigError, match='"dates" — did you mean "date"\\?, "where"'):
        parse_record(Extract, values, where="task b")


def test_an_unusable_schema_is_refused_with_place_and_rule() -> None:
    with pytest.raises(ConfigError, match=r"properties\.a: says nothing about the value"):
        Extract(name="b", json_schema={"type": "object", "properties": {"a": {}}})
