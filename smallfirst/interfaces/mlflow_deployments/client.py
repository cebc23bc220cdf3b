"""Query an endpoint over HTTP as MLflow's clients do, once, and without a proxy to this machine itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from smallfirst.errors import BadAnswer, ConfigError, ModelError, RateLimited, Unauthorised, Unavailable
from smallfirst.models.remote.http import (
    BlockingSession,
    ConnectionBroken,
    HttpResponse,
    HttpSession,
    ResponseTimeout,
    error_text,
)

API_KEY_VARIABLE = "SMALLFIRST_API_KEY"
"""Environment variable with the key of a server that requires one."""
TIMEOUT_S = 300.0
"""Longest wait between two chunks of an answer."""


def get(server: str, path: str) -> dict[str, Any]:
    """Return the JSON at a path of the server. Raise ModelError."""
    with _connected(server) as session:
        return _json(session, _send(session, "GET", path))


def invoke(server: str, name: str, inputs: Any) -> dict[str, Any]:
    """Return a PredictionsResponse for a table, else a DatabricksEndpoint. Raise ModelError or ConfigError."""
    from mlflow.deployments import DatabricksEndpoint, PredictionsResponse

    with _connected(server) as session:
        found = _json(session, _send(session, "POST", _path(name), request_body(inputs)))
    kind: type[dict[str, Any]] = PredictionsResponse if "predictions" in found else DatabricksEndpoint
    return kind(found)


def invoke_stream(server: str, name: str, inputs: Any) -> Iterator[dict[str, Any]]:
    """Yield the chunks of an answer. Raise as `invoke` does."""
    with _connected(server) as session:
        response = _send(session, "POST", _path(name), {**request_body(inputs), "stream": True})
        for value in session.events(response):
            if value == "[DONE]":
                return
            if value:
                chunk = json.loads(value)
                if "error" in chunk:
                    raise BadAnswer(str(chunk["error"].get("message", "the answer broke off")))
                yield chunk


def request_body(inputs: Any) -> dict[str, Any]:
    """Return the request body for a body, a data frame, an array or a list of rows. Raise ConfigError for others."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    if hasattr(inputs, "to_dict") and hasattr(inputs, "columns"):
        return {"dataframe_split": json.loads(inputs.to_json(orient="split"))}
    rows = inputs.tolist() if hasattr(inputs, "tolist") else inputs
    if isinstance(rows, list | str):
        return {"inputs": rows}
    raise ConfigError(
        f"inputs of type {type(inputs).__name__} cannot be sent", hint='inputs={"messages": […]} or a data frame'
    )


def _path(name: str) -> str:
    return f"/serving-endpoints/{quote(name, safe='')}/invocations"


@contextmanager
def _connected(server: str) -> Iterator[BlockingSession]:
    key = os.environ.get(API_KEY_VARIABLE, "").strip()
    try:
        with BlockingSession(lambda: HttpSession(server.rstrip("/"), key=key, timeout_s=TIMEOUT_S)) as session:
            yield session
    except (ConnectionBroken, ResponseTimeout) as error:
        message = f"{server} does not answer: {error_text(error)}"
        raise Unavailable(message, hint="smallfirst endpoints list") from None


def _send(session: BlockingSession, method: str, path: str, body: dict[str, Any] | None = None) -> HttpResponse:
    response = session.send(method, path, body)
    if response.status != 200:
        raise _refusal(response.status, session.read(response))
    return response


def _json(session: BlockingSession, response: HttpResponse) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(session.read(response))
    return found


def _refusal(status: int, content: bytes) -> ModelError | ConfigError:
    try:
        message = str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"status {status}"
    if status == 401:
        return Unauthorised(message, hint=f"export {API_KEY_VARIABLE}=…")
    if status == 429:
        return RateLimited(message)
    if status >= 500:
        return Unavailable(message) if status == 503 else BadAnswer(message)
    return ConfigError(message)
