"""A conversation with functions is read alike on three dialects, or not at all."""

import copy
from typing import Any

import pytest
from fixtures.assistant import CHAT, MESSAGES, RESPONSES, body_of, called, turns

from smallfirst.data.conversations import NO_CALL, ConversationTurn, conversations_of, read_turns, to_messages, to_text
from smallfirst.traffic.assistant import Assistant, masked, read_request
from smallfirst.traffic.discovery.answer_formats import find_call_format
from smallfirst.traffic.task_source import AnswerFormat
from smallfirst.traffic.wire import ModelAnswer, ToolCall

Json = dict[str, Any]
ASKED = max((asked for asked, _ in turns(20)), key=len)


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_a_conversation_reads_alike_on_every_dialect_and_comes_back(path: str) -> None:
    found = read_request(path, body_of(path, ASKED))
    assert found is not None
    assert found.turns == read_turns(ASKED)
    assert read_turns(to_messages(found.turns or ())) == found.turns
    assert found.assistant.id == read_request(CHAT, body_of(CHAT, ASKED)).assistant.id  # type: ignore[union-attr]
    assert found.assistant.instructions == ("You book tables. Today is #, #-#-#.",)


def changed(path: str, at: int, **more: Any) -> Json:
    body = copy.deepcopy(body_of(path, ASKED))
    place = body["input" if path == RESPONSES else "messages"]
    place[at] = {**place[at], **more}
    return body


IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}]
UNKNOWN: dict[str, tuple[str, Json]] = {
    "media": (CHAT, changed(CHAT, 1, content=IMAGE)),
    "a key": (CHAT, changed(CHAT, 1, refusal="no")),
    "a name": (CHAT, changed(CHAT, 1, name="Ann")),
    "an orphan result": (CHAT, body_of(CHAT, [*ASKED[:2], {"role": "tool", "tool_call_id": "x", "content": ""}])),
    "another result": (CHAT, body_of(CHAT, [*ASKED[:2], called("a", "f"), ASKED[-1] | {"tool_call_id": "b"}])),
    "no result": (CHAT, body_of(CHAT, [*ASKED[:2], called("a", "f")])),
    "an answer at the end": (CHAT, body_of(CHAT, [*ASKED, {"role": "assistant", "content": "so"}])),
    "reasoning": (RESPONSES, changed(RESPONSES, 0, type="reasoning", summary=[])),
    "stored": (RESPONSES, body_of(RESPONSES, ASKED) | {"previous_response_id": "resp_1"}),
    "a conversation": (RESPONSES, body_of(RESPONSES, ASKED) | {"conversation": "conv_1"}),
    "a reference": (RESPONSES, changed(RESPONSES, 0, type="item_reference", id="msg_1")),
    "thinking": (MESSAGES, changed(MESSAGES, 0, content=[{"type": "thinking", "thinking": "so", "signature": "x"}])),
    "an error": (
        MESSAGES,
        changed(MESSAGES, -1, content=[{"type": "tool_result", "tool_use_id": "call_1", "is_error": True}]),
    ),
    "a custom tool": (CHAT, body_of(CHAT, ASKED) | {"tools": [{"type": "custom", "custom": {"name": "sql"}}]}),
    "a built-in tool": (RESPONSES, body_of(RESPONSES, ASKED) | {"tools": [{"type": "web_search"}]}),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_more_than_a_conversation_is_not_understood(what: str) -> None:
    path, body = UNKNOWN[what]
    assert read_request(path, body_of(path, ASKED)) is not None
    assert read_request(path, body) is None


def test_what_changes_by_the_day_is_masked() -> None:
    first = masked("Today is Friday, 2019-03-01, 9:05 am. Close by 6 p.m. on March 2nd.")
    assert first == masked("Today is Monday, 2024-12-24, 11:30 pm. Close by 12 p.m. on May 31st.")
    assert first != masked("Today is Friday, 2019-03-01, 9:05 am. Never close.")


def test_another_assistant_is_told_by_functions_or_instructions() -> None:
    def assistant(*names: str, argument: str = "a", says: str = "x") -> Assistant:
        parameters = {"type": "object", "properties": {argument: {"type": "string"}}}
        functions = ({"name": name, "description": "", "parameters": parameters} for name in names)
        return Assistant(tools=tuple(functions), instructions=(says,))

    known = assistant("find", "book")
    assert known.changed(assistant("find", "book")) is None
    assert known.changed(assistant("find", "book", argument="b")) == (
        "find.b is new; find.a is missing; book.b is new; book.a is missing"
    )
    assert known.changed(assistant("find", "book", says="y")) == ""
    assert known.changed(assistant("look", "take")) is not None
    assert known.changed(assistant("look", "take", says="y")) is None
    beside = assistant("find")
    assert known.model_copy(update={"beside": (beside.id,)}).changed(beside) is None


def test_conversations_are_told_by_their_second_turn() -> None:
    def text(*said: str) -> str:
        return to_text(ConversationTurn("assistant" if i % 2 else "user", one) for i, one in enumerate(said))

    texts = [text("hi"), text("hi"), text("hi", "so?", "a"), text("hi", "so?", "b"), text("hi", "so?", "a", "ok", "c")]
    found = conversations_of(texts)
    assert found[2] == found[4] != found[3]
    assert sorted(found[:2]) == sorted(found[2:4])


def test_calls_come_back_as_they_were_written() -> None:
    made = [ModelAnswer("", (ToolCall("f", f'{{"b":"é{i}","a":{i}.50}}'),), "tool_calls") for i in range(12)]
    made += [ModelAnswer("", (ToolCall("g", f'{{"a":{i},"b":"x"}}'),), "tool_calls") for i in range(12)]
    found = find_call_format([*made, ModelAnswer("hello"), ModelAnswer("", made[0].tool_calls * 2, "tool_calls")])
    assert (found.check.n_answers, found.check.n_exact) == (24, 24)
    assert found.format.parse(made[0]) == '{"name": "f", "arguments": {"a": 0.5, "b": "é0"}}'
    assert found.format.render('{"name": "f", "arguments": {"a": 0.5, "b": "é0"}}') == made[0]


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (ModelAnswer("hello"), NO_CALL),
        (ModelAnswer("wait", (ToolCall("f", "{}"),), "tool_calls"), NO_CALL),
        (ModelAnswer("", (ToolCall("f", "{}"),) * 2, "tool_calls"), NO_CALL),
        (ModelAnswer("no", (), "refusal"), None),
        (ModelAnswer("hel", (), "length"), None),
        (ModelAnswer("", (ToolCall("f", '{"a'),), "tool_calls"), None),
    ],
)
def test_only_one_call_alone_is_a_call(answer: ModelAnswer, value: str | None) -> None:
    assert AnswerFormat(kind="call").parse(answer) == value
