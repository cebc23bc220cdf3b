"""A schema out of solved rows: it allows what was seen, and every row follows it."""

from __future__ import annotations

import json
from typing import Any

import hypothesis
import jsonschema
import pytest
from hypothesis import strategies as st

from smallfirst.base.errors import ConfigError
from smallfirst.tasks.json.schema_inference import infer_schema


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
        ((None,), {"type": "null"}),
        (("a", None), {"type": ["string", "null"]}),
        (("a", 1.0, None), {"type": ["string", "number", "null"]}),
        ((["a"], []), {"type": "array", "items": {"type": "string"}}),
        (([], []), {"type": "array", "items": {"type": "string"}}),
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


def test_a_closed_list_stands_in_order_of_frequency_and_may_be_null() -> None:
    assert guessed(*["no"] * 20, *["yes"] * 40, None) == {"enum": ["yes", "no", None]}


def test_rows_that_are_no_objects_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        infer_schema([{"a": 1}, ["b"], "c"])
    said = str(caught.value)
    assert "row 2: \"['b']\" is no object" in said
    assert "row 3: 'c' is no object" in said
    assert "row 1" not in said


@pytest.mark.parametrize("rows", [[], [{}, {}]])
def test_nothing_can_be_guessed_from_nothing(rows: list[Any]) -> None:
    with pytest.raises(ConfigError, match=r"none of \d rows has a field"):
        infer_schema(rows)


def test_an_answer_nested_without_end_is_refused() -> None:
    deep: Any = "x"
    for _ in range(200):
        deep = [deep]
    with pytest.raises(ConfigError, match="nested more than 64 deep"):
        guessed(deep)


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
