"""Errors of the decision routes, each in the shape of its own API."""

from __future__ import annotations

import json
from typing import Any

import pydantic

from smallfirst.gateway.http import ERROR_HEADER, GatewayResponse, UpstreamAnswer, error_response, json_response
from smallfirst.traffic.decisions import systemone_shape

MOST_SHOWN = 5
"""Broken rules that one error names."""


def invalid_request(route: str, error: pydantic.ValidationError) -> GatewayResponse:
    """Return the error that names the broken rules: 400 with OpenAI's `param`, or TypeSafe's 422 with their places."""
    found = error.errors(include_input=False, include_url=False, include_context=False)
    if route == systemone_shape.ROUTE:
        detail = [{"loc": ["body", *one["loc"]], "msg": one["msg"], "type": one["type"]} for one in found]
        return json_response({"detail": detail}, 422, (ERROR_HEADER, b"invalid_request"))
    places = [_param(one["loc"]) for one in found]
    said = [f"{place}: {one['msg']}" for place, one in zip(places, found, strict=True)]
    more = f"; and {len(said) - MOST_SHOWN} more" if len(said) > MOST_SHOWN else ""
    message = "; ".join(said[:MOST_SHOWN]) + more
    return error_response(400, message, "invalid_request", param=places[0] or None)


def refuse(route: str, status: int, message: str, code: str) -> GatewayResponse:
    """Return another error of the proxy's own."""
    if route == systemone_shape.ROUTE:
        return json_response({"detail": message}, status, (ERROR_HEADER, code.encode()))
    return error_response(status, message, code)


def upstream_error(route: str, answer: UpstreamAnswer) -> GatewayResponse:
    """Return what an upstream of another shape refused, with its status and its words, in this route's shape."""
    status = answer.status
    message = _message(answer.body) or f"The upstream refused the request with HTTP {status}."
    waits = [pair for pair in answer.headers if pair[0].startswith(b"retry-after")]
    if route == systemone_shape.ROUTE:
        return json_response({"detail": message}, status, *waits)
    kind = "invalid_request_error" if status < 500 else "server_error"
    return json_response({"error": {"message": message, "type": kind, "param": None, "code": None}}, status, *waits)


def _param(loc: tuple[int | str, ...]) -> str:
    """Return a place such as `questions[0].choices`; alternatives of a union, written `<name>`, are no part of it."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part[:64]}" for part in loc if not str(part).startswith("<")]
    return "".join(parts).removeprefix(".")


def _message(body: bytes) -> str:
    """Return the words of an error body of OpenAI, TypeSafe or FastAPI; empty if there are none."""
    try:
        value: Any = json.loads(body)
    except ValueError:
        return ""
    for key in ("error", "detail", "message"):
        value = value.get(key, value) if isinstance(value, dict) else value
    if isinstance(value, list):
        value = "; ".join(str(one["msg"]) for one in value if isinstance(one, dict) and "msg" in one)
    return value if isinstance(value, str) else ""
