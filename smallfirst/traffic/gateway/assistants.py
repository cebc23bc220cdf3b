"""Learnt assistants behind the proxy: whose request it is, and whether a call can stand for the upstream's answer."""

from __future__ import annotations

import functools
import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from smallfirst.data.redaction import KINDS
from smallfirst.traffic.assistant import AssistantRequest, functions_of
from smallfirst.traffic.gateway.http import GatewayRequest
from smallfirst.traffic.task_source import TaskSource
from smallfirst.traffic.wire import Json, ToolCall, canonical, objects

CONVERSATION = ("messages", "input", "instructions", "system")
"""Settings of a request that hold its conversation, which `assistant.read_request` checks."""
MOST_KEPT_BYTES = 2**25
"""Most bytes of conversations that may be gone on from by the id of a small answer; the oldest go first."""
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


class GivenResponses:
    """Conversations of small answers on `/v1/responses` by id, which the provider does not know; in memory alone.

    A client that sent a whole conversation may all the same go on by the id of its answer: then it is sent whole again.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._n_bytes = 0

    def keep(self, request: GatewayRequest, answer: Json) -> None:
        output = [{name: value for name, value in item.items() if name != "id"} for item in answer["output"]]
        content = json.dumps([*_items(request), *output]).encode()
        self._kept[request.tenant, answer["id"]] = content
        self._n_bytes += len(content)
        while self._n_bytes > MOST_KEPT_BYTES:
            self._n_bytes -= len(self._kept.popitem(last=False)[1])

    def complete(self, request: GatewayRequest) -> None:
        """Let a request that goes on from such an answer hold its conversation itself."""
        body = dict(request.json() or {})
        if kept := self._kept.get((request.tenant, str(body.pop("previous_response_id", "")))):
            request.rewrite(body | {"input": [*json.loads(kept), *_items(request)]})


def _items(request: GatewayRequest) -> list[Any]:
    given = (request.json() or {}).get("input")
    return given if isinstance(given, list) else [{"role": "user", "content": given}]


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
