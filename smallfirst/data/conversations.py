"""Conversations with function calls as one text: a line of JSON for each turn, which reads back without a loss.

The lines are `{"system": text}`, `{"user": text}`, `{"assistant": text}`, `{"call": {"name": …, "arguments": {…}}}` and
`{"result": value}`. Ids of calls are left out: they say nothing about what comes next, and two askings of one
conversation are the same text. Functions are read as OpenAI's two interfaces and Anthropic's write them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, Literal, NamedTuple

from smallfirst.base.records import fingerprint

TurnKind = Literal["system", "user", "assistant", "call", "result"]
_USER = re.compile(r'^\{"user":[^\n]*', re.MULTILINE)
_KINDS = ("system", "user", "assistant", "call", "result")
NO_CALL = "no call"
"""The answer to a turn that is text, or several calls at once."""
_COMMENTS = ("description", "title", "examples", "default")
"""Keys of a parameter's schema that do not change which calls are allowed."""


class ConversationTurn(NamedTuple):
    """One step of a conversation."""

    kind: TurnKind
    value: Any
    """The text; of a call its name and arguments; of a result what the function returned, as JSON or text."""


def read_turns(messages: Sequence[Mapping[str, Any]]) -> list[ConversationTurn]:
    """Return the turns of messages as OpenAI's chat completions write them. Raise ValueError with the rule broken."""
    found = list[ConversationTurn]()
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f"messages[{number}] must be an object")
        role, text = message.get("role"), _text(message.get("content"), f"messages[{number}] content")
        if role in ("system", "developer", "user") or (role == "assistant" and not message.get("tool_calls")):
            if text is None:
                raise ValueError(f"messages[{number}] has no content")
            found.append(ConversationTurn("system" if role == "developer" else role, text))
        elif role == "assistant":
            found += [ConversationTurn("assistant", text)] if text else []
            found += [ConversationTurn("call", call) for call in calls_of(message)]
        elif role == "tool":
            found.append(ConversationTurn("result", json_or_text(text or "")))
        else:
            raise ValueError(f'messages[{number}] has role "{role}": use system, user, assistant or tool')
    return found


def calls_of(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return name and arguments of an assistant's calls, in order. Raise ValueError where they cannot be read."""
    found = []
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError("tool_calls must be objects with function.name and function.arguments")
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments, parse_constant=finite, parse_float=finite)
            except (ValueError, RecursionError):
                raise ValueError(f"the arguments of {function['name']} are not JSON") from None
        if not isinstance(arguments, Mapping):
            raise ValueError(f"the arguments of {function['name']} must be a JSON object")
        found.append({"name": function["name"], "arguments": dict(arguments)})
    return found


def finite(text: str) -> float:
    """Return the number; raise ValueError for NaN and what is too large, which JSON cannot write."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def to_text(turns: Iterable[ConversationTurn]) -> str:
    """Return the turns as one text, a line each."""
    return "\n".join(json.dumps({turn.kind: turn.value}, ensure_ascii=False) for turn in turns)


def from_text(text: str) -> list[ConversationTurn]:
    """Return the turns of a text of `to_text`; one of any other text, which a user said."""
    found = []
    for line in text.split("\n"):
        try:
            read = json.loads(line)
        except (ValueError, RecursionError):
            return [ConversationTurn("user", text)]
        if not isinstance(read, dict) or len(read) != 1 or (kind := next(iter(read))) not in _KINDS:
            return [ConversationTurn("user", text)]
        found.append(ConversationTurn(kind, read[kind]))
    return found


def to_messages(turns: Iterable[ConversationTurn]) -> list[dict[str, Any]]:
    """Return the turns as messages of OpenAI's chat completions, with ids counted anew."""
    found, waiting, n = list[dict[str, Any]](), list[str](), 0
    for turn in turns:
        if turn.kind == "call":
            n += 1
            waiting.append(f"call_{n}")
            function = {"name": turn.value["name"], "arguments": json.dumps(turn.value["arguments"])}
            call = {"id": waiting[-1], "type": "function", "function": function}
            if found and found[-1]["role"] == "assistant":
                found[-1].setdefault("tool_calls", []).append(call)
            else:
                found.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif turn.kind == "result":
            content = turn.value if isinstance(turn.value, str) else json.dumps(turn.value, ensure_ascii=False)
            answered = waiting.pop(0) if waiting else "call_0"
            found.append({"role": "tool", "tool_call_id": answered, "content": content})
        else:
            found.append({"role": turn.kind, "content": turn.value})
    return found


def write_call(name: str, arguments: Mapping[str, Any]) -> str:
    """Return a call as an answer is kept: one line of JSON, arguments in alphabetical order."""
    return json.dumps({"name": name, "arguments": dict(sorted(arguments.items()))}, ensure_ascii=False)


def read_functions(tools: object) -> tuple[dict[str, Any], ...]:
    """Return name, description and parameters of each function. Raise ValueError with the rule that `tools` break."""
    if not isinstance(tools, list | tuple) or not tools:
        raise ValueError("tools must be a list of functions")
    found = []
    for number, tool in enumerate(tools):
        if not isinstance(tool, Mapping) or tool.get("type", "function") not in ("function", "custom"):
            raise ValueError(f"tools[{number}] is no function")
        nested = tool.get("function")
        own: Mapping[str, Any] = nested if isinstance(nested, Mapping) else tool
        parameters = own.get("parameters", own.get("input_schema", {"type": "object", "properties": {}}))
        if not isinstance(own.get("name"), str) or not isinstance(parameters, Mapping):
            raise ValueError(f"tools[{number}] must have a name and a JSON schema of its parameters")
        found.append({"name": own["name"], "description": str(own.get("description", "")), "parameters": parameters})
    if len({one["name"] for one in found}) < len(found):
        raise ValueError("tools repeat a name")
    return tuple(sorted(found, key=lambda one: str(one["name"])))


def changed_functions(known: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> str:
    """Return how other functions differ from the known ones, by name; empty if the same calls are allowed."""
    ours, theirs = ({one["name"]: one["parameters"] for one in some} for some in (known, others))
    said = [f"{name} is new" for name in theirs if name not in ours]
    said += [f"{name} is missing" for name in ours if name not in theirs]
    for name in (name for name in ours if name in theirs):
        own, other = _bare(ours[name]), _bare(theirs[name])
        before, after = properties_of(own), properties_of(other)
        required, needed = own.get("required", ()), other.get("required", ())
        said += [f"{name}.{argument} is new" for argument in sorted(after.keys() - before.keys())]
        said += [f"{name}.{argument} is missing" for argument in sorted(before.keys() - after.keys())]
        for argument in sorted(before.keys() & after.keys()):
            said += [f"{name}.{argument} has changed"] if before[argument] != after[argument] else []
            now = "required" if argument in needed else "optional"
            said += [f"{name}.{argument} is {now} now"] if (argument in required) != (argument in needed) else []
        rest = sorted({*own, *other} - {"properties", "required"})
        said += [f"{key} of {name} has changed" for key in rest if own.get(key) != other.get(key)]
    return "; ".join(said)


def properties_of(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schemas of an object's properties by name."""
    found = schema.get("properties")
    return found if isinstance(found, Mapping) else {}


def same_calls(functions: Sequence[Mapping[str, Any]]) -> str:
    """Return a text that is equal for functions that allow the same calls."""
    return json.dumps([[one["name"], _bare(one["parameters"])] for one in functions], sort_keys=True)


def _bare(schema: Any, *, names: bool = False) -> Any:
    """Return a schema without comments; `names`: the keys are names of properties."""
    if isinstance(schema, Mapping):
        kept = {k: v for k, v in schema.items() if names or k not in _COMMENTS}
        bare = {k: _bare(v, names=not names and k in ("properties", "$defs", "definitions")) for k, v in kept.items()}
        for key in {"required", "enum"} & bare.keys() if not names else ():  # sets, whose order says nothing
            bare[key] = sorted(bare[key], key=str) if isinstance(bare[key], list) else []
        return {k: v for k, v in bare.items() if names or v not in ([], None)}
    return [_bare(one) for one in schema] if isinstance(schema, list) else schema


def _text(content: object, name: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"{name} must be text")
    parts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type", "text") == "text"]
    if len(parts) < len(content) or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{name} has a part that is no text")
    return "".join(map(str, parts))


def json_or_text(text: str) -> Any:
    """Return what a function returned, read as JSON where it is."""
    try:
        return json.loads(text, parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError):
        return text


def conversations_of(texts: Sequence[str]) -> list[str]:
    """Return by text of `to_text` what names its conversation.

    Texts up to the same second turn of the user are of one conversation, also where it was asked twice. A shorter one
    belongs to one that goes on from it: people who begin with the same words are no one conversation. Takes some three
    times the memory of the texts.
    """
    heads = [_head(text) for text in texts]
    going_on: dict[str, list[str]] = {}
    from_them, begun = dict[str, tuple[str, ...]](), list[str]()
    for head, following in pairwise([*sorted(set(heads)), ""]):  # what goes on from a head stands right behind it
        while begun and not head.startswith(begun[-1]):
            begun.pop()
        if following.startswith(head):
            begun.append(head)
        else:
            from_them[head] = tuple(begun)
    for head in dict.fromkeys(heads):
        for beginning in from_them.get(head, ()):
            going_on.setdefault(beginning, []).append(head)
    found = []
    for head in heads:
        waiting = going_on.get(head, [head])
        found.append(fingerprint((waiting.pop() if len(waiting) > 1 else waiting[0])[:-1]))
    return found


def _head(text: str) -> str:
    """Return the lines up to the user's second turn, each with its end."""
    second = next(islice(_USER.finditer(text), 1, None), None)
    return (text[: second.end()] if second else text) + "\n"
