"""Only requests that ask for nothing more than the answer are answered small."""

from __future__ import annotations

import pytest

from smallfirst.gateway.takeover.answerable import route_of, why_not

CHAT = {"model": "m", "messages": [], "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/chat/completions", "chat/completions"),
        ("/v1/completions", "completions"),
        ("/v1/responses", "responses"),
        ("/v1/messages", "messages"),
        ("/v1/embeddings", None),
        ("/v1/responses/resp_1", None),
    ],
)
def test_the_routes_with_answers(path, route):
    assert route_of(path) == route


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"n": 1, "logprobs": False, "tools": [], "web_search_options": None}, ""),
        ({"n": 2}, "it asks for n: 2"),
        ({"logprobs": True}, "it asks for logprobs: True"),
        ({"store": True}, "it asks for store: True"),
        ({"web_search_options": {}}, "it sets web_search_options"),
        ({"stop": [" card"]}, "a stop sequence is in the answer"),
        ({"max_tokens": 3}, "the answer may be longer than the request allows"),
        ({"max_completion_tokens": 4}, ""),
    ],
)
def test_a_setting_that_asks_for_more_passes_the_request_on(changes, why):
    assert why_not("chat/completions", CHAT | changes, "lost card !") == why


@pytest.mark.parametrize("setting", [{"temperature": 1.5}, {"presence_penalty": 0.5}, {"frequency_penalty": 1}])
def test_an_answer_that_is_written_is_the_upstreams_where_a_less_likely_one_is_wanted(setting):
    (name, value), usual = *setting.items(), {"temperature": 0.7, "top_p": 0.9, "presence_penalty": 0, "seed": 4}
    assert why_not("chat/completions", CHAT | setting, "lost card") == f"it asks for {name}: {value}"
    assert why_not("chat/completions", CHAT | setting, "lost_card", closed=True) == ""
    assert why_not("chat/completions", CHAT | usual, "lost card") == ""


@pytest.mark.parametrize(
    ("choice", "called", "why"),
    [
        (None, ["route"], ""),
        ("auto", [], ""),
        ("none", [], ""),
        ("none", ["route"], "it forbids tools, and the answer calls one"),
        ({"type": "none"}, ["route"], "it forbids tools, and the answer calls one"),
        ("required", [], "it asks for a call of a tool"),
        ("required", ["route"], ""),
        ({"type": "any"}, [], "it asks for a call of a tool"),
        ({"type": "function", "function": {"name": "route"}}, ["route"], ""),
        ({"type": "function", "function": {"name": "other"}}, ["route"], "it asks for a call of other"),
        ({"type": "function", "name": "route"}, ["route"], ""),
        ({"type": "tool", "name": "other"}, ["route"], "it asks for a call of other"),
    ],
)
def test_an_answer_that_breaks_the_choice_of_tools_is_not_given(choice, called, why):
    assert why_not("chat/completions", CHAT | {"tool_choice": choice}, "lost", tools=called) == why


def test_a_response_that_continues_another_one_is_not_answered():
    body = {"model": "m", "input": "lost", "previous_response_id": "resp_1"}
    assert why_not("responses", body) == "it sets previous_response_id"
    assert not why_not("responses", {"model": "m", "input": "lost", "max_output_tokens": 16})
