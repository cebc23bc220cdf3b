"""Reading a JSON answer out of what a model wrote, whatever that is."""

from __future__ import annotations

import json
import time
from typing import Any

import hypothesis
import jsonschema
import pytest
from hypothesis import strategies as st

from smallfirst.tasks.json.answers import MAX_CHARACTERS, AnswerParser, answer_parser
from smallfirst.tasks.json.schema import closed_schema


def an_object(fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, **more}


def read(schema: dict[str, Any], text: str) -> str | None:
    return AnswerParser(closed_schema(schema)).read(text)


TEXT = {"type": "string"}
FLAT = an_object({"who": TEXT, "n": {"type": "integer"}, "x": {"type": ["number", "null"]}})


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"n":1,"who":"Ada"}', '{"who": "Ada", "n": 1}'),
        ('```json\n{"who": "Ada"}\n```', '{"who": "Ada"}'),
        ('Sure! {"who": "Ada"} Is there more?', '{"who": "Ada"}'),
        ('The set {a, b} gives {"n": 2}', '{"n": 2}'),
        ('{"thought": "hm"} {"n": 2}', '{"n": 2}'),
        ('{"n": 1} {"n": 2}', '{"n": 1}'),
        ('{"who": "a\nb"}', '{"who": "a\\nb"}'),
        ('{"who": "\\u00e9 \\ud83d\\ude00 \\/"}', '{"who": "é 😀 /"}'),
        ('{"n": 2.0, "x": 2.0}', '{"n": 2, "x": 2.0}'),
        ('{"x": 1E3}', '{"x": 1000.0}'),
        ('{"x": null}', '{"x": null}'),
        ("{}", "{}"),
    ],
)
def test_the_first_object_that_fits_is_the_answer(text: str, answer: str) -> None:
    assert read(FLAT, text) == answer
    assert read(FLAT, answer) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no idea",
        "null",
        '["who"]',
        '{"whom": "Ada"}',
        '{"who": 1}',
        '{"n": 1.5}',
        '{"n": true}',
        '{"n": "1"}',
        '{"n": 1, "n": 2}',  # says two things
        '{"x": NaN}',
        '{"x": Infinity}',
        '{"x": -Infinity}',
        '{"x": 1e999}',
        '{"who": "\\ud800"}',  # half a character
        '{"n": ' + "9" * 5_000 + "}",
        '{"who": "Ada"',
        '{"answer": {"who": "Ada"}}',
        '{"n": {}',  # cut off: what is inside is not the answer
        '{"who": "{}',
        '{"who": "\\x {}"}',
        "{'who': 'Ada'}",
    ],
)
def test_what_does_not_fit_is_no_answer(text: str) -> None:
    assert read(FLAT, text) is None


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 40_000,
        '{"a":' * 30_000 + "1" + "}" * 30_000,
        '{"kids":[' * 33 + "]}" * 33,
        "{" * MAX_CHARACTERS,
        '{"' * 100_000,
        '{"a":1,' * 28_000,
        '{"a" ' * 40_000,
        "{}" * (MAX_CHARACTERS // 2) + " ",
    ],
)
def test_hostile_texts_are_no_answer_and_cost_little(text: str) -> None:
    tree = an_object({"kids": {"type": "array", "items": {"$ref": "#"}}, "b": TEXT}, required=["kids"])
    start = time.process_time()
    assert read(tree, text) is None
    assert time.process_time() - start < 2.0


def test_a_recursive_answer_may_be_sixteen_levels_deep() -> None:
    tree = an_object({"kids": {"type": "array", "items": {"$ref": "#"}}})
    text = '{"kids": [' * 15 + "{}" + "]}" * 15
    assert read(tree, text) == text
    assert read(tree, '{"kids": [' * 16 + "{}" + "]}" * 16) is None


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


def test_nested_lists_and_unicode_names_are_kept() -> None:
    rows = {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}
    schema = an_object({'q"k.é': {"enum": ["ü", None]}, "rows": rows})
    assert read(schema, '{"rows": [[1.0], []], "q\\"k.é": null}') == '{"q\\"k.é": null, "rows": [[1], []]}'


@pytest.mark.parametrize(
    ("node", "good", "bad"),
    [
        ({"type": "string", "format": "date"}, "2024-02-29", "2023-02-29"),
        ({"type": "string", "format": "uuid"}, "123e4567-e89b-12d3-a456-426614174000", "123"),
        ({"type": "string", "pattern": "^a*$"}, "a" * 256, "a" * 257),  # longer than patterns are tried on
        ({"type": "string", "maxLength": 2}, "é😀", "abc"),
        ({"enum": [1, None]}, 1, True),
        ({"type": "array", "items": TEXT, "maxItems": 1}, ["a"], ["a", "b"]),
    ],
)
def test_limits_are_kept(node: dict[str, Any], good: Any, bad: Any) -> None:
    schema = an_object({"a": node})
    assert read(schema, json.dumps({"a": good})) == json.dumps({"a": good}, ensure_ascii=False)
    assert read(schema, json.dumps({"a": bad})) is None


def test_one_reader_is_made_for_a_schema() -> None:
    assert answer_parser(json.dumps(FLAT)) is answer_parser(json.dumps(FLAT))


@hypothesis.given(st.text(st.sampled_from('{}[]":,\\ \nnawho1.0e-'), max_size=60) | st.text(max_size=40))
@hypothesis.settings(deadline=None, max_examples=300)
def test_any_text_gives_a_valid_canonical_answer_or_none(text: str) -> None:
    schema = closed_schema(FLAT)
    for written in (text, '{"who": "' + text + '"}'):
        if (answer := read(FLAT, written)) is not None:
            jsonschema.validate(json.loads(answer), schema)
            assert read(FLAT, answer) == answer
