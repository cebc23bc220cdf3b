"""What the newer parameters ask for: several answers, token probabilities, forms, and plain completions."""

from __future__ import annotations

import json
import typing

import pytest
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming

from smallfirst.models.protocol import ResponseFormat
from smallfirst.serving.openai.errors import ApiError
from smallfirst.serving.openai.requests import (
    COMPLETION_IGNORED,
    COMPLETION_REFUSED,
    ParsedRequest,
    parse_chat,
    parse_completion,
)

USER = {"role": "user", "content": "hi"}


def chat(**body: object) -> ParsedRequest:
    return parse_chat(json.dumps({"model": "m", "messages": [USER], **body}).encode(), max_messages=3)


def text(**body: object) -> ParsedRequest:
    return parse_completion(json.dumps({"model": "m", "prompt": "hi", **body}).encode())


def refused(parse: typing.Callable[..., ParsedRequest], **body: object) -> dict[str, object]:
    with pytest.raises(ApiError) as caught:
        parse(**body)
    assert caught.value.status == 400
    return caught.value.body["error"]


def test_several_answers_draw_with_a_seed_each_and_the_likeliest_is_asked_for_once() -> None:
    assert len(chat(n=3).draws()) == 1
    assert [r.seed for r in chat(n=3, temperature=1, seed=7).draws()] == [7, 8, 9]
    seeds = {r.seed for r in chat(n=3, temperature=1).draws()}
    assert len(seeds) == 3
    assert None not in seeds
    prompts = [r.text for r in text(prompt=["a", "b"], n=2, temperature=1).draws()]
    assert prompts == ["a", "a", "b", "b"]
    assert refused(chat, n=9)["param"] == "n"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stop": ["a"] * 5}, "stop"),
        ({"logit_bias": {str(n): 1 for n in range(301)}}, "logit_bias"),
        ({"tools": [{}]}, "tools"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"n": 1e300}, "n"),
        ({"messages": [USER] * 4}, "messages"),
        ({"messages": [{"content": [{}] * 513}] * 2}, "messages"),
    ],
)
def test_lists_and_numbers_beyond_their_bounds_are_refused(body: dict[str, object], param: str) -> None:
    assert refused(chat, **body)["param"] == param


def test_lists_at_their_bounds_pass() -> None:
    assert chat(stop=["a"] * 4, n=8, logit_bias={str(n): 1 for n in range(300)}).n == 8


def test_token_probabilities_are_asked_for_by_two_names() -> None:
    assert chat().requests[0].logprobs is None
    assert chat(logprobs=True).requests[0].logprobs == 0
    assert chat(logprobs=True, top_logprobs=4).requests[0].logprobs == 4
    assert text(logprobs=2).requests[0].logprobs == 2
    assert refused(chat, top_logprobs=3)["message"] == "top_logprobs is only allowed when logprobs is true"
    assert refused(chat, logprobs=True, top_logprobs=21)["param"] == "top_logprobs"
    assert refused(text, logprobs=6)["param"] == "logprobs"


def test_the_form_of_an_answer_arrives_whole() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    given = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert chat(response_format=given).requests[0].response_format == ResponseFormat(
        kind="json_schema", name="x", json_schema=schema, strict=True
    )
    assert chat(response_format={"type": "json_object"}).requests[0].response_format == ResponseFormat(
        kind="json_object"
    )
    assert chat(response_format={"type": "text"}).requests[0].response_format is None


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema"},
        {"type": "json_object", "json_schema": {"name": "x"}},
        {"type": "xml"},
        {"type": "json_schema", "json_schema": {"name": "x y", "schema": {}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": [], "url": "http://a"}},
        "json_object",
    ],
)
def test_a_broken_form_is_refused_by_its_place(form: object) -> None:
    assert str(refused(chat, response_format=form)["param"]).startswith("response_format")


def test_stream_options_are_for_streams() -> None:
    assert chat(stream=True, stream_options={"include_usage": True}).include_usage
    assert "only allowed when stream is true" in str(refused(chat, stream_options={"include_usage": True})["message"])


def test_a_completion_has_its_own_names_and_defaults() -> None:
    asked = text(prompt=["a", "b"], stop="END", user="u")
    assert [r.text for r in asked.requests] == ["a", "b"]
    assert {(r.max_tokens, r.stop, r.tags["user"]) for r in asked.requests} == {(16, ("END",), "u")}
    theirs = set(typing.get_type_hints(CompletionCreateParamsNonStreaming))
    read = {"model", "prompt", "max_tokens", "temperature", "n", "seed", "stop", "user", "stream", "stream_options"}
    assert theirs <= read | {"logprobs"} | COMPLETION_IGNORED | set(COMPLETION_REFUSED)
    assert "token ids" in str(refused(text, prompt=[1, 2])["message"])
    assert refused(text, echo=True)["code"] == "unsupported_parameter"
    assert refused(text, messages=[USER])["code"] == "unknown_parameter"
    assert text(echo=False, best_of=1) == text()


def test_a_true_is_not_the_number_one() -> None:
    assert refused(text, best_of=True)["code"] == "unsupported_parameter"
    assert refused(text, echo=0)["code"] == "unsupported_parameter"
