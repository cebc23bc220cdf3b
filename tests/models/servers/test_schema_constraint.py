"""Schemas are refused before an engine drops them, and answers are held to them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from smallfirst.errors import ConfigError
from smallfirst.models.servers.schema_constraint import Constraint

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
    assert Constraint.of(TRIP).is_kept_by(text) is kept


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
        Constraint.of(schema)


def test_nasty_pattern_takes_no_time() -> None:
    """Python's own regular expressions would take 2**40 steps."""
    constraint = Constraint.of({"type": "string", "pattern": "^(a+)+$"})
    began_s = time.monotonic()
    assert not constraint.is_kept_by(json.dumps("a" * 40 + "b"))
    assert constraint.is_kept_by(json.dumps("a" * 40))
    assert time.monotonic() - began_s < 5


def test_answer_nested_beyond_reason_is_none() -> None:
    node = {"type": "object", "properties": {"a": {"$ref": "#/$defs/node"}}}
    constraint = Constraint.of({"$ref": "#/$defs/node", "$defs": {"node": node}})
    assert constraint.is_kept_by('{"a": {"a": {}}}')
    assert not constraint.is_kept_by('{"a": ' * 5000 + "{}" + "}" * 5000)


def test_engine_is_told_the_schema_in_canonical_spacing() -> None:
    assert Constraint.of({"type": "boolean"}).grammar == (
        '%llguidance {}\nstart: %json {"type": "boolean", "x-guidance": '
        '{"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}}'
    )
