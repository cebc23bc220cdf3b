"""Anthropic's messages: read an answer, put a stream's events together, write it whole or as events."""

from __future__ import annotations

import json
from collections.abc import Iterator

from smallfirst.traffic.wire.messages import Answer, Json, Reply, ToolCall, canonical, event, objects

_REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
_BLOCK_PARTS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}


def read_answer(response: Json) -> Answer | None:
    """Return the texts of all blocks and the calls; None for a body without content."""
    if not isinstance(response.get("content"), list):
        return None
    parts = objects(response["content"])
    calls = tuple(
        ToolCall(str(part.get("name")), canonical(part.get("input")))
        for part in parts
        if part.get("type") == "tool_use"
    )
    reason = str(response.get("stop_reason") or "end_turn")
    text = "".join(str(part.get("text", "")) for part in parts if part.get("type") == "text")
    return Answer(text, calls, _REASONS.get(reason, reason))


def assemble(events: list[Json]) -> Json:
    """Return the message that events amount to."""
    message: Json = {}
    blocks: dict[int, Json] = {}
    for one in events:
        kind, delta = one.get("type"), one.get("delta") or {}
        if kind == "message_start":
            message = dict(one["message"])
        elif kind == "content_block_start":
            blocks[one["index"]] = dict(one["content_block"])
        elif kind == "content_block_delta":
            block = blocks[one["index"]]
            if delta.get("type") == "input_json_delta":
                block["_json"] = block.get("_json", "") + delta["partial_json"]
            elif (part := _BLOCK_PARTS.get(delta.get("type", ""))) is not None:
                block[part] = block.get(part, "") + delta[part]
        elif kind == "message_delta":
            message |= {key: value for key, value in delta.items() if value is not None}
            message["usage"] = {**(message.get("usage") or {}), **(one.get("usage") or {})}
    for block in blocks.values():
        if (text := block.pop("_json", "")) != "":
            block["input"] = json.loads(text)
    return {**message, "content": [blocks[index] for index in sorted(blocks)]}


def write(reply: Reply) -> Json:
    """Return the message."""
    content: list[Json] = [
        {"type": "tool_use", "id": f"toolu_{reply.id[-20:]}{i}", "name": c.name, "input": json.loads(c.arguments)}
        for i, c in enumerate(reply.answer.tool_calls)
    ] or [{"type": "text", "text": reply.answer.text}]
    reason = {"stop": "end_turn", "tool_calls": "tool_use"}.get(reply.answer.finish_reason, reply.answer.finish_reason)
    usage = {"input_tokens": reply.prompt_tokens, "output_tokens": reply.completion_tokens}
    usage |= {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    head = {"id": reply.id, "type": "message", "role": "assistant", "model": reply.model, "content": content}
    return {**head, "stop_reason": reason, "stop_sequence": None, "usage": usage}


def stream(reply: Reply, whole: Json) -> Iterator[bytes]:
    """Yield the message's events."""
    begun = {**whole, "content": [], "stop_reason": None, "usage": {**whole["usage"], "output_tokens": 0}}
    yield event("message_start", message=begun)
    for index, block in enumerate(whole["content"]):
        if block["type"] == "text":
            empty: Json = {**block, "text": ""}
            delta: Json = {"type": "text_delta", "text": block["text"]}
        else:
            empty = {**block, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": reply.answer.tool_calls[index].arguments}
        yield event("content_block_start", index=index, content_block=empty)
        yield event("content_block_delta", index=index, delta=delta)
        yield event("content_block_stop", index=index)
    ended = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield event("message_delta", delta=ended, usage={"output_tokens": reply.completion_tokens})
    yield event("message_stop")
