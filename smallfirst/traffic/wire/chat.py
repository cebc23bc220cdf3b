"""OpenAI's chat completions and completions: read an answer, put a stream's chunks together, write either way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from smallfirst.traffic.wire.messages import Answer, Json, Reply, ToolCall, data_line, function_calls, objects, text_of

_ONCE = frozenset({"id", "index", "name", "role", "type"})
"""Members of a piece that later pieces repeat and do not continue."""


def read_answer(response: Json) -> Answer | None:
    """Return the first choice; None where there is none."""
    choices = response.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict):
        return None
    reason = str(first.get("finish_reason") or "stop")
    message = first.get("message")
    if not isinstance(message, dict):
        text = first.get("text")
        return Answer(text, (), reason) if isinstance(text, str) else None
    if message.get("refusal"):
        return Answer(str(message["refusal"]), (), "refusal")
    calls = objects([call.get("function") for call in objects(message.get("tool_calls"))])
    named = tuple(ToolCall(str(call.get("name")), str(call.get("arguments"))) for call in calls)
    return Answer(text_of(message.get("content"))[0], named, reason)


def assemble(chunks: list[Json]) -> Json:
    """Return the body that chunks amount to: their choices have deltas (chat completions) or texts (completions)."""
    whole: Json = {}
    choices: dict[int, Json] = {}
    for chunk in chunks:
        for piece in chunk.pop("choices", None) or ():
            choice = choices.setdefault(piece.get("index", 0), {"index": piece.get("index", 0)})
            delta = piece.pop("delta", None)
            if delta is not None:
                _add(choice.setdefault("message", {"role": "assistant", "content": None}), delta)
            _add(choice, {key: value for key, value in piece.items() if key not in ("index", "finish_reason")})
            choice["finish_reason"] = piece.get("finish_reason") or choice.get("finish_reason")
        whole |= {key: value for key, value in chunk.items() if value is not None}
    whole["object"] = str(whole.get("object", "")).removesuffix(".chunk")
    for choice in choices.values():
        for call in choice.get("message", {}).get("tool_calls") or ():
            call.pop("index", None)
    return {**whole, "choices": [choices[index] for index in sorted(choices)]}


def _add(whole: Json, piece: Json) -> None:
    """Continue texts and lists; entries of a list with an `index` continue the entry of that index."""
    for key, value in piece.items():
        had = whole.get(key)
        if value is None or (had is not None and key in _ONCE):
            continue
        if isinstance(had, str) and isinstance(value, str):
            whole[key] = had + value
        elif isinstance(had, dict) and isinstance(value, dict):
            _add(had, value)
        elif isinstance(value, list):
            whole[key] = _continued(had if isinstance(had, list) else [], value)
        else:
            whole[key] = value


def _continued(had: list[Any], more: list[Any]) -> list[Any]:
    for entry in more:
        index = entry.get("index") if isinstance(entry, dict) else None
        found = next((one for one in had if index is not None and one.get("index") == index), None)
        if found is None:
            had.append(entry)
        else:
            _add(found, entry)
    return had


def write_chat(reply: Reply) -> Json:
    """Return a chat completion."""
    calls = function_calls(reply)
    message: Json = {"role": "assistant", "content": None if calls else reply.answer.text}
    message |= {"tool_calls": calls} if calls else {}
    message |= {"refusal": None, "annotations": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.answer.finish_reason}
    return {**_head(reply, "chat.completion"), "choices": [choice], "usage": _usage(reply), "service_tier": "default"}


def stream_chat(reply: Reply, whole: Json) -> Iterator[bytes]:
    """Yield the chunks of a chat completion."""
    head, calls = {**_head(reply, "chat.completion.chunk"), "service_tier": "default"}, function_calls(reply)
    deltas: list[Json] = [{"role": "assistant", "content": None if calls else "", "refusal": None}]
    for i, call in enumerate(calls):
        named = {"name": call["function"]["name"], "arguments": ""}
        deltas.append({"tool_calls": [{**call, "index": i, "function": named}]})
        deltas.append({"tool_calls": [{"index": i, "function": {"arguments": call["function"]["arguments"]}}]})
    deltas += [] if calls else [{"content": reply.answer.text}]
    choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas]
    last = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": reply.answer.finish_reason}
    yield from _chunks(reply, head, [*choices, last], whole["usage"])


def write_completion(reply: Reply) -> Json:
    """Return a completion."""
    choice = {"text": reply.answer.text, "index": 0, "logprobs": None, "finish_reason": reply.answer.finish_reason}
    return {**_head(reply, "text_completion"), "choices": [choice], "usage": _usage(reply)}


def stream_completion(reply: Reply, whole: Json) -> Iterator[bytes]:
    """Yield the chunks of a completion."""
    (choice,) = whole["choices"]
    pieces = [{**choice, "finish_reason": None}, {**choice, "text": ""}]
    yield from _chunks(reply, _head(reply, "text_completion"), pieces, whole["usage"])


def _chunks(reply: Reply, head: Json, choices: Iterable[Json], usage: Json) -> Iterator[bytes]:
    """Yield a chunk for each choice, the usage if it is asked for, and the mark of the end."""
    options = reply.body.get("stream_options")
    more = {"usage": None} if isinstance(options, dict) and options.get("include_usage") else {}
    for choice in choices:
        yield data_line({**head, "choices": [choice], **more})
    if more:
        yield data_line({**head, "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def _head(reply: Reply, kind: str) -> Json:
    named = {"id": reply.id, "object": kind, "created": reply.created, "model": reply.model}
    return {**named, "system_fingerprint": reply.fingerprint}


def _usage(reply: Reply) -> Json:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }
