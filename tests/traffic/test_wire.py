"""Four routes read as one form, streams as their whole body, and OpenAI's SDK reads the answers, whole and streamed."""

import gzip
import json
import zlib
from typing import Any

import httpx
import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from smallfirst.traffic.gateway.http import read_response
from smallfirst.traffic.wire import (
    ModelAnswer,
    Prompt,
    Reply,
    ToolCall,
    Turn,
    new_id,
    read_answer,
    read_prompt,
    route_of,
    write_reply,
)

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


@pytest.mark.parametrize("kind", ["image_url", "file", "thinking"])
def test_media_and_what_the_api_has_stored_are_named_and_left_out(kind):
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": kind, "text": "My card is lost", kind: {"url": "data:"}},
    ]
    found = read_prompt(CHAT, {"messages": [{"role": "user", "content": parts}]})
    assert (found.turns, found.has_media) == ((Turn("user", "What is this?"),), True)
    for more in ({"previous_response_id": "resp_1"}, {"conversation": "conv_1"}, {"prompt": {"id": "pmpt_1"}}):
        assert read_prompt(RESPONSES, {"input": "My card is lost", **more}).has_media


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


def test_a_deployment_is_the_model_and_embeddings_and_malformed_bodies_ask_nothing():
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "a"}]}
    assert read_prompt("/v1/deployments/org%2Fdesk/chat/completions", body).model == "org/desk"
    assert read_prompt("/v1/embeddings", {"input": ["a", "b"]}) is None
    assert read_prompt(CHAT, {"messages": "no"}) == Prompt("", (Turn("user", "no"),))
    assert read_prompt(CHAT, {"messages": [3]}) is None
    assert read_prompt(CHAT, {}) is None
    asked = (CHAT, RESPONSES, MESSAGES, COMPLETIONS, "/v1/embeddings", "/v1/responses/resp_1")
    assert [route_of(path) for path in asked] == ["chat/completions", "responses", "messages", None, None, None]


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
    assert read_answer(route, response) == ModelAnswer("lost")


def test_tool_calls_and_refusals():
    call = {"type": "function", "function": {"name": "file", "arguments": '{"label": "lost"}'}}
    chat = {"choices": [{"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    assert read_answer(CHAT, chat) == ModelAnswer("", (ToolCall("file", '{"label": "lost"}'),), "tool_calls")
    refused = {"choices": [{"message": {"content": None, "refusal": "no"}, "finish_reason": "stop"}]}
    assert read_answer(CHAT, refused) == ModelAnswer("no", (), "refusal")
    assert read_answer(CHAT, {"error": {"message": "busy"}}) is None


# Written

LABEL = ModelAnswer("Intent: lost card")
CALL = ModelAnswer("", (ToolCall("file", '{"queue": "cards"}'),), "tool_calls")


def written(route: str, answer: ModelAnswer, **body: object) -> tuple[str, bytes]:
    return write_reply(route, Reply(new_id(route), body, answer, 7, 2, "gpt-large", "fp_1", 1_700_000_000))


def client(route: str, answer: ModelAnswer) -> openai.OpenAI:
    """The SDK in front of a server that answers as the small model would."""

    def serve(request: httpx.Request) -> httpx.Response:
        content_type, content = written(route, answer, **json.loads(request.content))
        return httpx.Response(200, headers={"content-type": content_type}, content=content)

    return openai.OpenAI(
        api_key="-", base_url="http://small/v1", http_client=httpx.Client(transport=httpx.MockTransport(serve))
    )


@pytest.mark.parametrize("answer", [LABEL, CALL])
def test_a_chat_is_the_same_whole_and_streamed(answer):
    chat = client("chat/completions", answer).chat.completions
    whole = chat.create(model="m", messages=[])
    assert whole.id.startswith("chatcmpl-")
    assert (whole.choices[0].message.content or "") == answer.text
    assert whole.choices[0].finish_reason == answer.finish_reason
    assert whole.usage.total_tokens == 9
    chunks = list(chat.create(model="m", messages=[], stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == answer.text
    said = [call for delta in deltas for call in delta.tool_calls or ()]
    functions = [call.function for call in said if call.function]
    assert [function.name for function in functions if function.name] == [call.name for call in answer.tool_calls]
    assert "".join(f.arguments or "" for f in functions) == "".join(call.arguments for call in answer.tool_calls)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == answer.finish_reason
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    plain = list(chat.create(model="m", messages=[], stream=True))
    assert len(plain) == len(chunks) - 1


@pytest.mark.parametrize("answer", [LABEL, CALL])
def test_a_response_is_the_same_whole_and_streamed(answer):
    responses = client("responses", answer).responses
    whole = responses.create(model="m", input="x", instructions="sort")
    assert whole.instructions == "sort"
    assert read_answer("/v1/responses", whole.model_dump()) == answer
    assert whole.output_text == answer.text
    events = list(responses.create(model="m", input="x", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert read_answer("/v1/responses", events[-1].response.model_dump()) == answer
    said = [event.delta for event in events if event.type.endswith(".delta")]
    assert said == [answer.text or answer.tool_calls[0].arguments]


@pytest.mark.parametrize("answer", [LABEL, CALL])
def test_a_message_is_the_same_whole_and_streamed(answer):
    whole = json.loads(written("messages", answer)[1])
    read = read_answer("/v1/messages", whole)
    assert (read.text, read.finish_reason) == (answer.text, answer.finish_reason)
    sent = written("messages", answer, stream=True)[1].decode()
    events = [piece.split("\ndata: ") for piece in sent.removesuffix("\n\n").split("\n\n")]
    kinds = [kind.removeprefix("event: ") for kind, _ in events]
    blocks = (f"content_block_{part}" for part in ("start", "delta", "stop"))
    assert kinds == ["message_start", *blocks, "message_delta", "message_stop"]
    (delta,) = (json.loads(data)["delta"] for kind, data in events if kind.endswith("content_block_delta"))
    assert delta.get("text", delta.get("partial_json")) == (answer.text or answer.tool_calls[0].arguments)


# Streams

JSON_TYPE = (b"content-type", b"application/json")
STREAM_TYPE = (b"content-type", b"text/event-stream; charset=utf-8")


def stream(*events: dict[str, Any] | str, named: bool = False) -> bytes:
    lines = []
    for event in events:
        if named and isinstance(event, dict):
            lines.append(f"event: {event['type']}")
        lines.append(f"data: {json.dumps(event) if isinstance(event, dict) else event}\n")
    return ("\n".join(lines) + "\n").encode()


def read(body: bytes, *headers: tuple[bytes, bytes]) -> dict[str, Any] | None:
    return read_response(list(headers), body)


def chunk(**choice: Any) -> dict[str, Any]:
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "gpt-x"}
    return {**head, "choices": [{"index": 0, "logprobs": None, "finish_reason": None, **choice}]}


def test_a_stream_of_responses_ends_with_the_whole() -> None:
    whole = {"id": "r", "object": "response", "status": "completed", "output": []}
    created = {"type": "response.created", "response": {**whole, "status": "in_progress"}}
    assert read(stream(created, named=True), STREAM_TYPE) is None
    completed = {"type": "response.completed", "response": whole}
    assert read(stream(created, completed, named=True).replace(b"\n", b"\r\n"), STREAM_TYPE) == whole


def test_blocks_of_messages() -> None:
    def delta(index: int, **more: Any) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": index, "delta": more}

    start = {"id": "m", "role": "assistant", "content": [], "stop_reason": None, "usage": {"input_tokens": 4}}
    events = (
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        delta(0, type="text_delta", text="He"),
        delta(0, type="text_delta", text="y"),
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "name": "t", "input": {}}},
        delta(1, type="input_json_delta", partial_json='{"a":'),
        delta(1, type="input_json_delta", partial_json="1}"),
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    )
    assert read(stream(*events, named=True), STREAM_TYPE) == {
        "id": "m",
        "role": "assistant",
        "content": [{"type": "text", "text": "Hey"}, {"type": "tool_use", "name": "t", "input": {"a": 1}}],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 4, "output_tokens": 9},
    }


@pytest.mark.parametrize(("coding", "packed"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
def test_compressed_answers_are_read(coding: bytes, packed: Any) -> None:
    body = packed(b'{"a": 1}')
    assert read(body, JSON_TYPE, (b"content-encoding", coding)) == {"a": 1}
    assert read(body[:-9], JSON_TYPE, (b"content-encoding", coding)) is None


@pytest.mark.parametrize(
    "body", [b"", b"garbage", b"\xff\xfe", b"[1]", b"data: {]\n\n", b"data: 7\n\n", b'data: {"type"\n']
)
def test_garbage_is_no_answer(body: bytes) -> None:
    assert read(body, JSON_TYPE) is None
    assert read(body, STREAM_TYPE) is None
    assert read(b"{}", JSON_TYPE, (b"content-encoding", b"br")) is None


def said(*deltas: dict[str, Any], reason: str = "stop", **more: Any) -> list[dict[str, Any]]:
    return [*(chunk(delta=delta, **more) for delta in deltas), chunk(delta={}, finish_reason=reason)]


def calls(*pieces: tuple[int, str, str]) -> list[dict[str, Any]]:
    return [
        {"tool_calls": [{"index": i, **({"id": name, "type": "function"} if name else {}), "function": function}]}
        for i, name, arguments in pieces
        for function in [{"arguments": arguments} | ({"name": name} if name else {})]
    ]


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
TOKEN = {"token": "t", "logprob": -1.5, "bytes": [1], "top_logprobs": []}


@pytest.mark.parametrize(
    "events",
    [
        said({"role": "assistant", "content": ""}, {"content": "Grüße"}, {"content": " 😀"}),
        said({"role": "assistant", "content": None}, {"refusal": "I "}, {"refusal": "cannot."}),
        said({"role": "assistant", "content": "a"}, {"content": "b"}, logprobs={"content": [TOKEN]}),
        said(
            {"role": "assistant"},
            *calls((0, "look", ""), (0, "", '{"a"'), (0, "", ": 1}"), (1, "buy", "{}")),
            reason="tool_calls",
        ),
        [*said({"role": "assistant", "content": "cut"}, reason="length"), {**chunk(), "choices": [], "usage": USAGE}],
    ],
)
def test_openais_own_client_puts_the_same_together(events: list[dict[str, Any]]) -> None:
    state = ChatCompletionStreamState()
    for event in events:
        state.handle_chunk(ChatCompletionChunk.model_validate(event))
    theirs = state.current_completion_snapshot.model_dump(exclude_none=True)
    for choice in theirs["choices"]:
        choice.pop("parsed", None)
        for call in choice["message"].get("tool_calls", ()):
            call.pop("index", None)
            call["function"].pop("parsed_arguments", None)
    ours = read(stream(*events, "[DONE]"), STREAM_TYPE)
    for choice in ours["choices"]:
        choice["message"] = {key: value for key, value in choice["message"].items() if value is not None}
    assert ours == theirs
