"""What a schema may say, its fields, the closed form in which it is kept, and one out of solved rows."""

import datetime
import json
import re
from typing import Any

import hypothesis
import jsonschema
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
    infer_schema,
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
        (True, "root", "must be an object, not bool"),
        ({}, "root", "the root must be an object"),
        ({"type": ["object", "null"], "properties": {"a": TEXT}}, "root", "the root must be an object"),
        ({"$ref": "#/$defs/P", "$defs": {"P": one(TEXT)}}, "root", "the root must be an object"),
        ({"type": "object"}, "root", "must name its fields"),
        (an_object({True: TEXT}), "root", "a name is no text"),  # type: ignore[dict-item]
        (one({"const": datetime.date(2024, 5, 3)}), "root", "put dates in quotes"),
        (CYCLE, "root", "cannot be written as JSON"),
        (one({"const": "\ud800"}), "root", "cannot be written as JSON"),
        (one({**TEXT, "description": "x" * MAX_BYTES}), "root", "at most 65,536 are allowed"),
        (nested(17), "a.properties.a", "more than 16 fields and lists inside one another"),
        (doubling(15), "root", "more than 1,500 places for values"),
        (one({"type": "text"}), "properties.a.type", "'text' is not valid"),
        (one(TEXT, required="a"), "required", "is not of type 'array'"),
        (one(True), "properties.a", "no schema of a value"),
        (one({}), "properties.a", "says nothing about the value"),
        (one({"type": "array"}), "properties.a", "a list must say what it holds"),
        (one({"type": "object"}), "properties.a", "must name its fields"),
        (one({**TEXT, "maxLenght": 3}), "properties.a", 'did you mean "maxLength"?'),
        (one({"type": "object", "patternProperties": {"^a": TEXT}}), "properties.a", 'keyword "patternProperties"'),
        (one({"type": "array", "items": TEXT, "uniqueItems": True}), "properties.a", 'keyword "uniqueItems"'),
        (one({"$ref": "https://example.com/s.json"}), "properties.a", "nothing is fetched"),
        (one({"$ref": "file:///etc/passwd"}), "properties.a", "nothing is fetched"),
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
        (one({"anyOf": [TEXT, {}]}), "properties.a.anyOf.1", "says nothing about the value"),
        (one({"enum": []}), "properties.a", "enum is empty"),
        (one({"enum": [["x"]]}), "properties.a", "is no text, number, boolean or null"),
        (one({"type": "string", "enum": ["x"], "minLength": 3}), "properties.a", "must stand alone"),
        (one({"type": "string", "pattern": "^(?=a)"}), "properties.a", "look-around"),
        (one({"type": "string", "pattern": r"^(a)\1$"}), "properties.a", "backreferences are not supported"),
        (one({"type": "string", "pattern": "("}), "properties.a", "unclosed group"),
        (one({"type": "string", "pattern": "x" * 201}), "properties.a", "pattern of 201 characters"),
        (one({"type": "string", "format": "regex"}), "properties.a", "Unknown format: regex"),
        (one(TEXT, required=["b", "a"]), "root", 'required field "b" is not under properties'),
        (one(TEXT, additionalProperties=True), "root", "additionalProperties must be false"),
    ],
)
def test_others_are_refused_naming_place_and_rule(schema: Any, place: str, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_schema(schema)
    said = str(caught.value)
    assert rule in said
    assert any(rule in line and f"{place}: " in line for line in said.splitlines())
    assert len(said) < 6_000


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


def guessed(*values: Any) -> Any:
    """Schema of the field `f` that held `values`."""
    return infer_schema([{"f": value} for value in values])["properties"]["f"]


def test_the_schema_of_flat_rows_is_closed_and_requires_what_no_row_lacks() -> None:
    assert infer_schema([{"date": "May", "n": 1}, {"n": 2, "who": "Ada"}]) == {
        "type": "object",
        "properties": {"date": {"type": "string"}, "n": {"type": "integer"}, "who": {"type": "string"}},
        "required": ["n"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("values", "schema"),
    [
        ((1, 2), {"type": "integer"}),
        ((1, 2.5), {"type": "number"}),
        ((True, False), {"type": "boolean"}),
        ((True, 1), {"type": ["integer", "boolean"]}),
        (("a", 1.0, None), {"type": ["string", "number", "null"]}),
        ((["a"], []), {"type": "array", "items": {"type": "string"}}),
        (([[1]], [[2.5, None]]), {"type": "array", "items": {"type": "array", "items": {"type": ["number", "null"]}}}),
        (("a", ["b", "c"]), {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
        ((None, [1]), {"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "integer"}}]}),
    ],
)
def test_a_place_allows_the_types_it_held(values: tuple[Any, ...], schema: dict[str, Any]) -> None:
    assert guessed(*values) == schema


def test_objects_inside_objects_and_lists_are_written_out() -> None:
    rows = [{"items": [{"name": "tea", "price": 2}, {"name": "cake"}]}, {"items": [], "to": {"city": "Graz"}}]
    named = infer_schema(rows)["properties"]
    assert named["items"]["items"]["properties"] == {"name": {"type": "string"}, "price": {"type": "integer"}}
    assert named["items"]["items"]["required"] == ["name"]
    assert named["to"] == {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("texts", "is_closed_list"),
    [
        (["yes"] * 45 + ["no"] * 5, True),
        (["yes"] * 44 + ["no"] * 5, False),  # 49 values
        (["yes"] * 46 + ["no"] * 4, False),  # one value seen 4 times
        ([str(n) for n in range(12)] * 5, True),
        ([str(n) for n in range(13)] * 5, False),  # 13 values
        (["x" * 61] * 50, False),
    ],
)
def test_few_repeated_texts_are_a_closed_list(texts: list[str], is_closed_list: bool) -> None:
    assert ("enum" in guessed(*texts)) is is_closed_list


def test_a_row_that_is_no_object_is_named() -> None:
    with pytest.raises(ConfigError, match="row 2 is \"\\['b'\\]\""):
        infer_schema([{"a": 1}, ["b"], "c"])


@pytest.mark.parametrize("rows", [[], [{}, {}]])
def test_nothing_can_be_guessed_from_nothing(rows: list[Any]) -> None:
    with pytest.raises(ConfigError, match=r"none of \d rows has a field"):
        infer_schema(rows)


PLAIN = (
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.text("ab")
)
ANY = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("kl"), inner, min_size=1),
    max_leaves=6,
)


@hypothesis.given(st.lists(st.dictionaries(st.sampled_from("xyz"), ANY, min_size=1), min_size=1, max_size=6))
@hypothesis.settings(deadline=None, max_examples=40)
def test_every_row_follows_the_schema_guessed_from_it(rows: list[dict[str, Any]]) -> None:
    schema = infer_schema(rows)
    json.dumps(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for row in rows:
        assert validator.is_valid(row)
