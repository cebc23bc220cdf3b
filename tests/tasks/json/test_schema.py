"""What a schema may say, its fields, and the closed form in which it is kept."""

from __future__ import annotations

import datetime
import re
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from smallfirst.base.errors import ConfigError
from smallfirst.tasks.json.schema import (
    KEYWORDS,
    MAX_BYTES,
    MAX_MATCHED_CHARACTERS,
    FieldSpec,
    alternatives,
    check_schema,
    closed_schema,
    keeps_text,
    list_fields,
)


def an_object(fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, **more}


def one(node: Any, **more: Any) -> dict[str, Any]:
    """Schema with the one field `a`."""
    return an_object({"a": node}, **more)


def nested(n: int) -> dict[str, Any]:
    """`n` objects inside one another."""
    node: dict[str, Any] = {"type": "string"}
    for _ in range(n):
        node = one(node)
    return node


def doubling(n: int) -> dict[str, Any]:
    """Small on paper, 2^n fields when references are written out."""
    defs: dict[str, Any] = {"d0": {"type": "string"}}
    for i in range(1, n + 1):
        ref = {"$ref": f"#/$defs/d{i - 1}"}
        defs[f"d{i}"] = {"anyOf": [ref, ref]}
    return one({"$ref": f"#/$defs/d{n}"}, **{"$defs": defs})


CYCLE: dict[str, Any] = {"type": "object"}
CYCLE["properties"] = {"a": CYCLE}
TEXT = {"type": "string"}


@pytest.mark.parametrize(
    "schema",
    [
        one(TEXT),
        one({"type": ["string", "null"]}),
        one({"enum": ["x", None, "ü\"q'", 1, 2.5, True]}),
        one({"type": "number", "enum": [1, 2.5]}),
        one({"const": 5}),
        an_object({"a.b": TEXT, 'q"k': TEXT, "ключ": {"type": "number"}, "": TEXT}),
        one({"type": "array", "items": {"type": "array", "items": {"type": "integer"}}, "minItems": 1}),
        one({"$ref": "#/$defs/P", "description": "d"}, **{"$defs": {"P": one(TEXT)}}),
        one({"$ref": "#/definitions/a~1b"}, definitions={"a/b": TEXT}),
        an_object({"name": TEXT, "kids": {"type": "array", "items": {"$ref": "#"}}}, required=["name", "kids"]),
        one({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, required=["a"]),
        one({"allOf": [{"$ref": "#/$defs/P"}], "default": "x"}, **{"$defs": {"P": TEXT}}),
        one({"oneOf": [TEXT, {"type": "null"}]}, title="T", **{"$schema": "x", "$id": "http://x/y"}),
        one({"type": "object", "additionalProperties": {"type": "integer"}}, required=["a"]),
        one({"type": "string", "pattern": "^[a-z]{2}$", "minLength": 2, "maxLength": 2}),
        one({"type": "string", "format": "date"}),
        one({"type": "integer", "minimum": 0, "exclusiveMaximum": 10, "multipleOf": 2}),
        nested(16),
        an_object({f"f{n}": TEXT for n in range(500)}),
        one({"enum": [f"value {n}" for n in range(2_000)]}),
        doubling(8),
    ],
)
def test_usable_schemas_pass_and_so_do_their_closed_forms(schema: dict[str, Any]) -> None:
    check_schema(schema)
    closed = closed_schema(schema)
    check_schema(closed)
    assert closed_schema(closed) == closed


@pytest.mark.parametrize(
    ("schema", "place", "rule"),
    [
        ([], "root", "must be an object, not list"),
        (True, "root", "must be an object, not bool"),
        ({}, "root", "the root must be an object"),
        ({"type": "array", "items": TEXT}, "root", "the root must be an object"),
        ({"type": ["object", "null"], "properties": {"a": TEXT}}, "root", "the root must be an object"),
        ({"$ref": "#/$defs/P", "$defs": {"P": one(TEXT)}}, "root", "the root must be an object"),
        ({"type": "object"}, "root", "must name its fields"),
        (an_object({True: TEXT}), "root", "a name is no text"),  # type: ignore[dict-item]
        (one({"const": datetime.date(2024, 5, 3)}), "root", "put dates in quotes"),
        (CYCLE, "root", "cannot be written as JSON"),
        (one({"const": float("nan")}), "root", "cannot be written as JSON"),
        (one({"const": "\ud800"}), "root", "cannot be written as JSON"),
        (one({**TEXT, "description": "x" * MAX_BYTES}), "root", "at most 65,536 are allowed"),
        (nested(17), "a.properties.a", "more than 16 fields and lists inside one another"),
        (doubling(15), "root", "more than 1,500 places for values"),
        (an_object({f"f{n}": TEXT for n in range(1_500)}), "root", "more than 1,500 places for values"),
        (one({"type": "text"}), "properties.a.type", "'text' is not valid"),
        (one({"type": "string", "maxLength": -1}), "properties.a.maxLength", "less than the minimum"),
        (one(TEXT, required="a"), "required", "is not of type 'array'"),
        (one(True), "properties.a", "no schema of a value"),
        (one({}), "properties.a", "says nothing about the value"),
        (one({"description": "?"}), "properties.a", "says nothing about the value"),
        (one({"type": "array"}), "properties.a", "a list must say what it holds"),
        (one({"type": "object"}), "properties.a", "must name its fields"),
        (one({**TEXT, "maxLenght": 3}), "properties.a", 'did you mean "maxLength"?'),
        (one({**TEXT, "nullable": True}), "properties.a", 'keyword "nullable"'),
        (one({"type": "object", "patternProperties": {"^a": TEXT}}), "properties.a", 'keyword "patternProperties"'),
        (one({"not": TEXT}), "properties.a", 'keyword "not"'),
        (one({"type": "array", "items": TEXT, "uniqueItems": True}), "properties.a", 'keyword "uniqueItems"'),
        (one({**TEXT, "$defs": {}}), "properties.a", 'keyword "$defs"'),
        (one({"$ref": "https://example.com/s.json"}), "properties.a", "nothing is fetched"),
        (one({"$ref": "file:///etc/passwd"}), "properties.a", "nothing is fetched"),
        (one({"$ref": "other.json#/$defs/P"}), "properties.a", "nothing is fetched"),
        (one({"$ref": "#/properties/a"}), "properties.a", "no definition has this name"),
        (one({"$ref": "$defs/P"}, **{"$defs": {"P": TEXT}}), "properties.a", "no definition has this name"),
        (one({"$ref": "#/$defs/Pe"}, **{"$defs": {"Pet": TEXT}}), "properties.a", 'did you mean "#/$defs/Pet"?'),
        (one({"$ref": "#/$defs/P", "type": "string"}, **{"$defs": {"P": TEXT}}), "properties.a", "must stand alone"),
        (one({"$ref": "#/$defs/P"}, **{"$defs": {"P": {"$ref": "#/$defs/P"}}}), "properties.a", "nothing but itself"),
        (
            one({"$ref": "#/$defs/P"}, **{"$defs": {"P": {"anyOf": [TEXT, {"$ref": "#/$defs/P"}]}}}),
            "properties.a.anyOf.1",
            "nothing but itself",
        ),
        (one({"allOf": [TEXT, {"maxLength": 3}]}), "properties.a", "write them as one schema"),
        (one({"anyOf": [TEXT], "type": "string"}), "properties.a", "must stand alone"),
        (one({"anyOf": [TEXT, {}]}), "properties.a.anyOf.1", "says nothing about the value"),
        (one({"enum": []}), "properties.a", "enum is empty"),
        (one({"enum": [["x"]]}), "properties.a", "is no text, number, boolean or null"),
        (one({"type": "string", "enum": ["x"], "minLength": 3}), "properties.a", "must stand alone"),
        (one({"type": "string", "pattern": "^(?=a)"}), "properties.a", "look-around"),
        (one({"type": "string", "pattern": r"^(a)\1$"}), "properties.a", "backreferences are not supported"),
        (one({"type": "string", "pattern": r"\bword\b"}), "properties.a", "lookarounds not supported"),
        (one({"type": "string", "pattern": "("}), "properties.a", "unclosed group"),
        (one({"type": "string", "pattern": "x" * 201}), "properties.a", "pattern of 201 characters"),
        (one({"type": "string", "format": "regex"}), "properties.a", "Unknown format: regex"),
        (one(TEXT, required=["b", "a"]), "root", 'required field "b" is not under properties'),
        (one(TEXT, additionalProperties=True), "root", "additionalProperties must be false"),
        (one(TEXT, additionalProperties={}), "additionalProperties", "says nothing about the value"),
    ],
)
def test_others_are_refused_naming_place_and_rule(schema: Any, place: str, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_schema(schema)
    said = str(caught.value)
    assert rule in said
    assert any(rule in line and f"{place}: " in line for line in said.splitlines())
    assert len(said) < 6_000


def test_of_very_many_problems_twenty_are_shown() -> None:
    with pytest.raises(ConfigError, match="more") as caught:
        check_schema(an_object({f"f{n}": {} for n in range(100)}))
    assert str(caught.value).count("says nothing") == 20


def test_the_closed_form_is_closed_says_types_and_keeps_only_descriptions() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Order",
        "properties": {
            "a": {"enum": ["x", None], "default": "x"},
            "b": {"oneOf": [{"$ref": "#/$defs/P"}, {"type": "null"}], "description": "who"},
            "c": {"allOf": [{"type": "string", "title": "C"}], "description": "why"},
            "d": {"type": "object", "additionalProperties": {"type": "integer", "examples": [1]}},
        },
        "$defs": {"P": {"properties": {"e": {"items": {"type": "string"}}}}},
    }
    check_schema(schema)
    assert closed_schema(schema) == {
        "type": "object",
        "properties": {
            "a": {"enum": ["x", None]},
            "b": {"anyOf": [{"$ref": "#/$defs/P"}, {"type": "null"}], "description": "who"},
            "c": {"type": "string", "description": "why"},
            "d": {"type": "object", "additionalProperties": {"type": "integer"}},
        },
        "additionalProperties": False,
        "$defs": {
            "P": {
                "type": "object",
                "properties": {"e": {"type": "array", "items": {"type": "string"}}},
                "additionalProperties": False,
            }
        },
    }


def test_a_field_may_bear_the_name_of_a_keyword() -> None:
    fields = {"properties": TEXT, "items": TEXT, "$ref": TEXT, "enum": TEXT, "title": TEXT}
    check_schema(an_object(fields))
    assert closed_schema(an_object(fields))["properties"] == fields
    assert [field.path for field in list_fields(an_object(fields))] == list(fields)


def test_fields_are_listed_in_schema_order_with_what_they_hold() -> None:
    item = an_object({"price": {"type": "number"}, "size": {"enum": ["s", "l", None]}}, required=["price"])
    schema = an_object(
        {
            "intent": {"enum": ["buy", "ask"], "description": "what for"},
            "slots": an_object({"artist": {"anyOf": [TEXT, {"type": "array", "items": TEXT}]}}),
            "items": {"type": "array", "items": item},
            "n": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "grid": {"type": "array", "items": {"type": "array", "items": {"type": "boolean"}}},
        },
        required=["intent", "n"],
    )
    assert list_fields(schema) == (
        FieldSpec("intent", "string", False, ("buy", "ask"), True, False, "what for", ("intent",)),
        FieldSpec("slots.artist", "string", False, (), False, True, "", ("slots", "artist", "[]")),
        FieldSpec("items[].price", "number", False, (), True, False, "", ("items", "[]", "price")),
        FieldSpec("items[].size", "string", True, ("s", "l"), False, False, "", ("items", "[]", "size")),
        FieldSpec("n", "integer", True, (), True, False, "", ("n",)),
        FieldSpec("grid[]", "boolean", False, (), False, True, "", ("grid", "[]", "[]")),
    )


def test_choices_of_one_place_are_one_field() -> None:
    schema = one({"anyOf": [{"enum": ["x"]}, {"enum": ["y", 1]}, {"type": "null"}]})
    assert list_fields(schema) == (FieldSpec("a", "string|integer", True, ("x", "y", 1), False, False, "", ("a",)),)
    assert list_fields(one({"anyOf": [{"enum": ["x"]}, TEXT]}))[0].enum == ()
    for options in (
        [{"type": "array", "items": TEXT}, {"type": "null"}],
        [{"type": "null"}, {"type": "array", "items": TEXT}],
    ):
        assert list_fields(one({"anyOf": options}))[0].way == ("a", "[]")


def test_a_recursive_schema_has_its_fields_once() -> None:
    tree = an_object({"name": TEXT, "kids": {"type": "array", "items": {"$ref": "#/$defs/T"}}})
    schema = one({"$ref": "#/$defs/T"}, **{"$defs": {"T": tree}})
    assert [field.path for field in list_fields(schema)] == ["a.name"]


KEYS = st.sampled_from([*sorted(KEYWORDS), "$defs", "title", "nullable", "a"])
SAID = st.sampled_from(
    ["string", "object", "array", "null", "#", "#/$defs/a", "a", "date", "^a*$", 0, 1, -1, 2.5, None, True, False]
)
NODES = st.recursive(
    SAID, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@hypothesis.given(st.dictionaries(KEYS, NODES, max_size=5), NODES, NODES)
@hypothesis.settings(deadline=None, max_examples=120)
def test_whatever_is_given_is_refused_in_words_or_can_be_used(more: dict[str, Any], field: Any, named: Any) -> None:
    for schema in (more, one(field, **{"$defs": {"a": named}})):
        try:
            check_schema(schema)
        except ConfigError:
            continue
        closed = closed_schema(schema)
        check_schema(closed)
        list_fields(closed)
        alternatives(closed, closed["properties"].get("a", closed))


@pytest.mark.parametrize(
    ("pattern", "text", "kept"),
    [
        ("^[A-Z]{2}[0-9]{4}$", "AB1234", True),
        ("^[A-Z]{2}[0-9]{4}$", "xAB1234", False),
        ("abc", "xabcx", True),
        ("", "x", True),
        (r"^(?:EUR|USD) \d+(?:\.\d{2})?$", "EUR 12.50", True),
        (r"^(?:EUR|USD) \d+(?:\.\d{2})?$", "EUR 12.5", False),
        ("^é😀$", "é😀", True),
        ('^"\\n"$', '"\n"', True),
        ("^a*$", "a" * MAX_MATCHED_CHARACTERS, True),
        ("^a*$", "a" * (MAX_MATCHED_CHARACTERS + 1), False),  # longer than texts that are matched
        ("^(?:a?){26}(?:aa){100}$", "a" * 226, True),  # for ever, if tried one by one
        ("^(?:a?){26}(?:aa){100}$", "a" * 227, False),
        ("^(a+)+$", "a" * 40 + "b", False),
        ("(?:[ab]*a[ab]{40}){1,100}x", "ab" * 500, False),  # more states than the limits allow
        ("(?:(?:(?:a|b|ab){0,99}){0,99}){0,99}c", "ab" * 500, False),
    ],
)
def test_patterns_are_matched_within_limits(pattern: str, text: str, kept: bool) -> None:
    assert keeps_text(text, {"type": "string", "pattern": pattern}) is kept


_ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\.", "é"])


def _longer(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeats = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,}", "*?", "+?"])
    return (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})")
        | st.tuples(inner, repeats).map(lambda two: f"({two[0]}){two[1]}")
    )


@hypothesis.given(st.recursive(_ATOMS, _longer, max_leaves=6), st.text("ab1.é", max_size=8), st.booleans())
@hypothesis.settings(deadline=None, max_examples=200)
def test_patterns_mean_what_they_mean_in_python(pattern: str, text: str, anchored: bool) -> None:
    ours = f"^(?:{pattern})$" if anchored else pattern
    assert keeps_text(text, {"type": "string", "pattern": ours}) == bool(re.search(ours, text))
