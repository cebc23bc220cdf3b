"""Which requests a small model can answer as the upstream would: those that ask for nothing more than the answer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_COMMON = {"model", "stream", "temperature", "top_p", "user", "metadata", "tools", "tool_choice", "store", "seed"}
_COMMON |= {
    "parallel_tool_calls",
    "service_tier",
    "prompt_cache_key",
    "safety_identifier",
    "stream_options",
    "stop",
    "n",
}
_KNOWN = {
    "chat/completions": _COMMON
    | {"messages", "max_tokens", "max_completion_tokens", "response_format", "reasoning_effort", "verbosity"}
    | {"presence_penalty", "frequency_penalty", "logprobs", "functions", "prompt_cache_retention"},
    "responses": _COMMON | {"input", "instructions", "max_output_tokens", "text", "reasoning", "truncation", "include"},
    "completions": _COMMON
    | {"prompt", "max_tokens", "presence_penalty", "frequency_penalty", "logprobs", "echo", "best_of"},
    "messages": _COMMON | {"messages", "system", "max_tokens", "top_k", "stop_sequences"},
}
"""Settings of each route that do not change what a task's answer is."""
_BYTES_PER_TOKEN = 3
"""Fewest bytes of an answer that a token is taken to cover."""
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None, False),
    "echo": (None, False),
    "store": (None, False),
    "include": (None, []),
}
"""Values of settings that ask for nothing more than the answer: no second one, no probabilities, nothing kept."""
_LIKELIEST = {"temperature": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""The providers' own values; a client that sets a higher one asks for another answer than the likeliest."""


def route_of(path: str) -> str | None:
    """Return the route of a path, such as `chat/completions`; None if a small model answers on none such."""
    return next((route for route in sorted(_KNOWN, key=len, reverse=True) if path.endswith(f"/{route}")), None)


def why_not(
    route: str, body: dict[str, Any], answer: str = "", *, tools: Collection[str] | None = None, closed: bool = False
) -> str:
    """Return why `answer` cannot stand for the upstream's, in a clause; empty if it can.

    An empty `answer` is not known yet; `tools` are those that it calls, None where that is not known. `closed`: it is
    one of the task's labels, which is chosen and not written, whatever settings of sampling a request has.
    """
    known = _KNOWN[route]
    for name, value in body.items():
        if name not in known and value is not None:
            return f"it sets {name}"
        if name in _DEFAULTS and value not in _DEFAULTS[name]:
            return f"it asks for {name}: {value}"
        if not closed and isinstance(value, int | float) and value > _LIKELIEST.get(name, value):
            return f"it asks for {name}: {value}"
    if tools is not None and (wrong := _wrong_tools(body.get("tool_choice"), tools)):
        return wrong
    stop = body.get("stop") or body.get("stop_sequences") or ()
    if any(text in answer for text in ([stop] if isinstance(stop, str) else stop)):
        return "a stop sequence is in the answer"
    most = [body.get(name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")]
    limits = [limit for limit in most if isinstance(limit, int)]
    if limits and len(answer.encode()) > _BYTES_PER_TOKEN * min(limits):
        return "the answer may be longer than the request allows"
    return ""


def _wrong_tools(choice: Any, called: Collection[str]) -> str:
    """Return how an answer breaks a request's `tool_choice`, OpenAI's or Anthropic's; empty if it does not."""
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind == "none":
        return "it forbids tools, and the answer calls one" if called else ""
    if kind in (None, "auto", "allowed_tools"):
        return ""
    named = (choice.get("function") or choice).get("name") if isinstance(choice, dict) else None
    if not called or (named is not None and named not in called):
        return f"it asks for a call of {named or 'a tool'}"
    return ""
