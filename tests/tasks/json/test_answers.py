"""Reading a JSON answer out of what a model wrote, whatever that is; the check has the verdict of jsonschema."""

import contextlib
import json
from typing import Any

import hypothesis
import jsonschema
import pytest
from hypothesis import strategies as st

from smallfirst.tasks.json.answers import MAX_CHARACTERS, MAX_STEPS, AnswerCheck, AnswerParser, TooManySteps
from smallfirst.tasks.json.schema import check_schema, closed_schema


def an_object(fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, **more}


def read(schema: dict[str, Any], text: str) -> str | None:
    return AnswerParser(closed_schema(schema)).read(text)


TEXT = {"type": "string"}
FLAT = an_object({"who": TEXT, "n": {"type": "integer"}, "x": {"type": ["number", "null"]}})


@pytest.mark.parametrize(("text", "answer"), [
    ('{"n":1,"who":"Ada"}', '{"who": "Ada", "n": 1}'), ('```json\n{"who": "Ada"}\n```', '{"who": "Ada"}'),
    ('Sure! {"who": "Ada"} Is there more?', '{"who": "Ada"}'), ('The set {a, b} gives {"n": 2}', '{"n": 2}'),
    ('{"thought": "hm"} {"n": 2}', '{"n": 2}'), ('{"n": 1} {"n": 2}', '{"n": 1}'),
    ('{"who": "a\nb"}', '{"who": "a\\nb"}'), ('{"who": "\\u00e9 \\ud83d\\ude00 \\/"}', '{"who": "é 😀 /"}'),
    ('{"n": 2.0, "x": 2.0}', '{"n": 2, "x": 2.0}'), ('{"x": 1E3}', '{"x": 1000.0}'), ("{}", "{}"),
])  # fmt: skip
def test_the_first_object_that_fits_is_the_answer(text: str, answer: str) -> None:
    assert read(FLAT, text) == answer
    assert read(FLAT, answer) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no idea",
        '{"whom": "Ada"}',
        '{"who": 1}',
        '{"n": 1.5}',
        '{"n": true}',
        '{"n": 1, "n": 2}',  # says two things
        '{"x": NaN}',
        '{"x": 1e999}',
        '{"who": "\\ud800"}',  # half a character
        '{"n": ' + "9" * 5_000 + "}",
        '{"who": "Ada"',
        '{"answer": {"who": "Ada"}}',
        '{"n": {}',  # cut off: what is inside is not the answer
        '{"who": "\\x {}"}',
        "{'who': 'Ada'}",
    ],
)
def test_what_does_not_fit_is_no_answer(text: str) -> None:
    assert read(FLAT, text) is None


@pytest.mark.parametrize("text", [
    "[" * 100_000, '{"a":' * 40_000, '{"a":' * 30_000 + "1" + "}" * 30_000, "{" * MAX_CHARACTERS, '{"' * 100_000,
    '{"a":1,' * 28_000, '{"a" ' * 40_000, "{}" * (MAX_CHARACTERS // 2) + " ",
])  # fmt: skip
def test_hostile_texts_are_no_answer(text: str) -> None:
    tree = an_object({"kids": {"type": "array", "items": {"$ref": "#"}}, "b": TEXT}, required=["kids"])
    assert read(tree, text) is None


def test_fields_stand_in_the_order_of_the_choice_that_was_taken() -> None:
    first = an_object({"kind": {"const": "a"}, "x": TEXT, "y": TEXT}, required=["kind"])
    second = an_object({"kind": {"const": "b"}, "y": TEXT, "x": TEXT}, required=["kind"])
    schema = an_object({"p": {"anyOf": [{"$ref": "#/$defs/A"}, second]}}, **{"$defs": {"A": first}})
    assert read(schema, '{"p": {"x": "1", "y": "2", "kind": "a"}}') == '{"p": {"kind": "a", "x": "1", "y": "2"}}'
    assert read(schema, '{"p": {"x": "1", "y": "2", "kind": "b"}}') == '{"p": {"kind": "b", "y": "2", "x": "1"}}'


def test_fields_without_a_name_in_the_schema_come_last_as_written() -> None:
    schema = an_object({"a": TEXT}, additionalProperties=an_object({"v": TEXT, "w": TEXT}))
    assert read(schema, '{"z": {"w": "1", "v": "2"}, "b": {}, "a": ""}') == (
        '{"a": "", "z": {"v": "2", "w": "1"}, "b": {}}'
    )


@hypothesis.given(st.text(st.sampled_from('{}[]":,\\ \nnawho1.0e-'), max_size=60) | st.text(max_size=40))
@hypothesis.settings(deadline=None, max_examples=100)
def test_any_text_gives_a_valid_canonical_answer_or_none(text: str) -> None:
    schema = closed_schema(FLAT)
    for written in (text, '{"who": "' + text + '"}'):
        if (answer := read(FLAT, written)) is not None:
            jsonschema.validate(json.loads(answer), schema)
            assert read(FLAT, answer) == answer


def whole(**fields: Any) -> dict[str, Any]:
    """A closed object that must have these fields."""
    return an_object(fields, required=[*fields], additionalProperties=False)


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
    options = [whole(a={"$ref": "#/$defs/node"}, b={"const": n}) for n in (1, 2)]
    schema = {**whole(x={"$ref": "#/$defs/node"}), "$defs": {"node": {"anyOf": [*options, whole(b={"const": 9})]}}}
    check_schema(schema)

    def nested(depth: int) -> dict[str, Any]:
        return {"a": nested(depth - 1), "b": 2} if depth else {"b": 9}

    assert steps(schema, {"x": nested(20)}) < 2.5 * steps(schema, {"x": nested(10)})


@pytest.mark.parametrize(
    ("node", "item", "n"),
    [
        ({"anyOf": [whole(**{"x": {}, f"f{n}": {"const": 1}}) for n in range(300)]}, {"x": 1, "f299": 1}, 2_000),
        ({"enum": [f"label {n}" for n in range(2_000)]}, "label 1999", 100_000),
        ({"type": "string", "pattern": "^(?:a?b?c?){80}$"}, "abc" * 80, 700),
        ({"anyOf": [{"$ref": f"#/$defs/d{n}"} for n in range(8)]}, {}, 60_000),
    ],
)
def test_the_steps_of_wide_schemas_are_bounded(node: dict[str, Any], item: Any, n: int) -> None:
    schema = {"type": "array", "items": node, "$defs": {f"d{n}": whole(x={"type": "null"}) for n in range(8)}}
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


def _just(**values: Any) -> dict[str, Any]:
    return {name: st.just(value) for name, value in values.items()}


_KINDS = ["string", "integer", "number", "boolean", "null"]
_LEAVES = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(_KINDS) | st.lists(st.sampled_from(_KINDS), min_size=1, unique=True)}
    ),
    st.fixed_dictionaries({"enum": st.lists(_SCALARS, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"const": _SCALARS}),
    st.fixed_dictionaries(
        _just(type="number"), optional=_just(minimum=-1, exclusiveMaximum=2, maximum=2, multipleOf=0.5)
    ),
    st.fixed_dictionaries(_just(type="string"), optional=_just(minLength=1, maxLength=1, pattern="^a", format="date")),
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
@hypothesis.settings(deadline=None, max_examples=200)
def test_the_verdict_is_that_of_jsonschema(node: dict[str, Any], definition: dict[str, Any], value: Any) -> None:
    hypothesis.assume("$ref" not in json.dumps(definition))
    schema = {**node, "$defs": {"d": definition}}
    formats = jsonschema.FormatChecker(["date"])
    expected = jsonschema.Draft202012Validator(schema, format_checker=formats).is_valid(value)
    assert AnswerCheck(schema).is_valid(value, schema) == expected


def test_decimal_multiples_are_exact() -> None:
    node = {"type": "number", "multipleOf": 0.1}
    assert AnswerCheck(node).is_valid(0.3, node)
    assert not AnswerCheck(node).is_valid(0.25, node)
    assert AnswerCheck(node).is_valid(10**4000, node)
