"""OpenAI's bodies become Requests within bounds, what cannot be done is refused by name, and answers fit its schema."""

import json
import typing
from typing import Any
from urllib.parse import unquote

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming as TextCreateParamsNonStreaming

from smallfirst.data.dataset import Message
from smallfirst.models.pricing import Charge, TokenUsage
from smallfirst.models.protocol import Completion, Request, ResponseFormat, Route, RouteStep
from smallfirst.serving.errors import ApiError
from smallfirst.serving.wire import (
    CHAT_IGNORED,
    CHAT_REFUSED,
    COMPLETION_IGNORED,
    COMPLETION_REFUSED,
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_VALUE,
    ParsedRequest,
    ResponseBuilder,
    check_json,
    check_schema,
    header_value,
    parse_chat,
    parse_completion,
    parse_json_object,
    raw_headers,
    sse_event,
)

USER = {"role": "user", "content": "hi"}


def chat(**body: object) -> ParsedRequest:
    """The chat in a body of these fields, one user message if none is given."""
    return parse_chat(json.dumps({"model": "m", "messages": [USER], **body}).encode(), max_messages=3)


def text(**body: object) -> ParsedRequest:
    return parse_completion(json.dumps({"model": "m", "prompt": "hi", **body}).encode())


@pytest.mark.parametrize("nothing", ["", " \n", "\u200b", [{"type": "text", "text": ""}]])
def test_a_text_without_anything_to_read_is_refused(nothing):
    system = {"role": "system", "content": "Sort the message."}
    assert refused(chat, messages=[system, {"role": "user", "content": nothing}])["param"] == "messages"
    if isinstance(nothing, str):
        assert refused(text, prompt=nothing)["code"] == "empty_text"


def refused(parse: typing.Callable[..., ParsedRequest], **body: object) -> dict[str, Any]:
    with pytest.raises(ApiError) as caught:
        parse(**body)
    assert caught.value.status == 400
    assert set(caught.value.body["error"]) == {"message", "type", "param", "code"}
    return caught.value.body["error"]


def test_a_plain_body_becomes_a_request_with_our_defaults() -> None:
    assert chat() == ParsedRequest(
        model="m",
        request=Request(messages=(Message(role="user", content="hi"),), max_tokens=256),
        stream=False,
        include_usage=False,
    )


def test_every_field_that_is_read_arrives() -> None:
    call = chat(
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
        request=Request(
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
        stream=True,
        include_usage=True,
    )


def test_every_parameter_of_the_openai_client_is_read_or_ignored_or_refused() -> None:
    read = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "seed"}
    read |= {"stop", "stream", "stream_options", "metadata", "user", "logprobs", "top_logprobs", "response_format"}
    theirs = set(typing.get_type_hints(CompletionCreateParamsNonStreaming))
    assert theirs <= read | CHAT_IGNORED | set(CHAT_REFUSED)
    assert not CHAT_IGNORED & set(CHAT_REFUSED)


@pytest.mark.parametrize("name", sorted(CHAT_IGNORED))
def test_parameters_without_effect_are_ignored(name: str) -> None:
    assert chat(**{name: "anything"}) == chat()


@pytest.mark.parametrize("name", sorted(set(CHAT_REFUSED) - {"tools"}))
def test_unsupported_parameters_are_refused_by_name_and_null_is_not(name: str) -> None:
    said = refused(chat, **{name: "something"})
    assert (said["param"], said["code"]) == (name, "unsupported_parameter")
    assert said["message"].startswith(f'"{name}" is not supported here: ')
    assert chat(**{name: None}) == chat()


def test_a_misspelt_parameter_gets_a_suggestion() -> None:
    assert refused(chat, temprature=0) == {
        "message": 'Unknown parameter: "temprature" — did you mean "temperature"?',
        "type": "invalid_request_error",
        "param": "temprature",
        "code": "unknown_parameter",
    }
    assert refused(chat, zzz=0)["message"] == 'Unknown parameter: "zzz".'


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"messages": []}, "messages", "messages: List should have at least 1 item"),
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
        ({"stop": ["a"] * 5}, "stop", "stop: List should have at most 4 items"),
        ({"n": 2}, "n", '"n" is not supported here: a request has one answer'),
        ({"messages": [{"content": [{}] * 513}] * 2}, "messages", "1026 parts in messages; at most 1024"),
        ({"stream_options": {"include_usage": True}}, None, "stream_options is only allowed when stream is true"),
        ({"top_logprobs": 3}, None, "top_logprobs is only allowed when logprobs is true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "top_logprobs: Input should be less than"),
        ({"metadata": {str(i): "v" for i in range(17)}}, "metadata", "metadata: Dictionary should have at most 16"),
        ({"stop": [""]}, "stop", "stop: each stop text must have 1 to 256 characters"),
    ],
)
def test_a_broken_rule_names_its_field(body: dict[str, object], param: str, message: str) -> None:
    said = refused(chat, **body)
    assert said["message"].startswith(message)
    assert said["param"] == param


def test_what_was_sent_is_not_repeated_in_the_refusal() -> None:
    assert "secret" not in refused(chat, messages=[{"role": "secret", "content": "secret"}])["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[1]", b"[" * 100_000, b'{"seed": NaN}', b'{"model": "\\ud800"}']
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat(body, max_messages=3)
    assert caught.value.code == "invalid_json"


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
    whole = REPLY.whole(ROUTED)
    told = whole["smallfirst"]
    assert (whole["id"], whole["model"], whole["usage"]["total_tokens"]) == ("chatcmpl-1", "routed", 10)
    assert (told["route"], told["certified"], told["confidence"], told["threshold"]) == ("small", True, 0.9, 0.8)
    assert told["steps"] == [
        {"stage": "small", "decision": "kept", "why": "sure enough", "score": 0.9, "threshold": 0.8}
    ]
    assert [line["usd"] for line in told["charges"]] == [told["cost_usd"]] == [0.00002]
    ChatCompletion.model_validate(REPLY.whole(ROUTED), strict=True)


def test_places_are_asked_for_by_name() -> None:
    assert not chat().places
    assert chat(smallfirst={"places": True}).places
    assert refused(chat, smallfirst={"wher": True})["param"].startswith("smallfirst.wher")
    assert refused(chat, smallfirst={"places": 1})["param"] == "smallfirst.places"


def test_usage_names_what_the_large_models_provider_had_cached() -> None:
    line = Charge(model="big", usd=0.1, tokens=TokenUsage(prompt_tokens=9, cached_tokens=8))
    draft = Charge(model="small", usd=0.1, purpose="draft", tokens=TokenUsage(prompt_tokens=9, cached_tokens=3))
    answer = ROUTED.with_charges((draft, line))
    assert REPLY.whole(answer)["usage"]["prompt_tokens_details"] == {"cached_tokens": 8}


def test_chunks_fit_the_openai_schema_and_the_last_one_explains() -> None:
    last, usage = REPLY.last(ROUTED, include_usage=True), REPLY.usage_chunk(ROUTED)
    chunks = [REPLY.opening(include_usage=True), REPLY.piece("ref", include_usage=True), last, usage]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert last["smallfirst"]["route"] == "small"
    assert usage["choices"] == []
    assert "usage" not in REPLY.piece("ref", include_usage=False)


def test_an_event_is_one_line_for_every_client() -> None:
    assert sse_event({"a": "x\u2028\ny"}) == b'data: {"a":"x\\u2028\\ny"}\n\n'


def test_metadata_and_user_become_tags() -> None:
    assert chat(metadata={"tier": "gold"}, user="u-1").request.tags == {"tier": "gold", "user": "u-1"}
    assert chat().request.tags == {}


def test_token_probabilities_are_asked_for_by_two_names() -> None:
    assert chat().request.logprobs is None
    assert chat(logprobs=True).request.logprobs == 0
    assert chat(logprobs=True, top_logprobs=4).request.logprobs == 4
    assert text(logprobs=2).request.logprobs == 2
    assert refused(text, logprobs=6)["param"] == "logprobs"


def test_the_form_of_an_answer_arrives_whole() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    given = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert chat(response_format=given).request.response_format == ResponseFormat(
        kind="json_schema", name="x", json_schema=schema, strict=True
    )
    assert chat(response_format={"type": "json_object"}).request.response_format == ResponseFormat(kind="json_object")
    assert chat(response_format={"type": "text"}).request.response_format is None


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


def test_a_completion_has_its_own_names_and_defaults() -> None:
    asked = text(prompt=["a"], stop="END", user="u").request
    assert (asked.text, asked.max_tokens, asked.stop, asked.tags["user"]) == ("a", 16, ("END",), "u")
    theirs = set(typing.get_type_hints(TextCreateParamsNonStreaming))
    read = {"model", "prompt", "max_tokens", "temperature", "seed", "stop", "user", "stream", "stream_options"}
    assert theirs <= read | {"logprobs"} | COMPLETION_IGNORED | set(COMPLETION_REFUSED)
    for prompt in ([1, 2], [[1]], ["a", "b"], []):
        assert "one prompt a request" in refused(text, prompt=prompt)["message"]
    for name in ("echo", "best_of", "n"):
        assert refused(text, **{name: True})["code"] == "unsupported_parameter"  # a true is not the number one
    assert refused(text, messages=[USER])["code"] == "unknown_parameter"
    assert text(echo=False, best_of=1, n=1) == text()


def nested(depth: int, inner: Any = 1) -> Any:
    for _ in range(depth):
        inner = [inner]
    return inner


def beyond(value: Any) -> tuple[str, str | None]:
    with pytest.raises(ApiError) as caught:
        check_json(value)
    assert caught.value.status == 400
    said = caught.value.body["error"]
    return said["message"], said["param"]


@pytest.mark.parametrize("value", [
    {}, {"a": nested(MAX_DEPTH - 1)}, [0] * MAX_ELEMENTS, {"a": [0] * (MAX_ELEMENTS - 1)},
    {str(n): 0 for n in range(1024)}, {"k" * 256: -(2**64) + 1},
    {"a": [2**64 - 1, 0.0, -1e308, None, True, "\x00"]},
])  # fmt: skip
def test_what_is_within_the_bounds_passes(value: Any) -> None:
    check_json(value)


@pytest.mark.parametrize(
    ("value", "message", "param"),
    [
        ({"a": nested(MAX_DEPTH)}, "a[0][0][0][0][0][0][0]: nested more than 64 deep.", "a[0][0][0][0][0][0][0]"),
        ([0] * (MAX_ELEMENTS + 1), "The body: more than 50,000 values in all.", None),
        ({"a": [[0] * 30_000, [0] * 30_000]}, "The body: more than 50,000 values in all.", None),
        ({"a": {str(n): 0 for n in range(1025)}}, "a: more than 1,024 names in one object.", "a"),
        ({"m": [{"k" * 257: 0}]}, "m[0]: a name of more than 256 characters.", "m[0]"),
        ({"a": [0, 2**64]}, "a[1]: an integer of more than 64 bits.", "a[1]"),
        ({"a": {"b": float("inf")}}, "a.b: a number that is too large.", "a.b"),
        ({"a": float("nan")}, "a: a number that is too large.", "a"),
    ],
)
def test_the_place_beyond_a_bound_is_named(value: Any, message: str, param: str | None) -> None:
    assert beyond(value) == (message, param)


def test_bodies_nested_10_000_deep_are_refused_by_the_parser_already() -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        for body in (opening * 10_000 + "1" + closing * 10_000, opening * 200_000):
            with pytest.raises(ApiError, match="not JSON: recursion limit exceeded"):
                parse_json_object(f'{{"a": {body}}}'.encode())


def fields(**inside: Any) -> dict[str, Any]:
    return {"type": "object", "properties": inside, "required": list(inside)}


STRING = {"type": "string"}


def test_a_usual_schema_passes_with_local_references_and_a_short_pattern() -> None:
    tree = {**fields(value=STRING), "properties": {"value": STRING, "next": {"$ref": "#/$defs/tree"}}}
    check_schema(
        {
            **fields(tree={"$ref": "#/$defs/tree"}, code={**STRING, "pattern": "^[A-Z]{3}[0-9]+$"}),
            "$defs": {"tree": tree},
        }
    )


def doubling(n: int) -> dict[str, Any]:
    """Each definition names the next one twice: 2**n places when written out."""
    defs = {f"d{i}": fields(a={"$ref": f"#/$defs/d{i + 1}"}, b={"$ref": f"#/$defs/d{i + 1}"}) for i in range(n)}
    return {**fields(x={"$ref": "#/$defs/d0"}), "$defs": {**defs, f"d{n}": STRING}}


@pytest.mark.parametrize(
    ("schema", "rule"),
    [
        (fields(a={"$ref": "http://169.254.169.254/x"}), "nothing is fetched"),
        (doubling(14), "places for values"),
        (fields(a={**STRING, "pattern": "a" * 2_000}), "pattern of 2,000 characters"),
        (fields(a={"enum": [f"value {n}" for n in range(9_000)]}), "bytes as JSON; at most 32,768"),
        ({"allOf": [{} for _ in range(1_001)]}, "1,002 objects; at most 1,000"),
        ({"type": "string"}, "root must be an object"),
        (nested(70, {}), "nested more than 64 deep"),
    ],
)
def test_schemas_that_fetch_never_end_or_are_too_large_are_refused(schema: Any, rule: str) -> None:
    with pytest.raises(ApiError) as caught:
        check_schema(schema)
    assert rule in str(caught.value)
    assert caught.value.status == 400
    assert len(str(caught.value)) < 2_200


def test_a_refusal_names_where_the_schema_stands() -> None:
    with pytest.raises(ApiError) as caught:
        check_schema(fields(a={"type": "integre"}))
    assert caught.value.body["error"]["param"] == "response_format.json_schema.schema"
    assert caught.value.code == "invalid_schema"
    assert str(caught.value).startswith("response_format.json_schema.schema: properties.a.type: 'integre'")


texts = st.text(st.characters(codec=None), max_size=1200) | st.text(" \t\n\r\v\f\0%;aé…\ud800", max_size=1200)


@given(texts)
@example("echo answer 0.5; " * 60)
@example(" " * 1000)
@example("a" * 899 + " b")
@example("é" * 900)
@example("why\r\nx-evil: 2; ok")
def test_every_text_makes_a_value_that_h11_takes(text: str) -> None:
    value = header_value(text)
    head = h11.Response(status_code=200, headers=raw_headers({"x-why": text}), reason="OK")
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    server.next_event()
    sent = server.send(head)
    assert sent is not None
    assert f"\r\nx-why: {value}\r\n".encode("ascii") in sent
    assert len(value) <= MAX_VALUE
    assert all(32 <= ord(letter) < 127 for letter in value)
    readable = text.encode(errors="replace").decode()
    if value.endswith("..."):
        assert readable.strip(" ").startswith(unquote(value[:-3], errors="strict"))
    else:
        assert unquote(value, errors="strict") == readable.strip(" ")
