"""Chats with tools: a request as the conversation that a task of kind `call` reads, its answer as a function call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from smallfirst.data.conversations import NO_CALL, changed_functions, read_functions, read_turns, to_text
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.serving.errors import ApiError

TOOLS = ("tools", "tool_choice", "parallel_tool_calls")
"""Fields of a chat that are read here."""
_CHOICES = ("auto", None)
NOBODY = "Nobody here answers this turn: it is no call that is sure enough, and no large model is named."
"""What is refused where a small model has no call to make, and no large model is asked."""


def read_conversation(values: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return a chat with tools as one of a single message, the conversation as text, and the functions as JSON.

    Raise ApiError 400 naming the field at fault.
    """
    messages = values.get("messages")
    try:
        functions = read_functions(values["tools"])
    except ValueError as error:
        raise ApiError(400, f"{error}.", param="tools", code="invalid_tools") from None
    if values.get("tool_choice") not in _CHOICES:
        why = "the model that answers decides whether it calls, and a promise is about its own choice"
        raise ApiError(400, f'"tool_choice" is "auto" here: {why}.', param="tool_choice", code="unsupported_parameter")
    try:
        turns = read_turns(messages if isinstance(messages, list) else [])
    except ValueError as error:
        raise ApiError(400, f"{error}.", param="messages") from None
    if not turns or turns[-1].kind not in ("user", "result"):
        raise ApiError(400, "The last message must be a user's or a tool's.", param="messages")
    rest = {name: value for name, value in values.items() if name not in TOOLS}
    return rest | {"messages": [{"role": "user", "content": to_text(turns)}]}, json.dumps(functions)


def check_functions(model: Model, request: Request) -> None:
    """Raise ApiError 400 for a request with tools to a model without functions, or with other ones."""
    known = getattr(model, "functions", None)
    if known is None:
        raise ApiError(
            400,
            f'"tools" is not supported by {model.name}: it answers in text. Tasks of kind `call` take them.',
            param="tools",
            code="unsupported_parameter",
        )
    if changed := changed_functions(known, json.loads(request.tools)):
        what = f"{model.name} was learnt for other functions: {changed}. Learn it again with rows of these."
        raise ApiError(400, what, param="tools", code="tools_changed")


def message_of(answer: Completion, response_id: str) -> tuple[dict[str, Any], str]:
    """Return content, refusal and calls of the message that an answer makes, and why it ends."""
    said = answer.text
    try:
        read = json.loads(said)
    except (ValueError, RecursionError):
        read = None
    if isinstance(read, dict) and isinstance(read.get("arguments"), dict) and "name" in read:
        function = {"name": read["name"], "arguments": json.dumps(read["arguments"], ensure_ascii=False)}
        call = {"id": f"call_{response_id.rpartition('-')[2][:24]}", "type": "function", "function": function}
        return {"content": None, "refusal": None, "tool_calls": [call]}, "tool_calls"
    if said == NO_CALL or answer.refusal:
        return {"content": None, "refusal": NOBODY if said == NO_CALL else said}, answer.finish_reason
    return {"content": said, "refusal": None}, answer.finish_reason
