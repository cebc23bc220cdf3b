"""Learnt assistants behind the proxy: whose request it is, and whether a call can stand for the upstream's answer."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from smallfirst.data.redaction import KINDS
from smallfirst.traffic.assistant import AssistantRequest, functions_of
from smallfirst.traffic.task_source import TaskSource
from smallfirst.traffic.wire import Json, ToolCall, canonical, objects

CONVERSATION = ("messages", "input", "instructions", "system")
"""Settings of a request that hold its conversation, which `assistant.read_request` checks."""
_PLACEHOLDER = re.compile(rf"\[(?:{'|'.join(KINDS).upper()})\]|\[[\d,]+ (?:characters of data|numbers)\]")


class AssistantMatch(NamedTuple):
    """The assistant of a request."""

    task: str
    changed: str | None = None
    """How its functions have changed since it was learnt, empty if its instructions have; None if nothing has."""


class AssistantIndex:
    """The assistants among some tasks."""

    def __init__(self, sources: Mapping[str, TaskSource]) -> None:
        self._known = [(name, one.assistant, one.models) for name, one in sources.items() if one.assistant]

    def find(self, asked: AssistantRequest, model: str) -> AssistantMatch | None:
        """Return whose request it is: exactly, or else of a changed one."""
        known = [(name, one) for name, one, models in self._known if not models or model in models]
        for name, one in known:
            if one.id == asked.assistant.id:
                return AssistantMatch(name)
        for name, one in known:
            if (changed := one.changed(asked.assistant)) is not None:
                return AssistantMatch(name, changed)
        return None


def why_continued(route: str, body: Json) -> str:
    """Return why a response may be continued by its id, which the provider does not know; empty if it is not.

    A client that sends back what it was answered keeps the conversation itself.
    """
    items = objects(body.get("input"))
    own = any(one.get("type") == "function_call" or one.get("role") == "assistant" for one in items)
    stays = route == "responses" and body.get("store") is not False and not own
    return "the provider keeps its answer, which may be continued by its id" if stays else ""


def why_not_these(body: Json, calls: Sequence[ToolCall]) -> str:
    """Return why calls of an assistant cannot be given, in a clause; empty if they can."""
    functions = {one["name"]: one for one in json.loads(functions_of(canonical(body.get("tools") or [])) or "[]")}
    for call in calls:
        if call.name not in functions:
            return f"it has no function {call.name}"
        if _PLACEHOLDER.search(call.arguments):
            return "an argument was redacted"
        if wrong := _wrong_arguments(json.dumps(functions[call.name]["parameters"]), call.arguments):
            return f"{call.name}: {wrong}"
    return ""


def _wrong_arguments(schema: str, arguments: str) -> str:
    # Imported here: a proxy without assistants starts without them.
    from jsonschema import ValidationError  # type: ignore[import-untyped]
    from referencing.exceptions import Unresolvable

    try:
        _validator(schema).validate(json.loads(arguments))
    except (ValidationError, Unresolvable) as error:
        return str(getattr(error, "message", error))[:200]
    return ""


@functools.lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator
    from referencing import Registry

    return Draft202012Validator(json.loads(schema), registry=Registry())
