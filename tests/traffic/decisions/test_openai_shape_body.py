"""Requests that OpenAI's reference does not allow are refused at their place; all forms that it allows are read.

Options and the order of calls are the judging model's business."""

from __future__ import annotations

import pydantic
import pytest

from smallfirst.traffic.decisions.openai_shape import Body

PREDICATE = {"type": "predicate", "instructions": "It is urgent."}


def choice(*values):
    return {"type": "choice", "instructions": "Which?", "choices": [{"value": value} for value in values]}


def score(n):
    return {"type": "score", "instructions": "How?", "levels": [{"label": str(i)} for i in range(n)]}


def body(**changed):
    return {"model": "gpt-6-luna", "input": "My card is lost", "questions": [PREDICATE], **changed}


def nested(levels):
    value: dict = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return [{"role": "user", "content": [{"type": "input_json", "data": value}]}]


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"}
OUTPUT = {"type": "function_call_output", "call_id": "1", "output": "12 EUR"}
CALL = {"type": "function_call", "call_id": "1", "name": "price", "arguments": "{}"}


@pytest.mark.parametrize(
    "given",
    [
        body(questions=[PREDICATE] * 400, prompt_cache_key="k", prompt_cache_options={"ttl": "30m"}),
        body(questions=[choice(*map(str, range(255))), choice("true", True, False), score(10)]),
        body(questions=[{**PREDICATE, "instructions": [{"type": "input_text", "text": "a"}, IMAGE], "name": "urgent"}]),
        body(input=nested(32), safety_identifier="x" * 128),
        body(input=[{"role": "system", "content": "s"}, {"role": "assistant", "content": "a", "phase": None}]),
        body(input=[CALL, OUTPUT, {"type": "message", "role": "user", "content": [IMAGE] * 128}]),
        body(input=[{**CALL, "type": "custom_tool_call", "arguments": None, "input": "x"}]),
    ],
)
def test_what_the_reference_allows_is_read(given):
    Body.model_validate(given)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        (body(model=""), "model"),
        (body(input=[]), "input"),
        (body(input=3), "input"),
        (body(questions=[]), "questions"),
        (body(questions=[PREDICATE] * 401), "questions"),
        (body(questions=[{**PREDICATE, "name": "a"}] * 2), "questions"),
        (body(questions=[{**PREDICATE, "type": "noul"}]), "questions"),
        (body(questions=[{**PREDICATE, "criteria": {}}]), "criteria"),
        (body(questions=[{"type": "predicate"}]), "instructions"),
        (body(questions=[choice("a")]), "choices"),
        (body(questions=[choice("a", "a")]), "choices"),
        (body(questions=[choice(*map(str, range(256)))]), "choices"),
        (body(questions=[choice("a", 1)]), "value"),
        (body(questions=[score(1)]), "levels"),
        (body(questions=[score(11)]), "levels"),
        (body(temperature=0), "temperature"),
        (body(input=nested(33)), "data"),
        (
            body(input=[{"role": "user", "content": [{"type": "input_json", "data": [{"a": [1] * 10_000}]}]}]),
            "data",
        ),
        (
            body(input=[{"role": "user", "content": [{"type": "input_json", "data": {"a": "ä" * 131_100}}]}]),
            "data",
        ),
        (body(input=[{"role": "tool", "content": "x"}]), "input"),
        (body(input=[{"role": "user", "content": [{"type": "input_video", "text": "x"}]}]), "type"),
    ],
)
def test_what_it_does_not_allow_is_refused_at_its_place(given, place):
    with pytest.raises(pydantic.ValidationError) as refused:
        Body.model_validate(given)
    found = [error["loc"] for error in refused.value.errors()]
    assert all(place in loc for loc in found), found
    assert len(found) < 3, "one broken rule, one error"
