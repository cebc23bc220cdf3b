"""OpenAI bodies become Requests, and what cannot be done is refused by name."""

from __future__ import annotations

import json
import typing

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

from smallfirst.data.dataset import Message
from smallfirst.models.protocol import Completion, Request, Route, RouteStep
from smallfirst.pricing.charge import Charge
from smallfirst.pricing.tokens import TokenUsage
from smallfirst.serving.openai.errors import ApiError, model_not_found
from smallfirst.serving.openai.requests import CHAT_IGNORED, CHAT_REFUSED, ParsedRequest, parse_chat
from smallfirst.serving.openai.responses import ResponseBuilder, sse_event
from smallfirst.serving.response_head import raw_headers

USER = {"role": "user", "content": "hi"}


def parse(**body: object) -> ParsedRequest:
    """The call in a body of these fields, one user message if none is given."""
    return parse_chat(json.dumps({"model": "m", "messages": [USER], **body}).encode(), max_messages=3)


def refusal(**body: object) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(**body)
    assert caught.value.status == 400
    assert set(caught.value.body["error"]) == {"message", "type", "param", "code"}
    return caught.value


def test_a_plain_body_becomes_a_request_with_our_defaults() -> None:
    assert parse() == ParsedRequest(
        model="m",
        requests=(Request(messages=(Message(role="user", content="hi"),), max_tokens=256),),
        stream=False,
        include_usage=False,
    )


def test_every_field_that_is_read_arrives() -> None:
    call = parse(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "assistant", "content": "yes", "refusal": None, "tool_calls": []},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ],
        max_tokens=5,
        max_completion_tokens=7,
        temperature=1,
        seed=-4,
        stop="END",
        stream=True,
        stream_options={"include_usage": True},
        n=1,
        tools=[],
        response_format={"type": "text"},
    )
    assert call == ParsedRequest(
        model="m",
        requests=(
            Request(
                messages=(
                    Message(role="system", content="be brief"),
                    Message(role="assistant", content="yes"),
                    Message(role="user", content="a\nb"),
                ),
                max_tokens=7,
                temperature=1.0,
                seed=-4,
                stop=("END",),
            ),
        ),
        stream=True,
        include_usage=True,
    )


def test_every_parameter_of_the_openai_client_is_read_or_ignored_or_refused() -> None:
    read = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "seed"}
    read |= {"stop", "stream", "stream_options", "metadata", "user", "n", "logprobs", "top_logprobs", "response_format"}
    theirs = set(typing.get_type_hints(CompletionCreateParamsNonStreaming))
    assert theirs <= read | CHAT_IGNORED | set(CHAT_REFUSED)
    assert not CHAT_IGNORED & set(CHAT_REFUSED)


@pytest.mark.parametrize("name", sorted(CHAT_IGNORED))
def test_parameters_without_effect_are_ignored(name: str) -> None:
    assert parse(**{name: "anything"}) == parse()


@pytest.mark.parametrize("name", sorted(CHAT_REFUSED))
def test_unsupported_parameters_are_refused_by_name_and_null_is_not(name: str) -> None:
    refused = refusal(**{name: "something"})
    assert refused.body["error"]["param"] == name
    assert refused.body["error"]["code"] == "unsupported_parameter"
    assert str(refused).startswith(f'"{name}" is not supported here: ')
    assert parse(**{name: None}) == parse()


def test_a_misspelt_parameter_gets_a_suggestion() -> None:
    assert refusal(temprature=0).body == {
        "error": {
            "message": 'Unknown parameter: "temprature" — did you mean "temperature"?',
            "type": "invalid_request_error",
            "param": "temprature",
            "code": "unknown_parameter",
        }
    }
    assert str(refusal(zzz=0)) == 'Unknown parameter: "zzz".'


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"messages": []}, "messages", "messages: List should have at least 1 item"),
        ({"messages": "hi"}, "messages", "messages: Input should be a valid list"),
        ({"messages": [USER] * 4}, "messages", "4 messages; at most 3 are allowed."),
        (
            {"messages": [USER, {"role": "assistant", "content": "x"}]},
            "messages",
            "The last message is the one to answer, so it cannot be the assistant's.",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "messages[0].content: Field required"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages[0].role",
            "messages[0].role: Input should be 'system', 'developer', 'user' or 'assistant'",
        ),
        (
            {"messages": [{**USER, "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
            "messages[0].content",
            "messages[0].content: only parts of the form {type: text, text: …} are accepted",
        ),
        ({"messages": [{**USER, "contnt": "x"}]}, "messages[0].contnt", "messages[0].contnt: Extra"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens: Input should be greater than"),
        ({"max_tokens": "5"}, "max_tokens", "max_tokens: Input should be a valid integer"),
        ({"temperature": 3}, "temperature", "temperature: Input should be less than"),
        ({"stop": ["a"] * 5}, "stop", "stop: List should have at most 4 items"),
        ({"stop": [""]}, "stop", "stop: each stop text must have 1 to 256 characters"),
        ({"model": ""}, "model", "model: String should have at least 1 character"),
        ({"stream_options": {"x": 1}}, "stream_options.x", "stream_options.x: Extra inputs"),
    ],
)
def test_a_broken_rule_names_its_field(body: dict[str, object], param: str, message: str) -> None:
    refused = refusal(**body)
    assert str(refused).startswith(message)
    assert refused.body["error"]["param"] == param


def test_what_was_sent_is_not_repeated_in_the_refusal() -> None:
    assert "secret" not in str(refusal(messages=[{"role": "secret", "content": "secret"}]))


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[1]", b"[" * 100_000, b'{"seed": NaN}', b'{"model": "\\ud800"}']
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat(body, max_messages=3)
    assert caught.value.code == "invalid_json"


def test_a_missing_model_is_named_with_the_nearest_and_the_list() -> None:
    assert str(model_not_found("smal", ["small", "large"])) == (
        'The model "smal" is not served here — did you mean "small"? Served: large, small.'
    )
    assert str(model_not_found("gpt", ["small"])) == ('The model "gpt" is not served here. Served: small.')


ROUTED = Completion(
    text="refund",
    answered_by="café\r\nx-evil: 1",
    latency_ms=12.5,
    cost_usd=0.00002,
    prompt_tokens=9,
    completion_tokens=1,
    confidence=0.4,
    alternatives=(("refund", 0.9), ("other", 0.1)),
    route=Route(
        stage="small",
        why="sure enough",
        certified=True,
        threshold=0.8,
        confidence=0.9,
        task="tickets",
        guarantee="at most 5 % wrong",
        trail=(RouteStep(stage="small", decision="kept", why="sure enough", score=0.9, threshold=0.8),),
    ),
)
REPLY = ResponseBuilder(id="chatcmpl-1", created=5, served_name="routed")


def test_the_whole_response_has_every_key_of_the_openai_schema() -> None:
    assert REPLY.whole([ROUTED]) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 5,
        "model": "routed",
        "system_fingerprint": "fp_2500751b29",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "refund", "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
        "smallfirst": {
            "route": "small",
            "why": "sure enough",
            "certified": True,
            "certified_fields": None,
            "confidence": 0.9,
            "threshold": 0.8,
            "task": "tickets",
            "guarantee": "at most 5 % wrong",
            "steps": [{"stage": "small", "decision": "kept", "why": "sure enough", "score": 0.9, "threshold": 0.8}],
            "cost_usd": 0.00002,
            "charges": [
                {
                    "model": "café\r\nx-evil: 1",
                    "usd": 0.00002,
                    "basis": "billed",
                    "source": "stated by the model",
                }
            ],
            "latency_ms": 12.5,
            "answered_by": "café\r\nx-evil: 1",
            "alternatives": [{"label": "refund", "probability": 0.9}, {"label": "other", "probability": 0.1}],
        },
    }
    ChatCompletion.model_validate(REPLY.whole([ROUTED]), strict=True)


def test_usage_names_what_the_large_models_provider_had_cached() -> None:
    line = Charge(model="big", usd=0.1, tokens=TokenUsage(prompt_tokens=9, cached_tokens=8))
    draft = Charge(model="small", usd=0.1, purpose="draft", tokens=TokenUsage(prompt_tokens=9, cached_tokens=3))
    answer = ROUTED.with_charges((draft, line))
    assert REPLY.whole([answer])["usage"]["prompt_tokens_details"] == {"cached_tokens": 8}
    assert REPLY.whole([answer, answer.with_charges((line,))], n=2)["usage"]["prompt_tokens_details"] == {
        "cached_tokens": 9
    }


def test_headers_say_the_same() -> None:
    assert REPLY.headers(ROUTED) == {
        "x-smallfirst-route": "small",
        "x-smallfirst-certified": "true",
        "x-smallfirst-confidence": "0.900000",
        "x-smallfirst-cost-usd": "0.000020000",
        "x-smallfirst-charges": "café\r\nx-evil: 1 answer 0.000020000",
        "x-smallfirst-model": "café\r\nx-evil: 1",
        "x-smallfirst-why": "sure enough",
        "x-smallfirst-steps": "small kept (0.900 of 0.800)",
    }


def test_where_no_router_chose_the_served_name_is_the_route() -> None:
    plain = ROUTED.model_copy(update={"route": None, "confidence": None})
    headers = REPLY.headers(plain)
    assert headers["x-smallfirst-route"] == "routed"
    assert headers["x-smallfirst-certified"] == "false"
    assert "x-smallfirst-confidence" not in headers


def test_chunks_fit_the_openai_schema_and_the_last_one_explains() -> None:
    last, usage = REPLY.last(ROUTED, include_usage=True), REPLY.usage_chunk([ROUTED])
    chunks = [REPLY.opening(include_usage=True), REPLY.piece("ref", include_usage=True), last, usage]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert last["smallfirst"]["route"] == "small"
    assert usage["choices"] == []
    assert "usage" not in REPLY.piece("ref", include_usage=False)


def test_an_event_is_one_line_for_every_client() -> None:
    assert sse_event({"a": "x\u2028\ny"}) == b'data: {"a":"x\\u2028\\ny"}\n\n'


def test_metadata_and_user_become_tags_within_openai_s_limits() -> None:
    call = parse(metadata={"tier": "gold"}, user="u-1")
    assert call.requests[0].tags == {"tier": "gold", "user": "u-1"}
    assert parse().requests[0].tags == {}
    assert refusal(metadata={"tier": 1}).body["error"]["param"] == "metadata.tier"
    assert refusal(metadata={"k": "v" * 513}).body["error"]["param"] == "metadata.k"
    assert refusal(metadata={str(i): "v" for i in range(17)}).body["error"]["param"] == "metadata"
    assert refusal(user="u" * 513).body["error"]["param"] == "user"


def test_a_client_cannot_break_out_of_a_header() -> None:
    evil = RouteStep(stage="small", decision="kept", why="x", model="m\r\nx-evil: 1")
    route = Route(stage="a\nb", why="why\r\nx-evil: 2; ok", certified=False, trail=(evil,))
    headers = dict(raw_headers(REPLY.headers(ROUTED.model_copy(update={"route": route}))))
    assert not any(b"\r" in value or b"\n" in value for value in headers.values())
    assert headers[b"x-smallfirst-why"] == b"why%0D%0Ax-evil: 2; ok"
    assert headers[b"x-smallfirst-model"] == b"caf%C3%A9%0D%0Ax-evil: 1"
