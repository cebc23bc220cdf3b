"""MLflow's bodies: what each way of asking becomes, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from smallfirst.serving.invocations import MAX_ROWS, parse
from smallfirst.serving.openai.errors import ApiError


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("kind", ["messages", "prompt", "input"])
def test_a_body_of_one_question_goes_on_as_it_is(kind: str) -> None:
    assert parse({kind: "a", "max_tokens": 3}) == (kind, [])


@pytest.mark.parametrize(
    "table",
    [
        {"dataframe_split": {"columns": ["text"], "data": [["a"], ["b"]]}},
        {"dataframe_split": {"columns": ["id", "text"], "index": [0, 1], "data": [[7, "a"], [8, "b"]]}},
        {"dataframe_records": [{"ticket": "a"}, {"ticket": "b"}]},
        {"inputs": ["a", "b"]},
        {"inputs": {"text": ["a", "b"]}},
        {"inputs": {"id": [1, 2], "text": ["a", "b"]}},
        {"instances": ["a", {"text": "b"}]},
    ],
)
def test_every_table_is_a_chat_a_row(table: dict[str, Any]) -> None:
    _, rows = parse({**table, "params": {"max_tokens": 4}})
    assert rows == [{"messages": user(text), "max_tokens": 4} for text in "ab"]


def test_one_text_and_one_conversation_are_rows_too() -> None:
    assert parse({"inputs": "a"})[1] == [{"messages": user("a")}]
    spoken = [*user("a"), {"role": "assistant", "content": "b"}, *user("c")]
    assert parse({"inputs": {"messages": spoken}})[1] == [{"messages": spoken}]
    assert parse({"dataframe_records": [{"messages": spoken, "id": 3}]})[1] == [{"messages": spoken}]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "", "none was sent"),
        ({"dataframe_spilt": {}}, "dataframe_spilt", 'did you mean "dataframe_split"'),
        ({"inputs": ["a"], "messages": user("b")}, "messages", "messages, inputs were sent together"),
        ({"inputs": ["a"], "max_tokens": 3}, "max_tokens", "into `params`"),
        ({"inputs": []}, "inputs", "0 rows; 1 to 256"),
        ({"inputs": ["a"] * (MAX_ROWS + 1)}, "inputs", "257 rows; 1 to 256"),
        ({"inputs": [3]}, "inputs[0]", "A row must be a text"),
        ({"inputs": [["a", "b"]]}, "inputs[0]", "A row must be a text"),
        ({"dataframe_records": [{"a": "x", "b": "y"}]}, "dataframe_records[0].text", "A row must be a text"),
        ({"dataframe_split": {"columns": [[1]], "data": [["a"]]}}, "dataframe_split", "columns"),
        ({"inputs": {"a": ["x"], "b": ["y", "z"]}}, "inputs", "of equal length"),
        ({"inputs": {"text": [None]}}, "inputs[0].text", "A row must be a text"),
        ({"instances": {"text": ["a"]}}, "instances", "must be a list of rows"),
        ({"dataframe_split": {"data": [["a"]]}}, "dataframe_split", "columns"),
        ({"dataframe_split": {"columns": ["text"], "data": [["a"], ["b", "c"]]}}, "dataframe_split", "each column"),
        ({"inputs": ["a"], "params": [1]}, "params", "object"),
        ({"inputs": ["a"], "params": {"model": "other"}}, "params", "without model"),
        ({"inputs": ["a"], "params": {"stream": True}}, "params", "without model"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(body: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse(body)
    error = caught.value.body["error"]
    assert caught.value.status == 400
    assert error["param"] == param
    assert words in error["message"]
