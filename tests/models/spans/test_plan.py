"""Answers assembled from values: in schema order, with what the schema demands, objects of a list told apart."""

from __future__ import annotations

import json
from typing import Any

from smallfirst.models.spans.plan import AnswerPlan, FieldPlan, Found, assemble, is_allowed, node_at
from smallfirst.tasks.json.schema import list_fields

ITEM = {"type": "object", "properties": {"name": {"type": "string"}, "price": {"type": "number"}}}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": ["string", "null"]},
        "when": {"$ref": "#/$defs/when"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}},
        "items": {"type": "array", "items": ITEM},
    },
    "required": ["city", "when", "tags", "items"],
    "$defs": {"when": {"type": "object", "properties": {"day": {"type": "string"}}}},
}
TEXT = "ham 3\ncheese 4\nbread"


def plan(**more: Any) -> AnswerPlan:
    fields = (FieldPlan(path=f.path, way=f.way, how="span", forms=("text",)) for f in list_fields(SCHEMA))
    return AnswerPlan(fields=tuple(fields), **more)


def test_what_was_not_found_is_what_the_schema_demands() -> None:
    assert assemble(plan(), SCHEMA, {}, "") == '{"city": null, "when": {}, "tags": [], "items": []}'


def test_values_are_written_in_schema_order_as_canonical_json() -> None:
    found = {"tags": [Found(3, "é"), Found(9, "b")], "when.day": [Found(0, "Monday")], "city": [Found(5, "Bern")]}
    assert assemble(plan(), SCHEMA, found, "") == (
        '{"city": "Bern", "when": {"day": "Monday"}, "tags": ["é", "b"], "items": []}'
    )


def test_an_object_of_a_list_ends_where_a_field_comes_again() -> None:
    found = {
        "items[].price": [Found(4, 3), Found(13, 4)],
        "items[].name": [Found(0, "ham"), Found(6, "cheese"), Found(15, "bread")],
    }
    assert json.loads(assemble(plan(), SCHEMA, found, TEXT))["items"] == [
        {"name": "ham", "price": 3},
        {"name": "cheese", "price": 4},
        {"name": "bread"},
    ]


def test_or_with_the_line_where_rows_say_so() -> None:
    found = {"items[].price": [Found(4, 3)], "items[].name": [Found(6, "cheese")]}
    held = [json.loads(assemble(plan(one_object_a_line=rule), SCHEMA, found, TEXT))["items"] for rule in (False, True)]
    assert held == [[{"name": "cheese", "price": 3}], [{"price": 3}, {"name": "cheese"}]]


def test_a_value_is_held_to_its_own_node() -> None:
    nodes = node_at(SCHEMA, ("tags", "[]"))
    assert [is_allowed(SCHEMA, nodes, value) for value in ("four", "fives", 4)] == [True, False, False]
