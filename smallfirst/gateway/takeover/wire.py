"""Answers as the upstream would send them: chat completions, responses, completions and messages, whole or streamed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from smallfirst.traffic.messages import Answer

Json = dict[str, Any]
_PREFIXES = {"chat/completions": "chatcmpl-", "responses": "resp_", "completions": "cmpl-", "messages": "msg_"}


class Usage(NamedTuple):
    """Tokens that the small model read and wrote."""

    prompt: int
    completion: int


class Reply(NamedTuple):
    """One answer to one request."""

    id: str
    route: str
    """As `answerable.route_of` names it."""
    body: Json
    answer: Answer
    usage: Usage
    model: str
    """Model name that the response carries."""
    fingerprint: str
    """`system_fingerprint` of chat completions: it tells the small model's answers from the upstream's."""
    created: int
    """Seconds since 1970."""

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def content_type(self) -> str:
        return "text/event-stream; charset=utf-8" if self.streamed else "application/json"

    def chunks(self) -> tuple[bytes, ...]:
        """Return the response's body: one piece, or one for each event of a stream."""
        write, stream = _ROUTES[self.route]
        whole = write(self)
        return tuple(stream(self, whole)) if self.streamed else (_json(whole).encode(),)


def new_id(route: str) -> str:
    """Return a fresh id as the route's responses have it."""
    return _PREFIXES[route] + secrets.token_hex(14)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _data(value: Json) -> bytes:
    return f"data: {_json(value)}\n\n".encode()


def _event(kind: str, **values: Any) -> bytes:
    return f"event: {kind}\n".encode() + _data({"type": kind, **values})


def _tool_calls(reply: Reply) -> list[Json]:
    return [
        {"id": f"call_{reply.id[-20:]}{i}", "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for i, c in enumerate(reply.answer.tool_calls)
    ]


def _usage(reply: Reply) -> Json:
    read, written = reply.usage
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _chat(reply: Reply) -> Json:
    calls = _tool_calls(reply)
    message: Json = {"role": "assistant", "content": None if calls else reply.answer.text}
    message |= {"tool_calls": calls} if calls else {}
    message |= {"refusal": None, "annotations": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.answer.finish_reason}
    return {**_head(reply, "chat.completion"), "choices": [choice], "usage": _usage(reply)} | _fingerprint(reply)


def _head(reply: Reply, kind: str) -> Json:
    return {"id": reply.id, "object": kind, "created": reply.created, "model": reply.model}


def _fingerprint(reply: Reply) -> Json:
    return {"service_tier": "default", "system_fingerprint": reply.fingerprint}


def _with_usage(reply: Reply) -> bool:
    options = reply.body.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def _chunks(reply: Reply, head: Json, choices: Iterable[Json], usage: Json) -> Iterator[bytes]:
    """Yield a chunk for each choice, the usage if it is asked for, and the mark of the end."""
    more = {"usage": None} if _with_usage(reply) else {}
    for choice in choices:
        yield _data({**head, "choices": [choice], **more})
    if more:
        yield _data({**head, "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def _chat_stream(reply: Reply, whole: Json) -> Iterator[bytes]:
    head, calls = _head(reply, "chat.completion.chunk") | _fingerprint(reply), _tool_calls(reply)
    deltas: list[Json] = [{"role": "assistant", "content": None if calls else "", "refusal": None}]
    for i, call in enumerate(calls):
        named = {"name": call["function"]["name"], "arguments": ""}
        deltas.append({"tool_calls": [{**call, "index": i, "function": named}]})
        deltas.append({"tool_calls": [{"index": i, "function": {"arguments": call["function"]["arguments"]}}]})
    deltas += [] if calls else [{"content": reply.answer.text}]
    choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas]
    last = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": reply.answer.finish_reason}
    yield from _chunks(reply, head, [*choices, last], whole["usage"])


def _completion(reply: Reply) -> Json:
    choice = {"text": reply.answer.text, "index": 0, "logprobs": None, "finish_reason": reply.answer.finish_reason}
    head = _head(reply, "text_completion")
    return {**head, "choices": [choice], "usage": _usage(reply), "system_fingerprint": reply.fingerprint}


def _completion_stream(reply: Reply, whole: Json) -> Iterator[bytes]:
    head, (choice,) = _head(reply, "text_completion"), whole["choices"]
    yield from _chunks(reply, head, [{**choice, "finish_reason": None}, {**choice, "text": ""}], whole["usage"])


def _responses(reply: Reply) -> Json:
    body, (read, written) = reply.body, reply.usage
    asked: Json = {name: body.get(name) for name in ("instructions", "max_output_tokens", "user", "safety_identifier")}
    asked |= {name: body.get(name, value) for name, value in _RESPONSE_DEFAULTS.items()}
    usage = {"input_tokens": read, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": written}
    usage |= {"output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": read + written}
    return {
        "id": reply.id,
        "object": "response",
        "created_at": reply.created,
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": reply.model,
        "output": _output(reply),
        "previous_response_id": None,
        **asked,
        "usage": usage,
    }


_RESPONSE_DEFAULTS: Json = {
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "metadata": {},
}


def _output(reply: Reply) -> list[Json]:
    tail = reply.id.removeprefix(_PREFIXES["responses"])
    if reply.answer.tool_calls:
        return [
            {
                "id": f"fc_{tail}{i}",
                "type": "function_call",
                "status": "completed",
                "call_id": call["id"],
                **call["function"],
            }
            for i, call in enumerate(_tool_calls(reply))
        ]
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": reply.answer.text}
    return [{"id": f"msg_{tail}", "type": "message", "status": "completed", "role": "assistant", "content": [part]}]


def _responses_stream(reply: Reply, whole: Json) -> Iterator[bytes]:
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    events: list[tuple[str, Json]] = [("response.created", {"response": begun})]
    events.append(("response.in_progress", {"response": begun}))
    for index, item in enumerate(whole["output"]):
        place = {"output_index": index}
        of_item = {**place, "item_id": item["id"]}
        empty: Json = {"content": []} if item["type"] == "message" else {"arguments": ""}
        events.append(("response.output_item.added", {**place, "item": {**item, "status": "in_progress", **empty}}))
        if item["type"] == "message":
            events += _text_events({**of_item, "content_index": 0}, item["content"][0])
        else:
            said = item["arguments"]
            events.append(("response.function_call_arguments.delta", {**of_item, "delta": said}))
            events.append(
                ("response.function_call_arguments.done", {**of_item, "arguments": said, "name": item["name"]})
            )
        events.append(("response.output_item.done", {**place, "item": item}))
    events.append(("response.completed", {"response": whole}))
    for number, (kind, values) in enumerate(events):
        yield _event(kind, **values, sequence_number=number)


def _text_events(place: Json, part: Json) -> list[tuple[str, Json]]:
    said = part["text"]
    return [
        ("response.content_part.added", {**place, "part": {**part, "text": ""}}),
        ("response.output_text.delta", {**place, "delta": said, "logprobs": []}),
        ("response.output_text.done", {**place, "text": said, "logprobs": []}),
        ("response.content_part.done", {**place, "part": part}),
    ]


def _messages(reply: Reply) -> Json:
    content: list[Json] = [
        {"type": "tool_use", "id": f"toolu_{reply.id[-20:]}{i}", "name": c.name, "input": json.loads(c.arguments)}
        for i, c in enumerate(reply.answer.tool_calls)
    ] or [{"type": "text", "text": reply.answer.text}]
    reason = {"stop": "end_turn", "tool_calls": "tool_use"}.get(reply.answer.finish_reason, reply.answer.finish_reason)
    usage = {"input_tokens": reply.usage.prompt, "output_tokens": reply.usage.completion}
    usage |= {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    head = {"id": reply.id, "type": "message", "role": "assistant", "model": reply.model, "content": content}
    return {**head, "stop_reason": reason, "stop_sequence": None, "usage": usage}


def _messages_stream(reply: Reply, whole: Json) -> Iterator[bytes]:
    begun = {**whole, "content": [], "stop_reason": None, "usage": {**whole["usage"], "output_tokens": 0}}
    yield _event("message_start", message=begun)
    for index, block in enumerate(whole["content"]):
        if block["type"] == "text":
            empty: Json = {**block, "text": ""}
            delta: Json = {"type": "text_delta", "text": block["text"]}
        else:
            empty = {**block, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": reply.answer.tool_calls[index].arguments}
        yield _event("content_block_start", index=index, content_block=empty)
        yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    ended = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield _event("message_delta", delta=ended, usage={"output_tokens": reply.usage.completion})
    yield _event("message_stop")


_ROUTES: dict[str, tuple[Callable[[Reply], Json], Callable[[Reply, Json], Iterator[bytes]]]] = {
    "chat/completions": (_chat, _chat_stream),
    "responses": (_responses, _responses_stream),
    "completions": (_completion, _completion_stream),
    "messages": (_messages, _messages_stream),
}
"""How an answer is written on a route: whole, and as a stream."""
