"""The body of an upstream's answer as one JSON object: decompressed, and a stream put together from its events.

The events say by themselves of which route they are: chat completions, completions, responses or messages.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

from smallfirst.gateway.http import RawHeaders

MAX_BYTES = 16 * 1024 * 1024
"""Longest decompressed body that is read."""
_ONCE = frozenset({"id", "index", "name", "role", "type"})
"""Members of a piece that later pieces repeat and do not continue."""
_BLOCK_PARTS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}


READABLE = frozenset({"identity", "gzip", "deflate"})
"""Content codings that are read here."""


def is_stream(headers: RawHeaders) -> bool:
    """Return True for server-sent events."""
    return _header(headers, b"content-type").lower().startswith("text/event-stream")


def read_response(headers: RawHeaders, body: bytes) -> dict[str, Any] | None:
    """Return the answer in the form without streaming; None if it cannot be read, or is no JSON object."""
    try:
        plain = _decompressed(body, _header(headers, b"content-encoding").strip().lower())
        value = assemble(plain) if is_stream(headers) else json.loads(plain)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, zlib.error):
        return None
    return value if isinstance(value, dict) else None


def assemble(stream: bytes) -> dict[str, Any] | None:
    """Return the answer that a stream of server-sent events amounts to; None for events of an unknown kind.

    Raise ValueError or TypeError if they are not what they should be.
    """
    events = list(_events(stream))
    first = events[0] if events else {}
    if "choices" in first:
        return _of_chunks(events)
    if str(first.get("type")).startswith("response."):
        whole = [event["response"] for event in events if isinstance(event.get("response"), dict)]
        ended = whole and whole[-1].get("status") in ("completed", "incomplete", "failed")
        return whole[-1] if ended else None
    return _of_blocks(events) if any(event.get("type") == "message_start" for event in events) else None


def _events(stream: bytes) -> Iterator[dict[str, Any]]:
    text = stream.decode().replace("\r\n", "\n").replace("\r", "\n")
    for block in text.split("\n\n"):
        lines = [line[5:].removeprefix(" ") for line in block.split("\n") if line.startswith("data:")]
        data = "\n".join(lines)
        if data and data != "[DONE]":
            yield json.loads(data)


def _of_chunks(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Chunks of chat completions, whose choices have deltas, or of completions, whose choices have texts."""
    whole: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
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


def _add(whole: dict[str, Any], piece: dict[str, Any]) -> None:
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


def _of_blocks(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Events of Anthropic's messages."""
    message: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {}
    for event in events:
        kind, delta = event.get("type"), event.get("delta") or {}
        if kind == "message_start":
            message = dict(event["message"])
        elif kind == "content_block_start":
            blocks[event["index"]] = dict(event["content_block"])
        elif kind == "content_block_delta":
            block = blocks[event["index"]]
            if delta.get("type") == "input_json_delta":
                block["_json"] = block.get("_json", "") + delta["partial_json"]
            elif (part := _BLOCK_PARTS.get(delta.get("type", ""))) is not None:
                block[part] = block.get(part, "") + delta[part]
        elif kind == "message_delta":
            message |= {key: value for key, value in delta.items() if value is not None}
            message["usage"] = {**(message.get("usage") or {}), **(event.get("usage") or {})}
    for block in blocks.values():
        if (text := block.pop("_json", "")) != "":
            block["input"] = json.loads(text)
    return {**message, "content": [blocks[index] for index in sorted(blocks)]}


def _decompressed(body: bytes, coding: str) -> bytes:
    if coding in ("", "identity"):
        return body
    if coding in ("gzip", "x-gzip"):
        return _inflated(body, 31)
    if coding == "deflate":
        try:
            return _inflated(body, 15)
        except zlib.error:
            return _inflated(body, -15)
    raise ValueError(coding)


def _inflated(body: bytes, window: int) -> bytes:
    reader = zlib.decompressobj(window)
    plain = reader.decompress(body, MAX_BYTES)
    if reader.unconsumed_tail or not reader.eof:
        raise ValueError("too long, or cut off")
    return plain


def _header(headers: RawHeaders, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in headers if key == name), "")
