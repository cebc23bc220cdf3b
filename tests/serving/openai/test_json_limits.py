"""How much JSON may say, counted by hand: depth, names, values, lists; and schemas that would never end."""

from __future__ import annotations

from typing import Any

import pytest

from smallfirst.serving.openai.errors import ApiError
from smallfirst.serving.openai.json_limits import (
    MAX_DEPTH,
    MAX_ELEMENTS,
    check_json,
    check_schema,
    parse_json_object,
)


def nested(depth: int, inner: Any = 1) -> Any:
    for _ in range(depth):
        inner = [inner]
    return inner


def refused(value: Any) -> tuple[str, str | None]:
    with pytest.raises(ApiError) as caught:
        check_json(value)
    assert caught.value.status == 400
    said = caught.value.body["error"]
    return said["message"], said["param"]


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": nested(MAX_DEPTH - 1)},
        [0] * MAX_ELEMENTS,
        {"a": [0] * (MAX_ELEMENTS - 1)},
        {str(n): 0 for n in range(1024)},
        {"k" * 256: -(2**64) + 1},
        {"a": [2**64 - 1, 0.0, -1e308, None, True, "\x00"]},
    ],
)
def test_what_is_within_the_bounds_passes(value: Any) -> None:
    check_json(value)


@pytest.mark.parametrize(
    ("value", "message", "param"),
    [
        ({"a": nested(MAX_DEPTH)}, "a[0][0][0][0][0][0][0]: nested more than 64 deep.", "a[0][0][0][0][0][0][0]"),
        ([0] * (MAX_ELEMENTS + 1), "The body: more than 50,000 values in all.", None),
        ({"a": [[0] * 30_000, [0] * 30_000]}, "The body: more than 50,000 values in all.", None),
        ({"a": {str(n): 0 for n in range(1025)}}, "a: more than 1,024 names in one object.", "a"),
        ({"m": [{"k" * 257: 0}]}, "m[0]: a name of more than 256 characters.", "m[0]"),
        ({"a": [0, 2**64]}, "a[1]: an integer of more than 64 bits.", "a[1]"),
        ({"a": {"b": float("inf")}}, "a.b: a number that is too large.", "a.b"),
        ({"a": float("nan")}, "a: a number that is too large.", "a"),
    ],
)
def test_the_place_beyond_a_bound_is_named(value: Any, message: str, param: str | None) -> None:
    assert refused(value) == (message, param)


def test_bodies_nested_10_000_deep_are_refused_by_the_parser_already() -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        for body in (opening * 10_000 + "1" + closing * 10_000, opening * 200_000):
            with pytest.raises(ApiError, match="not JSON: recursion limit exceeded"):
                parse_json_object(f'{{"a": {body}}}'.encode())


def fields(**inside: Any) -> dict[str, Any]:
    return {"type": "object", "properties": inside, "required": list(inside)}


STRING = {"type": "string"}


def test_a_usual_schema_passes_with_local_references_and_a_short_pattern() -> None:
    tree = {**fields(value=STRING), "properties": {"value": STRING, "next": {"$ref": "#/$defs/tree"}}}
    check_schema(
        {
            **fields(tree={"$ref": "#/$defs/tree"}, code={**STRING, "pattern": "^[A-Z]{3}[0-9]+$"}),
            "$defs": {"tree": tree},
        }
    )


def doubling(n: int) -> dict[str, Any]:
    """Each definition names the next one twice: 2**n places when written out."""
    defs = {f"d{i}": fields(a={"$ref": f"#/$defs/d{i + 1}"}, b={"$ref": f"#/$defs/d{i + 1}"}) for i in range(n)}
    return {**fields(x={"$ref": "#/$defs/d0"}), "$defs": {**defs, f"d{n}": STRING}}


@pytest.mark.parametrize(
    ("schema", "rule"),
    [
        (fields(a={"$ref": "http://169.254.169.254/x"}), "nothing is fetched"),
        (fields(a={"$ref": "file:///etc/passwd"}), "nothing is fetched"),
        (fields(a={"$ref": "#/$defs/none"}), "no definition has this name"),
        ({**fields(a={"$ref": "#/$defs/a"}), "$defs": {"a": {"$ref": "#/$defs/a"}}}, "says nothing but itself"),
        (doubling(14), "places for values"),
        (fields(a={**STRING, "pattern": "a" * 2_000}), "pattern of 2,000 characters"),
        (fields(a={**STRING, "pattern": "("}), "unclosed group"),
        (fields(a={"enum": [f"value {n}" for n in range(9_000)]}), "bytes as JSON; at most 32,768"),
        ({"allOf": [{} for _ in range(1_001)]}, "1,002 objects; at most 1,000"),
        ({"type": "string"}, "root must be an object"),
        (nested(70, {}), "nested more than 64 deep"),
    ],
)
def test_schemas_that_fetch_never_end_or_are_too_large_are_refused(schema: Any, rule: str) -> None:
    with pytest.raises(ApiError) as caught:
        check_schema(schema)
    assert rule in str(caught.value)
    assert caught.value.status == 400
    assert len(str(caught.value)) < 2_200


def test_a_refusal_names_where_the_schema_stands() -> None:
    with pytest.raises(ApiError) as caught:
        check_schema(fields(a={"type": "integre"}))
    assert caught.value.body["error"]["param"] == "response_format.json_schema.schema"
    assert caught.value.code == "invalid_schema"
    assert str(caught.value).startswith("response_format.json_schema.schema: properties.a.type: 'integre'")
