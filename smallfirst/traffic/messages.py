"""What a request asks and a response answers, in one form for chat completions, responses, completions and messages.

A decision of one question reads as its words and its state; its answer as the likeliest label.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from smallfirst.traffic.decisions.exchanges import is_decision, read_decision, read_label
from smallfirst.traffic.decisions.question import DecisionRequest, Question

_QUESTION = "question"
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
    """True if the model gets more than `turns` hold: images, audio, files, or a conversation or prompt that the API
    has stored."""


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


def read_prompt(route: str, request: dict[str, Any]) -> Prompt | None:
    """Return what a request asks; None on routes without messages, such as embeddings, and for a malformed body."""
    if is_decision(route):
        return _decision_prompt(route, request)
    model = request.get("model")
    found = _turns(route, request)
    if found is None or not found[0]:
        return None
    turns, has_media = found
    has_media = has_media or any(request.get(key) for key in _ELSEWHERE) or isinstance(request.get("prompt"), dict)
    chosen = {key: request[key] for key in ("tools", "tool_choice", "functions", "function_call") if request.get(key)}
    wanted = request.get("response_format") or (request.get("text") if isinstance(request.get("text"), dict) else None)
    return Prompt(
        model if isinstance(model, str) else "",
        tuple(turns),
        canonical(chosen) if chosen else "",
        canonical(wanted) if wanted else "",
        has_media,
    )


def read_answer(route: str, response: dict[str, Any]) -> Answer | None:
    """Return what a response answers; None where it holds no answer, as an error does not."""
    if is_decision(route):
        label = read_label(route, response)
        return None if label is None else Answer(label, (), "stop" if label else "refusal")
    if route.endswith("/responses"):
        return _responses_answer(response)
    if route.endswith("/messages"):
        return _anthropic_answer(response)
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
    calls = [call.get("function") for call in _objects(message.get("tool_calls"))]
    named = tuple(ToolCall(str(c.get("name")), str(c.get("arguments"))) for c in _objects(calls))
    text, _ = _text(message.get("content"))
    return Answer(text, named, reason)


def question_prompt(model: str, question: Question, request: DecisionRequest) -> Prompt:
    """Return one question of a decision as a prompt: the question in words, and the state.

    The response format names the question, so that no two of them are taken for one, however alike they are.
    """
    turns = (Turn("system", question.text), Turn("user", request.text))
    has_media = request.has_media or not question.is_task
    return Prompt(model, turns, "", canonical({_QUESTION: question.id}), has_media)


def question_of(response_format: str) -> str:
    """Return which typed question a prompt or a template asks, by its response format; empty for all others."""
    return response_format if response_format.startswith(f'{{"{_QUESTION}":') else ""


def canonical(value: Any) -> str:
    """Return `value` as JSON with sorted keys: equal values, equal text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _decision_prompt(route: str, body: dict[str, Any]) -> Prompt | None:
    request = read_decision(route, body)
    if request is None or len(request.questions) != 1:
        return None
    return question_prompt(request.model, request.questions[0], request)


def _turns(route: str, request: dict[str, Any]) -> tuple[list[Turn], bool] | None:
    system, _ = _text(request.get("system", request.get("instructions")))
    turns, has_media = ([Turn("system", system)] if system else []), False
    given = request.get("messages", request.get("input", request.get("prompt")))
    if isinstance(given, str):
        return [*turns, Turn("user", given)], False
    if not isinstance(given, list) or "embeddings" in route or "moderations" in route:
        return None
    for item in given:
        if not isinstance(item, dict):
            return None
        role = str(item.get("role", "tool"))
        text, media = _text(item.get("content", item.get("output")))
        text += "".join(canonical(call.get("function")) for call in _objects(item.get("tool_calls")))
        if item.get("type") == "function_call":
            role, text = "assistant", canonical({key: item.get(key) for key in ("name", "arguments")})
        turns.append(Turn(_ROLES.get(role, role), text))
        has_media = has_media or media
    return turns, has_media


def _text(content: Any) -> tuple[str, bool]:
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


def _objects(items: Any) -> list[dict[str, Any]]:
    """Return the objects in a list; none for anything else, since a client may send any JSON."""
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _responses_answer(response: dict[str, Any]) -> Answer | None:
    output = response.get("output")
    if not isinstance(output, list):
        return None
    items = _objects(output)
    calls = tuple(
        ToolCall(str(item.get("name")), str(item.get("arguments")))
        for item in items
        if item.get("type") == "function_call"
    )
    parts = [part for item in items if item.get("type") == "message" for part in _objects(item.get("content"))]
    if refused := [part.get("refusal") for part in parts if part.get("type") == "refusal"]:
        return Answer(str(refused[0]), (), "refusal")
    text = "".join(str(part.get("text", "")) for part in parts)
    cut_off = response.get("status") == "incomplete"
    return Answer(text, calls, "length" if cut_off else "tool_calls" if calls else "stop")


def _anthropic_answer(response: dict[str, Any]) -> Answer | None:
    content = response.get("content")
    if not isinstance(content, list):
        return None
    parts = _objects(content)
    calls = tuple(
        ToolCall(str(part.get("name")), canonical(part.get("input")))
        for part in parts
        if part.get("type") == "tool_use"
    )
    reasons = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
    reason = str(response.get("stop_reason") or "end_turn")
    text = "".join(str(part.get("text", "")) for part in parts if part.get("type") == "text")
    return Answer(text, calls, reasons.get(reason, reason))
