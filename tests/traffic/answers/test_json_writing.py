"""How JSON is written is found in texts, and writes them again byte for byte."""

from __future__ import annotations

import json

import hypothesis
import pytest
from hypothesis import strategies as st

from smallfirst.traffic.answers.json_writing import JsonWriting, find_writing

VALUES = [
    {"name": "Zoë", "items": [{"sku": "a", "price": 2.5}, {"sku": "b", "price": 10.25}], "paid": True},
    {"name": "日本", "items": [], "paid": False},
]


@pytest.mark.parametrize("indent", [None, 1, 2, 4, "\t"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_pythons_own_writings_come_back(indent: int | str | None, ascii_only: bool) -> None:
    texts = [json.dumps(value, indent=indent, ensure_ascii=ascii_only) for value in VALUES]
    writing = find_writing(texts)
    assert [writing.write(json.loads(text)) for text in texts] == texts


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ":"), (",", ": ")])
def test_separators_come_back(separators: tuple[str, str]) -> None:
    texts = [json.dumps(value, separators=separators, ensure_ascii=False) for value in VALUES]
    assert [find_writing(texts).write(value) for value in VALUES] == texts


def test_prices_keep_their_last_zero() -> None:
    writing = find_writing(['{"n": 3, "total": 644.90}', '{"n": 4, "total": 12.25}'])
    assert writing.decimals == {"total": 2}
    assert writing.write({"n": 5, "total": 7}) == '{"n": 5, "total": 7.00}'
    assert find_writing(['{"x": 0.5}', '{"x": 0.25}']).write({"x": 0.125}) == '{"x": 0.125}'
    assert find_writing(['{"x": 1e-3}']).decimals == {}


def test_keys_stand_in_the_order_of_the_answers() -> None:
    writing = find_writing(['{"b": 1, "a": 2}', '{"b": 1, "c": 0, "a": 2}', '{"b": 1, "a": 2}'])
    assert writing.write({"a": 2, "c": 0, "b": 1, "new": 4}) == '{"b": 1, "c": 0, "a": 2, "new": 4}'


def test_keys_of_objects_in_lists_have_an_order_of_their_own() -> None:
    writing = find_writing(['{"a": 1, "items": [{"z": 1, "a": 2}]}'])
    assert writing.write({"items": [{"a": 2, "z": 1}], "a": 1}) == '{"a": 1, "items": [{"z": 1, "a": 2}]}'


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(json.JSONDecodeError):
        find_writing(["{"])


@hypothesis.settings(max_examples=30)
@hypothesis.given(
    st.dictionaries(
        st.text(max_size=4), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text(max_size=3))
    )
)
def test_any_object_that_python_writes_comes_back(value: dict[str, object]) -> None:
    text = json.dumps(value)
    assert find_writing([text]).write(json.loads(text)) == text
    assert JsonWriting(ascii_only=True).write(value) == text
