"""Requests and responses of four routes come out in one form."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from smallfirst.traffic.discovery.wordings import one_question_each
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.wire.dialects import read_answer, read_label, read_prompt, route_of, why_not
from smallfirst.traffic.wire.messages import Answer, Prompt, ToolCall, Turn

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


DECISIONS, SYSTEM_ONE = "/v1/decisions", "/v1/systemone"
OPENAI = (
    {
        "model": "luna",
        "input": "My card is lost",
        "questions": [
            {"type": "predicate", "instructions": "It is urgent.", "name": "urgent"},
            {"type": "choice", "instructions": "Team?", "choices": [{"value": "cards"}, {"value": "fees"}]},
            {"type": "score", "instructions": "Anger?", "levels": [{"label": "calm"}, {"label": "angry"}]},
        ],
    },
    {
        "model": "luna-1",
        "answers": [
            {"type": "predicate", "name": "urgent", "probability": 0.2},
            {"type": "choice", "choice": "cards", "probabilities": [{"value": "cards", "probability": 0.9}]},
            {
                "type": "score",
                "score": 0.6,
                "probabilities": [
                    {"value": 0, "label": "calm", "probability": 0.4},
                    {"value": 1, "label": "angry", "probability": 0.6},
                ],
            },
        ],
    },
)
JEV = (
    {
        "model": "jev",
        "state": "My card is lost",
        "questions": {
            "a": {"type": "noul", "instructions": "It is urgent."},
            "b": {"type": "choice", "instructions": "Team?", "criteria": {"cards": None, "fees": None}},
            "c": {"type": "score", "instructions": "Anger?", "criteria": ["calm", "angry"]},
        },
    },
    {
        "model": "jev-1",
        "answers": {
            "a": {"type": "noul", "noul": 0.2},
            "b": {"type": "choice", "choice": "cards", "probabilities": {"cards": 0.9, "fees": 0.1}},
            "c": {
                "type": "score",
                "score": 0.6,
                "legend": {"0": "calm", "1": "angry"},
                "probabilities": {"0": 0.4, "1": 0.6},
            },
        },
    },
)


def exchange(route, request, response):
    return Exchange(
        id="e",
        at=datetime.now(UTC),
        route=route,
        request=request,
        response=response,
        model="m",
        prompt_tokens=31,
        cost_usd=0.3,
    )


@pytest.mark.parametrize(("route", "bodies"), [(DECISIONS, OPENAI), (SYSTEM_ONE, JEV)])
def test_each_question_of_both_shapes_reads_as_the_same_prompt_and_label(route, bodies):
    parts = list(one_question_each([exchange(route, *bodies)]))
    assert [(one.id, one.prompt_tokens) for one in parts] == [("e#0", 10), ("e#1", 10), ("e#2", 10)]
    assert sum(one.cost_usd for one in parts) == pytest.approx(0.3)
    prompts = [read_prompt(route, one.request) for one in parts]
    assert [prompt.turns[1] for prompt in prompts] == [Turn("user", "My card is lost")] * 3
    assert [prompt.turns[0].text for prompt in prompts] == [
        "It is urgent.\nIs this true of the text? Answer true or false.",
        "Team?\ncards\nfees\nAnswer with one of these.",
        "Anger?\ncalm\nangry\nAnswer with one of these, listed from the lowest to the highest.",
    ]
    assert len({prompt.response_format for prompt in prompts}) == 3
    assert [read_answer(route, one.response) for one in parts] == [Answer("false"), Answer("cards"), Answer("angry")]


def test_what_is_no_decision_of_several_questions_passes_as_it_is():
    chat = exchange("/v1/chat/completions", {"messages": []}, {})
    failed = exchange(DECISIONS, OPENAI[0], {"error": {"message": "overloaded"}})
    malformed = exchange(DECISIONS, {"model": "m"}, OPENAI[1])
    assert list(one_question_each([chat, failed, malformed])) == [chat, failed, malformed]
    assert read_prompt(DECISIONS, OPENAI[0]) is None
    assert read_prompt(DECISIONS, {"model": "m"}) is None
    assert read_answer(DECISIONS, OPENAI[1]) is None


def test_refusals_and_broken_answers_give_no_label():
    assert read_answer(DECISIONS, {"answers": [{"type": "refusal"}]}) == Answer("", (), "refusal")
    for answers in ([{"type": "score", "probabilities": []}], [{"type": "choice"}], [{}], ["x"]):
        assert read_label(DECISIONS, {"answers": answers}) is None


def test_a_state_with_images_is_no_case_for_a_small_model():
    given = {**JEV[0], "questions": {"a": JEV[0]["questions"]["a"]}, "images": ["AA=="]}
    assert read_prompt(SYSTEM_ONE, given).has_media


ASKED_CHAT = {"model": "m", "messages": [], "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}


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
    assert why_not("chat/completions", ASKED_CHAT | changes, Answer("lost card !")) == why


@pytest.mark.parametrize("setting", [{"temperature": 1.5}, {"presence_penalty": 0.5}, {"frequency_penalty": 1}])
def test_an_answer_that_is_written_is_the_upstreams_where_a_less_likely_one_is_wanted(setting):
    (name, value), usual = *setting.items(), {"temperature": 0.7, "top_p": 0.9, "presence_penalty": 0, "seed": 4}
    assert why_not("chat/completions", ASKED_CHAT | setting, Answer("lost card")) == f"it asks for {name}: {value}"
    assert why_not("chat/completions", ASKED_CHAT | setting, Answer("lost_card"), closed=True) == ""
    assert why_not("chat/completions", ASKED_CHAT | usual, Answer("lost card")) == ""


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
    answer = Answer("lost", tuple(ToolCall(name, "{}") for name in called))
    assert why_not("chat/completions", ASKED_CHAT | {"tool_choice": choice}, answer) == why


def test_a_response_that_continues_another_one_is_not_answered():
    body = {"model": "m", "input": "lost", "previous_response_id": "resp_1"}
    assert why_not("responses", body) == "it sets previous_response_id"
    assert not why_not("responses", {"model": "m", "input": "lost", "max_output_tokens": 16})
