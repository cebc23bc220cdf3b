"""Streams of four dialects make the body that is sent without streaming; compressed ones too, and garbage is none."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest

from smallfirst.traffic.gateway.http import read_response

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


def test_chat_chunks_make_the_completion_that_is_sent_without_streaming() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    events = (
        chunk(delta={"role": "assistant", "content": "", "refusal": None}),
        chunk(delta={"content": "Hel"}, logprobs={"content": [{"token": "Hel", "logprob": -0.1}]}),
        chunk(delta={"content": "lo"}, logprobs={"content": [{"token": "lo", "logprob": -0.2}]}),
        chunk(delta={}, finish_reason="stop"),
        {**chunk(), "choices": [], "usage": usage},
        "[DONE]",
    )
    logprobs = {"content": [{"token": "Hel", "logprob": -0.1}, {"token": "lo", "logprob": -0.2}]}
    message = {"role": "assistant", "content": "Hello"}
    assert read(stream(*events), STREAM_TYPE) == {
        "id": "c1",
        "object": "chat.completion",
        "created": 7,
        "model": "gpt-x",
        "usage": usage,
        "choices": [{"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}],
    }


def test_texts_of_two_choices_of_completions() -> None:
    pieces = [(0, "a", None), (1, "x", None), (0, "b", "stop"), (1, "y", "length")]
    events = [
        {"id": "t", "object": "text_completion", "choices": [{"index": i, "text": text, "finish_reason": reason}]}
        for i, text, reason in pieces
    ]
    found = read(stream(*events), STREAM_TYPE)
    assert found is not None
    assert [(c["text"], c["finish_reason"]) for c in found["choices"]] == [("ab", "stop"), ("xy", "length")]


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
        said({"role": "assistant", "content": "cut"}, reason="length"),
    ],
)
def test_openais_own_client_puts_the_same_together(events: list[dict[str, Any]]) -> None:
    from openai.lib.streaming.chat import ChatCompletionStreamState
    from openai.types.chat import ChatCompletionChunk

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
    assert ours is not None
    for choice in ours["choices"]:
        choice["message"] = {key: value for key, value in choice["message"].items() if value is not None}
    assert ours == theirs
