"""An answer is checked against any schema in a bounded number of steps, with the verdict of jsonschema."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import hypothesis
import jsonschema
import pytest
from hypothesis import strategies as st

from smallfirst.tasks.json.schema_limits import check_schema
from smallfirst.tasks.json.validation import MAX_STEPS, AnswerCheck, TooManySteps, unsupported_part


def an_object(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}


def steps(schema: dict[str, Any], value: Any) -> int:
    check, spent = AnswerCheck(schema), 0
    spend = check.spend

    def count(n: int) -> None:
        nonlocal spent
        spent += n
        spend(n)

    check.spend = count  # type: ignore[method-assign]
    check.is_valid(value, schema)
    return spent


def test_a_recursive_choice_costs_the_same_for_each_level() -> None:
    """Twice as much for each level otherwise: the options agree until the end."""
    options = [an_object(a={"$ref": "#/$defs/node"}, b={"const": n}) for n in (1, 2)]
    schema = {
        **an_object(x={"$ref": "#/$defs/node"}),
        "$defs": {"node": {"anyOf": [*options, an_object(b={"const": 9})]}},
    }
    check_schema(schema)

    def nested(depth: int) -> dict[str, Any]:
        return {"a": nested(depth - 1), "b": 2} if depth else {"b": 9}

    assert steps(schema, {"x": nested(20)}) < 2.5 * steps(schema, {"x": nested(10)})


@pytest.mark.parametrize(
    ("node", "item", "n"),
    [
        ({"anyOf": [an_object(**{"x": {}, f"f{n}": {"const": 1}}) for n in range(300)]}, {"x": 1, "f299": 1}, 2_000),
        ({"enum": [f"label {n}" for n in range(2_000)]}, "label 1999", 100_000),
        ({"type": "string", "pattern": "^(?:a?b?c?){80}$"}, "abc" * 80, 700),
        ({"anyOf": [{"$ref": f"#/$defs/d{n}"} for n in range(8)]}, {}, 60_000),
    ],
)
def test_the_steps_of_wide_schemas_are_bounded(node: dict[str, Any], item: Any, n: int) -> None:
    schema = {"type": "array", "items": node, "$defs": {f"d{n}": an_object(x={"type": "null"}) for n in range(8)}}
    with contextlib.suppress(TooManySteps):
        assert steps(schema, [dict(item) if isinstance(item, dict) else item for _ in range(n)]) <= MAX_STEPS


_SCALARS = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "ab", "2024-02-29", 0.5, 2.0, 1e300])
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
_KINDS = ["string", "integer", "number", "boolean", "null"]
_LEAVES = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(_KINDS) | st.lists(st.sampled_from(_KINDS), min_size=1, unique=True)}
    ),
    st.fixed_dictionaries({"enum": st.lists(_SCALARS, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"const": _SCALARS}),
    st.fixed_dictionaries(
        {"type": st.just("number")},
        optional={
            "minimum": st.just(-1),
            "exclusiveMaximum": st.just(2),
            "maximum": st.just(2),
            "multipleOf": st.just(0.5),
        },
    ),
    st.fixed_dictionaries(
        {"type": st.just("string")},
        optional={
            "minLength": st.just(1),
            "maxLength": st.just(1),
            "pattern": st.just("^a"),
            "format": st.just("date"),
        },
    ),
    st.just({"$ref": "#/$defs/d"}),
)


def _grown(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        *(st.fixed_dictionaries({key: st.lists(inner, min_size=1, max_size=2)}) for key in ("anyOf", "oneOf", "allOf")),
        st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner}, optional={"minItems": st.just(1), "maxItems": st.just(2)}
        ),
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=2)},
            optional={"required": st.just(["a"]), "additionalProperties": st.booleans() | inner},
        ),
    )


_SCHEMAS = st.recursive(_LEAVES, _grown, max_leaves=6)


@hypothesis.given(_SCHEMAS, _SCHEMAS, _VALUES)
@hypothesis.settings(deadline=None, max_examples=400)
def test_the_verdict_is_that_of_jsonschema(node: dict[str, Any], definition: dict[str, Any], value: Any) -> None:
    hypothesis.assume("$ref" not in json.dumps(definition))
    schema = {**node, "$defs": {"d": definition}}
    assert not unsupported_part(schema, schema)
    formats = jsonschema.FormatChecker(["date"])
    expected = jsonschema.Draft202012Validator(schema, format_checker=formats).is_valid(value)
    assert AnswerCheck(schema).is_valid(value, schema) == expected


def test_decimal_multiples_are_exact() -> None:
    node = {"type": "number", "multipleOf": 0.1}
    assert AnswerCheck(node).is_valid(0.3, node)
    assert not AnswerCheck(node).is_valid(0.25, node)
    assert AnswerCheck(node).is_valid(10**4000, node)


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ({"items": {"patternProperties": {}}}, "patternProperties"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, "#/properties/a"),
        ({"anyOf": [True]}, "true"),
        ({"enum": [[1]]}, "[[1]]"),
    ],
)
def test_a_part_that_is_not_checked_is_named(schema: dict[str, Any], part: str) -> None:
    assert part in unsupported_part(schema, schema)
