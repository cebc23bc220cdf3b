"""Schemas are compiled before they are sent, answers are checked, and a task's own schema wins over a request's."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import jsonschema
import pytest

from smallfirst.errors import ConfigError, RequestRefused
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.grammar import Grammar
from smallfirst.models.generation.sequence import GenerationRequest
from smallfirst.models.protocol import ResponseFormat
from smallfirst.models.response_format import CompiledSchema, ResponseGrammars

OWN = {
    "type": "object",
    "properties": {"item": {"type": "string"}},
    "required": ["item"],
    "additionalProperties": False,
}
OTHER = OWN | {"properties": {"other": {"type": "integer"}}, "required": ["other"]}
UNWRITABLE = {"type": "array", "uniqueItems": True, "items": {"type": "string"}}


def asked(schema: Any) -> ResponseFormat:
    return ResponseFormat(kind="json_schema", name="answer", json_schema=schema)


def form(tokenizer: Any, own: Any, wanted: ResponseFormat | None) -> Grammar | None:
    made = ResponseGrammars(own, tokenizer, name="orders")
    try:
        return asyncio.run(made.grammar_for(wanted))
    finally:
        made.close()


@pytest.mark.parametrize(
    "wanted",
    [
        None,
        ResponseFormat(kind="json_object"),
        asked(OWN),
        asked({k: OWN[k] for k in list(OWN)[:3]}),
    ],
)
def test_a_task_with_a_form_keeps_to_it(lively: tuple[Any, Any], wanted: ResponseFormat | None) -> None:
    made = ResponseGrammars(OWN, lively[1], name="orders")
    assert asyncio.run(made.grammar_for(wanted)) is asyncio.run(made.grammar_for(None))


def test_another_schema_is_refused_where_the_task_has_one(lively: tuple[Any, Any]) -> None:
    with pytest.raises(RequestRefused, match="the answers of orders follow the schema of its task"):
        form(lively[1], OWN, asked(OTHER))


def test_free_text_takes_the_form_that_is_asked_for(lively: tuple[Any, Any]) -> None:
    writer = Generator(*lively)
    assert form(writer.tokenizer, None, None) is None
    for wanted, schema in ((asked(OTHER), OTHER), (ResponseFormat(kind="json_object"), {"type": "object"})):
        text = writer.generate([GenerationRequest([5, 6, 7], 40, grammar=form(writer.tokenizer, None, wanted))])[0].text
        jsonschema.validate(json.loads(text), schema)


def test_a_schema_that_makes_no_grammar_names_the_rule(lively: tuple[Any, Any]) -> None:
    with pytest.raises(RequestRefused, match=r"response_format: no answer.*uniqueItems"):
        form(lively[1], None, asked(UNWRITABLE))


TRIP: dict[str, Any] = {
    "type": "object",
    "properties": {
        "town": {"type": "string", "pattern": "^[A-Z]"},
        "nights": {"type": "integer", "minimum": 1},
        "day": {"type": "string", "format": "date"},
    },
    "required": ["nights"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"nights": 2}', True),
        ('{"town": "Ulm", "nights": 2, "day": "2026-02-28"}', True),
        ('{"day": "2026-02-28", "nights": 2}', True),
        ('{"town": "ulm", "nights": 2}', False),
        ('{"nights": 2, "day": "2026-13-01"}', False),
        ('{"nights": 0}', False),
        ('{"nights": 2, "price": 1}', False),
        ('{"town": "Ulm"}', False),
        ('{"nights": 2', False),
        ('{"nights": 2} Have a good trip!', False),
        ('{"nights": NaN}', False),
        ("no", False),
    ],
)
def test_answers_are_held_to_the_schema(text: str, kept: bool) -> None:
    assert CompiledSchema.compile(TRIP).accepts(text) is kept


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "objct"}, "Invalid type"),
        ({"type": "string", "pattern": "(?=x)"}, "look-around"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "https://example.com/schema.json"}, "does not fetch"),
        ({"type": "object", "properties": {"a": {"patternProperties": {"^a": {}}}}}, '"patternProperties" is not'),
    ],
)
def test_schema_that_would_be_dropped_is_refused(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=f"no answer can be written under this schema: .*{why}"):
        CompiledSchema.compile(schema)


def test_nasty_pattern_takes_no_time() -> None:
    """Python's own regular expressions would take 2**40 steps, so this test would never end."""
    constraint = CompiledSchema.compile({"type": "string", "pattern": "^(a+)+$"})
    assert not constraint.accepts(json.dumps("a" * 40 + "b"))
    assert constraint.accepts(json.dumps("a" * 40))


def test_answer_nested_beyond_reason_is_none() -> None:
    node = {"type": "object", "properties": {"a": {"$ref": "#/$defs/node"}}}
    constraint = CompiledSchema.compile({"$ref": "#/$defs/node", "$defs": {"node": node}})
    assert constraint.accepts('{"a": {"a": {}}}')
    assert not constraint.accepts('{"a": ' * 5000 + "{}" + "}" * 5000)


def test_engine_is_told_the_schema_in_canonical_spacing() -> None:
    assert CompiledSchema.compile({"type": "boolean"}).grammar == (
        '%llguidance {}\nstart: %json {"type": "boolean", "x-guidance": '
        '{"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}}'
    )
