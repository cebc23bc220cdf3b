"""What a request asks and a response answers, in one form for all dialects, and what a written answer is made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

Json = dict[str, Any]
_ROLES = {"developer": "system"}
_ELSEWHERE = ("previous_response_id", "conversation")
"""What of a request refers to messages that it does not hold."""


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    """system, user, assistant or tool."""
    text: str
    """Its text, parts joined by line breaks."""


class Prompt(NamedTuple):
    """What a request asks."""

    model: str
    turns: tuple[Turn, ...]
    """Oldest first; a separate system text or `instructions` comes first."""
    tools: str = ""
    """Tools and the choice among them as canonical JSON; empty without tools."""
    response_format: str = ""
    """The answer's required format as canonical JSON; empty for text."""
    has_media: bool = False
    """True if the model gets more than `turns` hold: images, files, or a conversation that the API has stored."""


class ToolCall(NamedTuple):
    """A function that an answer calls."""

    name: str
    arguments: str
    """JSON as the model wrote it."""


class Answer(NamedTuple):
    """What a response answers."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str = "stop"
    """stop, length, tool_calls, content_filter or refusal."""


class Reply(NamedTuple):
    """One answer to one request, as it is to be written."""

    id: str
    body: Json
    """The request's."""
    answer: Answer
    prompt_tokens: int
    completion_tokens: int
    model: str
    """Model name that the response carries."""
    fingerprint: str
    """`system_fingerprint` of completions: it tells the small model's answers from the upstream's."""
    created: int
    """Seconds since 1970."""


def request_prompt(request: Json) -> Prompt | None:
    """Return what a request with messages, an input or a prompt asks; None for a malformed body."""
    found = _turns(request)
    if found is None or not found[0]:
        return None
    turns, has_media = found
    has_media = has_media or any(request.get(key) for key in _ELSEWHERE) or isinstance(request.get("prompt"), dict)
    chosen = {key: request[key] for key in ("tools", "tool_choice", "functions", "function_call") if request.get(key)}
    wanted = request.get("response_format") or (request.get("text") if isinstance(request.get("text"), dict) else None)
    model = request.get("model")
    return Prompt(
        model if isinstance(model, str) else "",
        tuple(turns),
        canonical(chosen) if chosen else "",
        canonical(wanted) if wanted else "",
        has_media,
    )


def _turns(request: Json) -> tuple[list[Turn], bool] | None:
    system, _ = text_of(request.get("system", request.get("instructions")))
    turns, has_media = ([Turn("system", system)] if system else []), False
    given = request.get("messages", request.get("input", request.get("prompt")))
    if isinstance(given, str):
        return [*turns, Turn("user", given)], False
    if not isinstance(given, list):
        return None
    for item in given:
        if not isinstance(item, dict):
            return None
        role = str(item.get("role", "tool"))
        text, media = text_of(item.get("content", item.get("output")))
        text += "".join(canonical(call.get("function")) for call in objects(item.get("tool_calls")))
        if item.get("type") == "function_call":
            role, text = "assistant", canonical({key: item.get(key) for key in ("name", "arguments")})
        turns.append(Turn(_ROLES.get(role, role), text))
        has_media = has_media or media
    return turns, has_media


def text_of(content: Any) -> tuple[str, bool]:
    """Return the text of a message's content, and True if there is more than text in it."""
    if content is None:
        return "", False
    if isinstance(content, str):
        return content, False
    if not isinstance(content, Sequence):
        return "", True
    texts = [part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, (str, dict))]
    words = [text for text in texts if isinstance(text, str)]
    return "\n".join(words), len(words) < len(content)


def objects(items: Any) -> list[Json]:
    """Return the objects in a list; none for anything else, since a client may send any JSON."""
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def canonical(value: Any) -> str:
    """Return `value` as JSON with sorted keys: equal values, equal text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def compact(value: Any) -> str:
    """Return `value` as the providers write JSON: without spaces, in its own order of keys."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def data_line(value: Json) -> bytes:
    """Return a server-sent event without a name."""
    return f"data: {compact(value)}\n\n".encode()


def event(kind: str, **values: Any) -> bytes:
    """Return a server-sent event whose name is its type."""
    return f"event: {kind}\n".encode() + data_line({"type": kind, **values})


def function_calls(reply: Reply) -> list[Json]:
    """Return the calls of an answer as chat completions have them."""
    return [
        {"id": f"call_{reply.id[-20:]}{i}", "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for i, c in enumerate(reply.answer.tool_calls)
    ]
