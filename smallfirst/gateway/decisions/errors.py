"""Errors of the decision routes, each in the shape of its own API."""

from __future__ import annotations

import json
from typing import Any

import pydantic

from smallfirst.gateway.http import ERROR_HEADER, GatewayResponse, UpstreamAnswer, json_response, refusal
from smallfirst.serving.openai.errors import ApiError, validation_error
from smallfirst.traffic.decisions import systemone_shape


def invalid_request(route: str, error: pydantic.ValidationError) -> GatewayResponse:
    """Return the error that names the broken rules: 400 with OpenAI's `param`, or TypeSafe's 422 with their places."""
    if route == systemone_shape.ROUTE:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        detail = [{"loc": ["body", *one["loc"]], "msg": one["msg"], "type": one["type"]} for one in found]
        return json_response({"detail": detail}, 422, (ERROR_HEADER, b"invalid_request"))
    named = validation_error(error)
    return refusal(ApiError(400, str(named), param=named.body["error"]["param"], code="invalid_request"))


def refuse(route: str, error: ApiError) -> GatewayResponse:
    """Return another error of the proxy's own."""
    if route == systemone_shape.ROUTE:
        return json_response({"detail": str(error)}, error.status, *refusal(error).headers[1:])
    return refusal(error)


def upstream_error(route: str, answer: UpstreamAnswer) -> GatewayResponse:
    """Return what an upstream of another shape refused, with its status and its words, in this route's shape."""
    status = answer.status
    message = _message(answer.body) or f"The upstream refused the request with HTTP {status}."
    waits = [pair for pair in answer.headers if pair[0].startswith(b"retry-after")]
    if route == systemone_shape.ROUTE:
        return json_response({"detail": message}, status, *waits)
    kind = "invalid_request_error" if status < 500 else "server_error"
    return json_response({"error": {"message": message, "type": kind, "param": None, "code": None}}, status, *waits)


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
