"""Conversations with function calls as one text, functions, and what tells them apart."""

import copy
import tracemalloc
from typing import Any

import pytest
from fixtures.assistants import TOOLS, assistant_rows, call, conversation

from smallfirst.data.conversations import (
    NO_CALL,
    ConversationTurn,
    calls_of,
    changed_functions,
    conversations_of,
    from_text,
    read_functions,
    read_turns,
    to_messages,
    to_text,
    write_call,
)
from smallfirst.data.row_formats import to_row
from smallfirst.data.sources.load import load_rows


def test_a_conversation_reads_back_from_its_text_whatever_its_ids_are() -> None:
    messages = conversation(3)
    other = copy.deepcopy(messages)
    for message in other:
        for made in message.get("tool_calls", ()):
            made["id"] = "another"
    text = to_text(read_turns(messages))
    assert to_text(read_turns(other)) == text
    assert to_text(from_text(text)) == text
    assert to_text(read_turns(to_messages(from_text(text)))) == text
    assert [turn.kind for turn in from_text("no JSON\n{}")] == ["user"]


@pytest.mark.parametrize(
    ("message", "rule"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "a part that is no text"),
        ({"role": "user"}, "no content"),
        ({"role": "narrator", "content": "a"}, 'has role "narrator"'),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "F", "arguments": "{"}}]}, "F are not JSON"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "F", "arguments": "[]"}}]},
            "must be a JSON object",
        ),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "function.name and function.arguments"),
    ],
)
def test_what_cannot_be_read_is_named(message: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        read_turns([message])


def test_functions_are_equal_whatever_describes_them_and_a_change_is_named() -> None:
    known, other = read_functions(TOOLS), copy.deepcopy(TOOLS)
    other[0]["function"]["description"] = "another description"
    other[1]["function"]["parameters"]["properties"]["day"].pop("description")
    other[0]["function"]["parameters"]["properties"]["kind"]["enum"].reverse()
    other.reverse()
    assert changed_functions(known, read_functions(other)) == ""
    anthropic = [{"name": one["name"], "input_schema": one["parameters"]} for one in known]
    assert changed_functions(known, read_functions(anthropic)) == ""
    parameters = other[0]["function"]["parameters"]
    properties = parameters["properties"]
    properties["date"] = properties.pop("day")
    del other[1]
    changed = changed_functions(known, read_functions(other))
    assert changed == "FindTea is missing; OrderTea.date is new; OrderTea.day is missing"
    properties["day"] = properties.pop("date") | {"format": "date"}
    parameters |= {"required": ["tea", "day"], "additionalProperties": False}
    changed = changed_functions(known[1:], read_functions(other))
    assert (
        changed
        == "OrderTea.boxes is optional now; OrderTea.day has changed; additionalProperties of OrderTea has changed"
    )


@pytest.mark.parametrize(
    "tools", [None, [], [{"type": "web_search"}], [{"function": {"name": "F", "parameters": 1}}], TOOLS * 2]
)
def test_tools_that_are_no_functions_are_refused(tools: Any) -> None:
    with pytest.raises(ValueError, match="tools"):
        read_functions(tools)


def test_rows_of_messages_and_tools_are_read_and_written_again() -> None:
    rows = load_rows(assistant_rows(3)).examples
    assert {row.shape for row in rows} == {"call"}
    made = [made for number in range(3) for message in conversation(number) for made in calls_of(message)]
    assert [row.answer for row in rows if row.answer != NO_CALL] == [write_call(**one) for one in made]
    assert [row.answer for row in load_rows([to_row(row) for row in rows]).examples] == [row.answer for row in rows]
    two = call("FindTea", kind="Green", city="Graz")
    two["tool_calls"] *= 2
    several = {"messages": [{"role": "user", "content": "both"}, two], "tools": TOOLS}
    assert load_rows([several]).examples[0].answer == NO_CALL


def test_turns_of_one_conversation_are_found_without_a_name_for_it() -> None:
    rows = load_rows(assistant_rows(30)).examples
    given = [row["conversation"] for row in assistant_rows(30)]
    found = conversations_of([row.text for row in rows])
    begun = [row.text.count('{"user"') > 1 for row in rows]
    named = {one: other for one, other, far in zip(given, found, begun, strict=True) if far}
    assert all(named[one] == other for one, other, far in zip(given, found, begun, strict=True) if far)
    assert len(set(named.values())) > 20  # of those that begin with the same two turns one


def test_to_find_conversations_takes_memory_as_their_texts_do() -> None:
    """An agent's requests repeat all of its calls so far; every beginning of each took sixty times their size."""
    turns = [ConversationTurn("user", "look after it")]
    turns += [ConversationTurn("call", {"name": "Find", "arguments": {"q": f"{i:0100}"}}) for i in range(200)]
    texts = [to_text(turns[:n]) for n in range(1, len(turns) + 1)]
    tracemalloc.start()
    try:
        found = conversations_of(texts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(set(found)) == 1
    assert peak < 4 * sum(map(len, texts))
