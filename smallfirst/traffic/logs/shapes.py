"""Requests, responses, times and numbers, in whatever shape a log holds them, as bodies of the API and plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

CHAT = "/v1/chat/completions"
_ROLES = {"human": "user", "ai": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_ASKED = ("messages", "input", "prompt", "contents", "question", "query", "text", "content")
_ANSWERED = ("content", "completion", "text", "answer", "output_text", "generated_text", "output", "response")


def first(row: Mapping[str, Any], *names: str) -> Any:
    """Return the value of the first of the names that has one that is not empty; None if none has."""
    return next((row[name] for name in names if row.get(name) not in (None, "", [], {})), None)


def parsed(value: Any) -> Any:
    """Return what a text of JSON holds, if it is an object or a list; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def as_object(value: Any) -> dict[str, Any]:
    """Return an object, also one written as text; an empty one for anything else."""
    found = parsed(value)
    return found if isinstance(found, dict) else {}


def find_bodies(value: Any, depth: int = 5) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the first request's and the first response's body in a value, outer ones first; None for what is not."""
    value = parsed(value)
    if not isinstance(value, dict) or not depth:
        return None, None
    if _is_body(value):
        return None, value
    if (request := known_request(value)) is not None:
        return request, None
    found = [find_bodies(inner, depth - 1) for inner in value.values()]
    return next((one for one, _ in found if one), None), next((one for _, one in found if one), None)


def request_body(value: Any) -> dict[str, Any] | None:
    """Return the request's body that a log holds whole, as its messages, or as one text; None if there is none."""
    if isinstance(value, str):
        text = {"messages": [{"role": "user", "content": value}]} if value.strip() else None
        return known_request(parsed(value)) or text
    known = known_request(value)
    if known is not None or not isinstance(value, dict):
        return known
    asked = first(value, *_ASKED)
    turns = [{"role": "user", "content": asked}] if isinstance(asked, str) and asked.strip() else messages(asked)
    if not turns:
        return None
    system = first(value, "system", "system_prompt", "instructions", "system_message")
    given = {key: value[key] for key in ("model", "temperature", "tools", "response_format") if key in value}
    head = [{"role": "system", "content": system}] if isinstance(system, str) else []
    return {**given, "messages": [*head, *turns]}


def response_body(value: Any) -> dict[str, Any] | None:
    """Return the response's body that a log holds whole, as its message, its parts or its text; None if there is none.

    A text of JSON that is none of these is an answer as it is, and an object one that is written as JSON.
    """
    if isinstance(value, str):
        return _known_response(parsed(value)) or (chat_response(_assistant(value)) if value else None)
    known = _known_response(value)
    if known is not None or not isinstance(value, dict) or not value or isinstance(value.get("body"), dict):
        return known
    inner = first(value, *_ANSWERED)
    if len(value) <= 2 and isinstance(inner, str):
        return chat_response(_assistant(inner))
    if len(value) == 1 and isinstance(inner, (dict, list)):
        return response_body(inner)
    return chat_response(_assistant(json.dumps(value, ensure_ascii=False)))


def known_request(value: Any) -> dict[str, Any] | None:
    """Return a body of the API, or a list of messages as one; None for anything else."""
    if isinstance(value, list):
        turns = messages(value)
        return {"messages": turns} if turns else None
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("messages"), list):
        turns = messages(value["messages"])
        return {**value, "messages": turns} if turns else None
    if isinstance(value.get("body"), dict):
        return known_request(value["body"])
    return value if {"model", "instructions"} & value.keys() and first(value, "input", "prompt") is not None else None


def _known_response(value: Any) -> dict[str, Any] | None:
    if isinstance(value, list):
        return _from_list(value)
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("body"), dict):
        return response_body(value["body"])
    if isinstance(value.get("generations"), list):  # LangChain's
        return _from_list(value["generations"])
    if _is_body(value):
        return value
    turn = _deserialized(value["message"] if isinstance(value.get("message"), dict) else value)
    role = turn.get("role", turn.get("from", turn.get("type")))
    if isinstance(role, str) and {"content", "parts", "tool_calls", "value"} & turn.keys():
        made, ended = message(turn), {**as_object(value.get("generation_info")), **value}
        return chat_response(made, ended.get("finish_reason")) if made else None
    return None


def _assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def chat_response(message: Mapping[str, Any], finish_reason: Any = None) -> dict[str, Any]:
    """Return a chat completion with one message."""
    reason = finish_reason or ("tool_calls" if message.get("tool_calls") else "stop")
    reason = "tool_calls" if reason == "tool_call" else str(reason).lower()
    return {"choices": [{"index": 0, "message": dict(message), "finish_reason": reason}]}


def messages(value: Any) -> list[dict[str, Any]]:
    """Return the messages in a list, and in a list of one such list; empty if it is no list, or an item no message."""
    items = value if isinstance(value, list) else []
    if len(items) == 1 and isinstance(items[0], list):
        items = items[0]
    found = [message(item) for item in items]
    return [] if None in found else [one for one in found if one is not None]


def message(given: Any) -> dict[str, Any] | None:
    """Return a message in the form of chat completions: from LangChain's, OpenTelemetry's and others' spellings."""
    if not isinstance(given, dict):
        return None
    if isinstance(given.get("message"), dict):
        return message(given["message"])
    item = _deserialized(given)
    role = item.get("role", item.get("from", item.get("type")))
    if not isinstance(role, str):
        return None
    if item.get("type") in ("function_call", "function_call_output", "reasoning", "message"):
        return item  # an item of /v1/responses
    made = {key: value for key, value in item.items() if key not in ("from", "parts", "value") and value is not None}
    made["role"] = _ROLES.get(role, role)
    if made.get("type") == role:
        del made["type"]
    if isinstance(calls := made.get("tool_calls"), list):
        made["tool_calls"] = [_call(call) if isinstance(call, dict) and "args" in call else call for call in calls]
    if isinstance(parts := item.get("parts"), list):
        made |= _from_parts(parts)
    elif "content" not in made and "value" in item:
        made["content"] = item["value"]
    return made


def _deserialized(item: dict[str, Any]) -> dict[str, Any]:
    """Return a message that LangChain has serialized with the name of its class as its fields; another as it is."""
    fields, name = item.get("kwargs"), item.get("id")
    if not isinstance(fields, dict) or not isinstance(name, list):
        return item
    kind = str(name[-1] if name else "").removesuffix("Chunk").removesuffix("Message")
    return {**fields, "type": kind.lower()}


def _call(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call whose arguments may be an object, as OpenTelemetry and LangChain write it, in the API's form."""
    arguments = given.get("arguments", given.get("args"))
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": given.get("id"), "type": "function", "function": {"name": given.get("name"), "arguments": text}}


def _from_parts(parts: list[Any]) -> dict[str, Any]:
    """Return content and tool calls of the parts of OpenTelemetry's messages; other parts stay as they are."""
    texts, calls, others = [], [], []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" or (kind is None and isinstance(part, dict) and isinstance(part.get("text"), str)):
            texts.append(str(part.get("content", part.get("text", ""))))
        elif kind == "tool_call":
            calls.append(_call(part))
        elif kind == "tool_call_response":
            texts.append(str(part.get("response", part.get("result", ""))))
        elif kind != "reasoning":
            others.append(part)
    text = "\n".join(texts)
    content: Any = [*([{"type": "text", "text": text}] if text else []), *others] if others else text or None
    return {"content": content, **({"tool_calls": calls} if calls else {})}


def _from_list(value: list[Any]) -> dict[str, Any] | None:
    """Return the body of a list of messages or choices, the last of them, or of the parts of one message."""
    if len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    last = value[-1] if value else None
    if isinstance(last, dict) and last.get("type") in ("text", "output_text") and "role" not in last:
        return chat_response(_assistant(value))
    return response_body(last) if isinstance(last, (dict, str)) and last else None


def _is_body(value: dict[str, Any]) -> bool:
    choices, output, kind = value.get("choices"), value.get("output"), value.get("object", value.get("type"))
    items = [item.get("type") for item in output if isinstance(item, dict)] if isinstance(output, list) else []
    return bool(
        (isinstance(choices, list) and choices and isinstance(choices[0], dict))
        or (isinstance(output, list) and (kind == "response" or "message" in items))
        or (kind == "message" and isinstance(value.get("content"), list))
        or (kind == "list" and isinstance(value.get("data"), list))
        or (isinstance(value.get("error"), dict) and value["error"].get("message"))
    )


def route_of(given: Any, request: Mapping[str, Any], response: Mapping[str, Any]) -> str:
    """Return the route: as the log names it, or as the bodies tell."""
    path = given.partition("?")[0] if isinstance(given, str) else ""
    if "/v1/" in path:
        return path[path.index("/v1/") :].rstrip("/")
    if response.get("object") == "response" or isinstance(response.get("output"), list):
        return "/v1/responses"
    if response.get("type") == "message" and isinstance(response.get("content"), list):
        return "/v1/messages"
    if response.get("object") == "list" or "embedding" in path:
        return "/v1/embeddings"
    if "prompt" in request and "messages" not in request:
        return "/v1/completions"
    return CHAT


def moment(value: Any) -> datetime | None:
    """Return a time: ISO 8601, or seconds, milliseconds, microseconds or nanoseconds since 1970; UTC if it has no zone.

    None for what is no time between 2015 and 2100.
    """
    found = value if isinstance(value, datetime) else _from_number(value) or _from_text(value)
    if found is None:
        return None
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found
    return found if 2015 <= found.year < 2100 else None


def _from_number(value: Any) -> datetime | None:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else 0.0
    except ValueError:
        return None
    unit = next((unit for unit in (1.0, 1e3, 1e6, 1e9) if 1e9 <= number / unit < 5e9), None)
    return datetime.fromtimestamp(number / unit, UTC) if unit else None


def _from_text(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value.strip().replace(" UTC", "")) if isinstance(value, str) else None
    except ValueError:
        return None


def milliseconds(start: datetime | None, end: datetime | None) -> float | None:
    """Return the time between two moments in ms; None if one is unknown or they are in the wrong order."""
    if start is None or end is None or end < start:
        return None
    return (end - start).total_seconds() * 1000


def number(value: Any) -> float | None:
    """Return a finite number that is not negative; None for anything else."""
    try:
        found = float(value) if not isinstance(value, bool) and value not in (None, "") else -1.0
    except (TypeError, ValueError):
        return None
    return found if 0 <= found < 1e12 else None
