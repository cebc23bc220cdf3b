"""An assistant with functions as its requests show it: conversation, functions and instructions, on any dialect.

What a request holds beyond that (media, refusals, reasoning, state at the provider) is not understood, and such a
request is the large model's.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from smallfirst.base.records import Record, fingerprint
from smallfirst.data.conversations import (
    ConversationTurn,
    TurnKind,
    changed_functions,
    json_or_text,
    read_functions,
    same_calls,
)
from smallfirst.traffic.wire import Json, canonical, route_of

_CHANGING = re.compile(
    r"\b(?:mon|tue|tues|wed|wednes|thu|thur|thurs|fri|sat|satur|sun)(?:day)?\b"
    r"|\b(?:jan|feb|mar|apr|may|jun|jul|aug|sept?|oct|nov|dec)\b"
    r"|\b(?:january|february|march|april|june|july|august|september|october|november|december)\b"
    r"|\d+(?:st|nd|rd|th)?(?:\s?[ap]\.?m\b\.?)?",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """Return a text with a mark for each weekday, month, number and clock time, which may change in instructions."""
    return _CHANGING.sub("#", text)


class Assistant(Record):
    """An assistant: its functions, and its instructions without what changes by the day."""

    tools: tuple[dict[str, Any], ...]
    """As `conversations.read_functions` gives them."""
    instructions: tuple[str, ...] = ()
    """Its system texts, masked."""
    beside: tuple[str, ...] = ()
    """Ids of others in the same traffic: theirs are no changed requests of this one."""

    @functools.cached_property
    def id(self) -> str:
        """Equal for assistants that may make the same calls under the same instructions."""
        return fingerprint([same_calls(self.tools), self.instructions])

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool["name"] for tool in self.tools)

    def changed(self, other: Assistant) -> str | None:
        """Return how another's functions differ from these; None if it is not the same assistant.

        The same one has the same instructions, or mostly functions of the same names.
        """
        common = len(self.names & other.names) / len(self.names | other.names)
        if other.id in (self.id, *self.beside) or not (
            common >= 0.5 or (self.instructions and self.instructions == other.instructions)
        ):
            return None
        return changed_functions(self.tools, other.tools)


class AssistantRequest(NamedTuple):
    """What a request asks an assistant."""

    assistant: Assistant
    turns: list[ConversationTurn]


def read_request(path: str, body: Json) -> AssistantRequest | None:
    """Return the assistant and the conversation of a request; None where it has no functions, or more than these."""
    route, tools = route_of(path), body.get("tools")
    if route is None or not isinstance(tools, list) or body.get("functions"):
        return None
    if (functions := functions_of(canonical(tools))) is None:
        return None
    try:
        steps = list(_STEPS[route](body))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None
    first = next((i for i, step in enumerate(steps) if step.kind != "system"), len(steps))
    turns = _turns(steps)
    return (
        AssistantRequest(_assistant(functions, tuple(step.value for step in steps[:first])), turns) if turns else None
    )


@functools.lru_cache(maxsize=4096)
def _assistant(functions: str, texts: tuple[str, ...]) -> Assistant:
    return Assistant(tools=json.loads(functions), instructions=tuple(map(masked, texts)))


@functools.lru_cache(maxsize=1024)
def functions_of(tools: str) -> str | None:
    """Return the functions in a request's tools, both as JSON; None where a tool is anything else."""
    found = json.loads(tools)
    try:
        for tool in found:
            if tool.get("type") == "function":
                own = tool.get("function", tool)
                _only(own, "name description parameters strict type")
                _only(tool, "type function") if own is not tool else None
            else:  # Anthropic's
                _only(tool, "type name description input_schema cache_control")
                if "input_schema" not in tool or tool.get("type", "custom") != "custom":
                    return None
        return json.dumps(read_functions(found))
    except (ValueError, AttributeError):
        return None


class _Step(NamedTuple):
    """A turn with the id of its call."""

    kind: TurnKind
    value: Any
    call: str = ""


def _turns(steps: Iterable[_Step]) -> list[ConversationTurn] | None:
    """Return the turns; None unless each call has its result, in order, and an answer is due."""
    turns, waiting, last = list[ConversationTurn](), list[str](), ""
    for step in steps:
        if step.kind == "result":
            if not waiting or waiting.pop(0) != step.call:
                return None
        elif waiting and (step.kind != "call" or last == "result"):
            return None
        waiting += [step.call] if step.kind == "call" else []
        if step.kind != "assistant" or step.value:
            turns.append(ConversationTurn(step.kind, step.value))
            last = step.kind
    return turns if turns and not waiting and last in ("user", "result") else None


def _only(given: Mapping[str, Any], names: str) -> None:
    """Raise ValueError if something else is said, by more than an empty value."""
    if more := {key for key, value in given.items() if value not in (None, [], "")} - set(names.split()):
        raise ValueError(f"not understood: {', '.join(sorted(more))}")


def _text(content: Any) -> str:
    """Return the text of a content. Raise ValueError where it is more."""
    if isinstance(content, str) or content is None:
        return content or ""
    texts = []
    for part in content:
        _only(part, "type text cache_control")
        if part.get("type") not in ("text", "input_text", "output_text") or not isinstance(part["text"], str):
            raise ValueError("no text")
        texts.append(part["text"])
    return "\n".join(texts)


_KINDS: Mapping[str, TurnKind] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""By role."""


def _said(role: Any, content: Any) -> _Step:
    return _Step(_KINDS[role], _text(content))


def _called(id: Any, name: Any, arguments: Any) -> _Step:
    read = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    if not isinstance(name, str) or not isinstance(read, dict):
        raise ValueError("no call")
    return _Step("call", {"name": name, "arguments": read}, str(id))


def _chat(body: Json) -> Iterator[_Step]:
    for message in body["messages"]:
        if message["role"] == "tool":
            _only(message, "role content tool_call_id name")
            yield _Step("result", json_or_text(_text(message.get("content"))), str(message["tool_call_id"]))
            continue
        _only(message, "role content tool_calls")
        calls = message.get("tool_calls") or ()
        if not calls or message.get("content"):
            yield _said(message["role"], message.get("content"))
        for call in calls:
            _only(call, "id type function index")
            _only(call["function"], "name arguments")
            yield _called(call["id"], call["function"]["name"], call["function"].get("arguments"))


def _responses(body: Json) -> Iterator[_Step]:
    _only({"previous_response_id": body.get("previous_response_id"), "conversation": body.get("conversation")}, "")
    if body.get("instructions"):
        yield _said("system", body["instructions"])
    given = body["input"]
    for item in [{"role": "user", "content": given}] if isinstance(given, str) else given:
        kind = item.get("type", "message")
        if kind == "function_call":
            _only(item, "type id call_id name arguments status")
            yield _called(item["call_id"], item["name"], item.get("arguments"))
        elif kind == "function_call_output":
            _only(item, "type id call_id output status")
            yield _Step("result", json_or_text(_text(item.get("output"))), str(item["call_id"]))
        elif kind == "message":
            _only(item, "type id role content status")
            yield _said(item["role"], item.get("content"))
        else:
            raise ValueError(f"an item of type {kind}")


def _messages(body: Json) -> Iterator[_Step]:
    if body.get("system"):
        yield _said("system", body["system"])
    for message in body["messages"]:
        _only(message, "role content")
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            kind = part["type"]
            if kind == "tool_use" and message["role"] == "assistant":
                _only(part, "type id name input cache_control")
                yield _called(part["id"], part["name"], part["input"])
            elif kind == "tool_result" and message["role"] == "user":
                _only({**part, "is_error": part.get("is_error") or None}, "type tool_use_id content cache_control")
                yield _Step("result", json_or_text(_text(part.get("content"))), str(part["tool_use_id"]))
            else:
                yield _said(message["role"], [part])


_STEPS: Mapping[str, Callable[[Json], Iterator[_Step]]] = {
    "chat/completions": _chat,
    "responses": _responses,
    "messages": _messages,
}
"""By route the steps of a request's conversation. Each raises ValueError, TypeError, KeyError or AttributeError."""
