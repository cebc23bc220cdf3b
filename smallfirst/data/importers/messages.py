"""Find what was asked and answered in a chat row, a request body or a response body of any provider's API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

_DEPTH = 5
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "developer": "system", "bot": "assistant"}
_CUT_OFF = ("length", "content_filter", "max_tokens", "refusal")


class Exchange(NamedTuple):
    """What one row asked, and the answer."""

    system: str
    earlier: tuple[str, ...]
    """Turns between the system message and the last question."""
    asked: str
    answer: str
    model: str = ""
    """The model that gave the answer; empty where the row does not say that one did."""


def turns_of(value: Any) -> list[tuple[str, str]] | None:
    """Return (role, text) of each message in a list of messages; None if it is none, or holds more than text."""
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return None
    turns = []
    for item in value:
        role = item.get("role", item.get("from"))
        text = text_of(item.get("content", item.get("value")))
        if not isinstance(role, str) or text is None:
            return None
        turns.append((_ROLES.get(role, role), text))
    return turns


def text_of(content: Any) -> str | None:
    """Return a message's content as text, its parts joined; None if a part is none."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [part.get("text") if isinstance(part, dict) else part for part in content]
    texts = [part for part in parts if isinstance(part, str)]
    return "\n".join(texts) if parts and len(texts) == len(parts) else None


def find_exchange(row: dict[str, Any]) -> Exchange | str:
    """Return what the row asked and the answer to it, or why it has none; a request and its response may be nested."""
    parts = list(_objects(row))
    if reason := _failure(parts):
        return reason
    asked = next(filter(None, map(_asked, parts)), None)
    if asked is None:
        return "no messages of text"
    system, *turns = asked if asked[0][0] == "system" else [("system", ""), *asked]
    answer, model = (turns.pop()[1] if turns and turns[-1][0] == "assistant" else None), ""
    if answer is None:
        answer = next(filter(None, map(_answer, parts)), None)
        model = next((part["model"] for part in parts if isinstance(part.get("model"), str)), "")
    if answer is None or not answer.strip():
        return "no answer of text"
    if not turns or turns[-1][0] != "user" or not turns[-1][1].strip():
        return "the answer follows no question of a user"
    return Exchange(system[1], tuple(text for _, text in turns[:-1]), turns[-1][1], answer, model)


def _objects(value: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield every object in the row, outer ones first; an object written as text is read."""
    if isinstance(value, str) and value[:1] == "{":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return
    if isinstance(value, dict) and depth <= _DEPTH:
        yield value
        for held in value.values():
            yield from _objects(held, depth + 1)


def _asked(part: dict[str, Any]) -> list[tuple[str, str]] | None:
    """Return the turns of a request body or a chat row."""
    turns = next(filter(None, (turns_of(part.get(key)) for key in ("messages", "conversations", "input"))), None)
    if turns is None and ("instructions" in part or "model" in part):
        given = part.get("input", part.get("prompt"))
        turns = [("user", given)] if isinstance(given, str) else None
    system = text_of(part.get("system", part.get("instructions")))  # beside the messages, as two APIs have it
    return [("system", system), *turns] if turns and system and turns[0][0] != "system" else turns


def _answer(part: dict[str, Any]) -> str | None:
    """Return the text that a response body holds."""
    choice = part["choices"][0] if isinstance(part.get("choices"), list) and part["choices"] else None
    if isinstance(choice, dict):
        message = choice.get("message")
        return text_of(message.get("content")) if isinstance(message, dict) else text_of(choice.get("text"))
    if preferred := turns_of(part.get("preferred_output")):
        return preferred[-1][1]
    if part.get("role") == "assistant":
        return text_of(part.get("content"))
    if output := part.get("output"):
        said = (
            [item for item in output if isinstance(item, dict) and item.get("role") == "assistant"]
            if isinstance(output, list)
            else []
        )
        return text_of(said[-1].get("content")) if said else text_of(output)
    keys = ("output_text", "response", "completion", "answer", "ideal")
    return next((part[key] for key in keys if _is_text(part, key)), None)


def _is_text(part: dict[str, Any], key: str) -> bool:
    return isinstance(part.get(key), str) and part[key][:1] != "{"


def _failure(parts: list[dict[str, Any]]) -> str:
    """Return why a response is no whole answer; empty if it is."""
    for part in parts:
        if part.get("error"):
            error = part["error"]
            return f"it failed: {error.get('code') or error.get('message') if isinstance(error, dict) else error}"[:200]
        status = part.get("status_code")
        if isinstance(status, int) and status >= 400:
            return f"it failed with status {status}"
        choices = part.get("choices")
        first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else part
        reason = first.get("finish_reason", first.get("stop_reason"))
        if reason in _CUT_OFF:
            return f"the answer was cut off: {reason}"
        if isinstance(first.get("message"), dict) and first["message"].get("tool_calls"):
            return "the answer calls a tool"
    return ""
