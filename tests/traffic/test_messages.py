"""Requests and responses of four routes come out in one form."""

from __future__ import annotations

import pytest

from smallfirst.traffic.messages import Answer, Prompt, ToolCall, Turn, read_answer, read_prompt

CHAT, RESPONSES, MESSAGES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions"
ASKED = (Turn("system", "File it."), Turn("user", "My card is lost"))


@pytest.mark.parametrize(
    ("route", "request_body"),
    [
        (
            CHAT,
            {"messages": [{"role": "developer", "content": "File it."}, {"role": "user", "content": ASKED[1].text}]},
        ),
        (RESPONSES, {"instructions": "File it.", "input": ASKED[1].text}),
        (MESSAGES, {"system": "File it.", "messages": [{"role": "user", "content": [{"text": ASKED[1].text}]}]}),
    ],
)
def test_one_prompt_reads_the_same_on_every_route(route, request_body):
    assert read_prompt(route, {"model": "m", **request_body}) == Prompt("m", ASKED)


def test_images_are_named_and_left_out():
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    found = read_prompt(CHAT, {"messages": [{"role": "user", "content": content}]})
    assert found is not None
    assert (found.turns, found.has_media) == ((Turn("user", "What is this?"),), True)


@pytest.mark.parametrize(
    "more",
    [{"previous_response_id": "resp_1"}, {"conversation": "conv_1"}, {"prompt": {"id": "pmpt_1", "variables": {}}}],
)
def test_what_the_api_has_stored_is_named_as_left_out(more):
    found = read_prompt(RESPONSES, {"input": "My card is lost", **more})
    assert found is not None
    assert found.has_media


@pytest.mark.parametrize("wrong", [3, True, "text", [3], [[]], {"a": 1}, [{"function": 3}], [None]])
def test_any_json_is_read_without_an_error(wrong):
    message = {"role": "user", "content": wrong, "tool_calls": wrong}
    read_prompt(CHAT, {"messages": [message], "tools": wrong, "response_format": wrong, "system": wrong})
    read_prompt(RESPONSES, {"input": [message], "instructions": wrong, "text": wrong})
    read_answer(CHAT, {"choices": [{"message": message, "finish_reason": wrong}]})
    read_answer(
        RESPONSES, {"output": [{"type": "message", "content": wrong}, {"type": "function_call", "name": wrong}]}
    )
    read_answer(MESSAGES, {"content": wrong, "stop_reason": wrong})


def test_embeddings_and_malformed_bodies_ask_nothing():
    assert read_prompt("/v1/embeddings", {"input": ["a", "b"]}) is None
    assert read_prompt(CHAT, {"messages": "no"}) == Prompt("", (Turn("user", "no"),))
    assert read_prompt(CHAT, {"messages": [3]}) is None
    assert read_prompt(CHAT, {}) is None


@pytest.mark.parametrize(
    ("route", "response"),
    [
        (CHAT, {"choices": [{"message": {"content": "lost"}, "finish_reason": "stop"}]}),
        (COMPLETIONS, {"choices": [{"text": "lost", "finish_reason": "stop"}]}),
        (RESPONSES, {"output": [{"type": "message", "content": [{"type": "output_text", "text": "lost"}]}]}),
        (MESSAGES, {"content": [{"type": "text", "text": "lost"}], "stop_reason": "end_turn"}),
    ],
)
def test_one_answer_reads_the_same_on_every_route(route, response):
    assert read_answer(route, response) == Answer("lost")


def test_tool_calls_and_refusals():
    call = {"type": "function", "function": {"name": "file", "arguments": '{"label": "lost"}'}}
    chat = {"choices": [{"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    assert read_answer(CHAT, chat) == Answer("", (ToolCall("file", '{"label": "lost"}'),), "tool_calls")
    refused = {"choices": [{"message": {"content": None, "refusal": "no"}, "finish_reason": "stop"}]}
    assert read_answer(CHAT, refused) == Answer("no", (), "refusal")
    assert read_answer(CHAT, {"error": {"message": "busy"}}) is None
