"""An upstream for benchmarks/compatibility/proxy_clients.py: plain answers, tool calls and JSON under a schema.

    python -m benchmarks.compatibility.clients_upstream PORT RECORDING

It speaks chat completions, responses, embeddings and Anthropic's messages, streamed or not: the first tool is called
once with arguments made from its schema, a required format is filled in, and everything else is on its way.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.compatibility.sdk_upstream import PAUSE_S, Asked, read

TEXT = "It is on its way."
Json = dict[str, Any]


def filled(schema: Json, root: Json) -> Any:
    """A value under a JSON schema."""
    if "$ref" in schema:
        return filled(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "enum" in schema or "const" in schema:
        return schema["enum"][0] if "enum" in schema else schema["const"]
    if "anyOf" in schema:
        return filled(schema["anyOf"][0], root)
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        return {name: filled(part, root) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [filled(schema.get("items", {"type": "string"}), root)]
    return {"integer": 3, "number": 2.5, "boolean": True}.get(str(kind), "Ada")


class Reply:
    """What is answered: a text, or a call of a tool."""

    def __init__(self, schema: Json | None, tool: str | None) -> None:
        self.tool = tool
        self.json = json.dumps(filled(schema, schema)) if schema is not None else ""
        self.text = "" if tool else self.json or TEXT

    @property
    def pieces(self) -> list[str]:
        """The text, or the tool's arguments, word by word."""
        return (self.json if self.tool else self.text).replace(" ", " \0").split("\0")


def reply_to(body: Json, turns: list[Json], tools: list[Json], asked_format: Json | None) -> Reply:
    """The reply to a request: a tool is called unless the last turn has a result of it."""
    had = any(_is_result(turn) for turn in turns)
    if tools and not had:
        tool = tools[0].get("function", tools[0])
        return Reply(tool.get("parameters") or tool.get("input_schema") or {}, tool["name"])
    found = asked_format or {}
    schema = found.get("schema") or found.get("json_schema", {}).get("schema")
    return Reply(schema, None)


def _is_result(turn: Json) -> bool:
    content = turn.get("content")
    blocks = content if isinstance(content, list) else []
    return (
        turn.get("role") == "tool"
        or turn.get("type") == "function_call_output"
        or any(isinstance(block, dict) and block.get("type") == "tool_result" for block in blocks)
    )


def chat(body: Json) -> Json | list[Json]:
    """A chat completion, or its chunks."""
    reply = reply_to(body, body["messages"], body.get("tools") or [], body.get("response_format"))
    head = {"id": "chatcmpl-1", "created": 1790000000, "model": body["model"]}
    usage = {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}
    reason = "tool_calls" if reply.tool else "stop"
    if not body.get("stream"):
        message: Json = {"role": "assistant", "content": reply.text or None}
        if reply.tool:
            function = {"name": reply.tool, "arguments": reply.json}
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return {**head, "object": "chat.completion", "choices": [choice], "usage": usage}

    def chunk(delta: Json, end: str | None = None) -> Json:
        return {
            **head,
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "finish_reason": end}],
        }

    chunks = [chunk({"role": "assistant", "content": "" if not reply.tool else None})]
    if reply.tool:
        call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": reply.tool, "arguments": ""}}
        chunks.append(chunk({"tool_calls": [call]}))
        chunks += [chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}) for piece in reply.pieces]
    else:
        chunks += [chunk({"content": piece}) for piece in reply.pieces]
    chunks.append(chunk({}, reason))
    if (body.get("stream_options") or {}).get("include_usage"):
        chunks.append({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    return chunks


def responses(body: Json) -> Json | list[Json]:
    """A response, or its events."""
    turns = body["input"] if isinstance(body["input"], list) else []
    tools = [tool for tool in body.get("tools") or [] if tool["type"] == "function"]
    reply = reply_to(body, turns, tools, (body.get("text") or {}).get("format"))
    if reply.tool:
        item: Json = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": reply.tool}
        item |= {"arguments": reply.json, "status": "completed"}
    else:
        part = {"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}
        item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    usage = {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}}
    usage |= {"output_tokens": 6, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 15}
    whole = {"id": "resp_1", "object": "response", "created_at": 1790000000, "status": "completed", "usage": usage}
    whole |= {"model": body["model"], "output": [item], "parallel_tool_calls": True, "tools": body.get("tools") or []}
    whole |= {"tool_choice": "auto", "error": None, "incomplete_details": None, "instructions": None, "metadata": {}}
    if not body.get("stream"):
        return whole
    return [{**event, "sequence_number": number} for number, event in enumerate(_response_events(whole, item, reply))]


def _response_events(whole: Json, item: Json, reply: Reply) -> Iterator[Json]:
    at = {"output_index": 0, "item_id": item["id"]}
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    empty = {**item, "status": "in_progress", **({"arguments": ""} if reply.tool else {"content": []})}
    yield {"type": "response.output_item.added", "output_index": 0, "item": empty}
    if reply.tool:
        for piece in reply.pieces:
            yield {"type": "response.function_call_arguments.delta", **at, "delta": piece}
        yield {"type": "response.function_call_arguments.done", **at, "name": reply.tool, "arguments": reply.json}
    else:
        part = item["content"][0]
        yield {"type": "response.content_part.added", **at, "content_index": 0, "part": {**part, "text": ""}}
        for piece in reply.pieces:
            yield {"type": "response.output_text.delta", **at, "content_index": 0, "delta": piece, "logprobs": []}
        yield {"type": "response.output_text.done", **at, "content_index": 0, "text": reply.text, "logprobs": []}
        yield {"type": "response.content_part.done", **at, "content_index": 0, "part": part}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": whole}


def messages(body: Json) -> Json | list[Json]:
    """A message of Anthropic's, or its events."""
    reply = reply_to(body, body["messages"], body.get("tools") or [], None)
    block: Json = {"type": "text", "text": reply.text}
    if reply.tool:
        block = {"type": "tool_use", "id": "toolu_1", "name": reply.tool, "input": json.loads(reply.json)}
    whole = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": [block]}
    whole |= {"stop_reason": "tool_use" if reply.tool else "end_turn", "stop_sequence": None}
    whole |= {"usage": {"input_tokens": 9, "output_tokens": 6}}
    if not body.get("stream"):
        return whole
    empty = {**block, "input": {}} if reply.tool else {"type": "text", "text": ""}
    name, key = ("input_json_delta", "partial_json") if reply.tool else ("text_delta", "text")
    deltas = [{"type": name, key: piece} for piece in reply.pieces]
    return [
        {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": empty},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": whole["stop_reason"]}, "usage": {"output_tokens": 6}},
        {"type": "message_stop"},
    ]


def embeddings(body: Json) -> Json:
    """A vector of three for each text."""
    texts = (
        body["input"] if isinstance(body["input"], list) and not isinstance(body["input"][0], int) else [body["input"]]
    )
    floats = [0.25, -0.5, 1.0]
    vector = b64encode(struct.pack("<3f", *floats)).decode() if body.get("encoding_format") == "base64" else floats
    data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(len(texts))]
    return {"object": "list", "data": data, "model": body["model"], "usage": {"prompt_tokens": 3, "total_tokens": 3}}


ROUTES = {"chat/completions": chat, "responses": responses, "messages": messages, "embeddings": embeddings}


async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Answer one request."""
    route = asked.line.split(" ")[1].partition("?")[0].removeprefix("/v1/")
    made = ROUTES[route](json.loads(asked.body)) if route in ROUTES else {"object": "list", "data": []}
    if isinstance(made, dict):
        body = json.dumps(made).encode()
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-Id: req_1\r\nContent-Length: {len(body)}"
        )
        writer.write(f"{head}\r\n\r\n".encode() + body)
        return
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    ends = [b"data: [DONE]\n\n"] if route == "chat/completions" else []
    names = [f"event: {event['type']}\n" if "type" in event else "" for event in made]
    events = [f"{name}data: {json.dumps(event)}\n\n".encode() for name, event in zip(names, made, strict=True)]
    for piece in [*events, *ends]:
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
        await asyncio.sleep(PAUSE_S / 10)
    writer.write(b"0\r\n\r\n")


async def main(port: int, recording: Path) -> None:
    """Serve until killed."""
    with recording.open("w", encoding="utf-8", buffering=1) as file:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    asked = await read(reader)
                    file.write(json.dumps({"line": asked.line, "body": asked.body.decode("utf-8", "replace")}) + "\n")
                    await answer(asked, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", port, limit=2**20)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
