"""Paths, values and characters of fields."""

from __future__ import annotations

import json
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from smallfirst.tasks.json.paths import comparison_key, field_path, flatten, omission_spans, value_spans
from smallfirst.tasks.json.schema import list_fields


def shown(canonical: str) -> dict[str, list[str]]:
    """Texts that the spans cut out."""
    return {path: [canonical[start:end] for start, end in found] for path, found in value_spans(canonical).items()}


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        ({}, {}),
        ({"a": ""}, {"a": ['""']}),
        ({"a": None, "b": True, "c": -1.5e-7}, {"a": ["null"], "b": ["true"], "c": ["-1.5e-07"]}),
        ({"slots": {"artist": ["x, y", "z"]}, "n": 1}, {"slots.artist": ["x, y", "z"], "n": ["1"]}),
        ({"items": [{"price": 2, "tags": ["a"]}, {"price": 3}]}, {"items[].price": ["2", "3"], "items[].tags": ["a"]}),
        ({"m": [[1, 2], [], [3]]}, {"m[]": ["1", "2", "3"]}),
        ({"m": [[{"x": 1}]]}, {"m[][].x": ["1"]}),
        ({"a": [], "b": {}, "c": "d"}, {"c": ["d"]}),
        ({"q": 'a "b" \\ {c}: [d]\n'}, {"q": ['a \\"b\\" \\\\ {c}: [d]\\n']}),
        ({"a.b": {"c d": 1}, "": 2, 'e"': 3}, {'"a.b".c d': ["1"], '""': ["2"], '"e\\""': ["3"]}),
        ({"ключ": "é😀"}, {"ключ": ["é😀"]}),
    ],
)
def test_spans_follow_the_paths(answer: Any, texts: dict[str, list[str]]) -> None:
    assert shown(json.dumps(answer, ensure_ascii=False)) == texts


def test_flat_leaves_out_what_says_nothing() -> None:
    answer = {"a": None, "b": [], "c": {"d": {}}, "e": "", "f": False, "g": [{"h": 0}, {"h": None}, {"h": 1}]}
    assert flatten(answer) == {"e": [""], "f": [False], "g[].h": [0, 1]}


def test_no_two_places_share_a_path() -> None:
    assert flatten({"a.b": 1, "a": {"b": 2}}) == {'"a.b"': [1], "a.b": [2]}
    assert field_path("a", "b") == "a.b"
    assert field_path("a", "b", in_list=True) == "a[].b"


def test_the_schema_names_the_same_paths() -> None:
    item = {"type": "object", "properties": {"price": {"type": "number"}, "x.y": {"type": "string"}}}
    rows = {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}
    schema = {"type": "object", "properties": {"items": {"type": "array", "items": item}, "rows": rows}}
    answer = {"items": [{"price": 1.5, "x.y": "z"}], "rows": [[1], [2]]}
    assert [field.path for field in list_fields(schema)] == list(flatten(answer))


@pytest.mark.parametrize(
    ("first", "second", "are_equal"),
    [
        ({"a": ["x", "y"]}, {"a": ["y", "x"]}, True),
        ({"a": ["x", "x"]}, {"a": ["x"]}, False),
        ({"a": [{"n": 1, "p": 2}, {"n": 3, "p": 4}]}, {"a": [{"n": 3, "p": 4}, {"p": 2, "n": 1}]}, True),
        ({"a": [{"n": 1, "p": 2}, {"n": 3, "p": 4}]}, {"a": [{"n": 1, "p": 4}, {"n": 3, "p": 2}]}, False),
        ({"a": None, "b": [], "c": {"d": None}, "e": [None]}, {}, True),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": "1"}, {"a": 1}, False),
        ({"a": ["x"]}, {"a": "x"}, False),
        ({"when": "May 3rd, 2024"}, {"when": "2024-05-03"}, True),
        ({"in": [{"when": "5/3/24"}]}, {"in": [{"when": "3 May 2024"}]}, True),
        ({"day": "May 3rd, 2024"}, {"day": "2024-05-03"}, False),
    ],
)
def test_answers_that_say_the_same_are_comparable_as_equal(first: Any, second: Any, are_equal: bool) -> None:
    ways: Any = {"when": "date", "in[].when": "date"}
    assert (comparison_key(first, ways) == comparison_key(second, ways)) is are_equal


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@hypothesis.given(st.dictionaries(st.text(max_size=3), VALUES, max_size=4))
@hypothesis.settings(deadline=None, max_examples=60)
def test_spans_cut_out_every_value_there_is(answer: dict[str, Any]) -> None:
    canonical = json.dumps(answer, ensure_ascii=False)
    cut = {}
    for path, found in value_spans(canonical).items():
        quoted = [(s - 1, e + 1) if canonical[s - 1] == '"' else (s, e) for s, e in found]
        values = [json.loads(canonical[s:e]) for s, e in quoted]
        if said := [value for value in values if value is not None]:
            cut[path] = said
    assert cut == flatten(answer)


def test_a_field_left_out_points_to_what_stands_in_its_place() -> None:
    names = ("people", "time", "date", "note")
    text = '{"time": "at {7}, sharp", "date": {"day": [1, 2]}}'
    found = {name: text[start:end] for name, (start, end) in omission_spans(text, names).items()}
    assert found == {"people": '"time"', "note": "}"}
    assert omission_spans(text, names)["note"] == (len(text) - 1, len(text))
    assert omission_spans("{}", ("a", "b")) == {"a": (1, 2), "b": (1, 2)}
    assert omission_spans('{"time": "cut o', names)["people"] == (1, 7)
    assert "note" not in omission_spans('{"time": "cut o', names)
