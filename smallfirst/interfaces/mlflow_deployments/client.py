"""Asking an endpoint over HTTP, as MLflow's clients do, with errors in smallfirst's words.

No request is sent twice, and nothing goes through a proxy to this machine itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx

from smallfirst.errors import BadAnswer, ConfigError, ModelError, RateLimited, Unauthorised, Unavailable
from smallfirst.serving.settings import is_loopback

API_KEY_VARIABLE = "SMALLFIRST_API_KEY"
"""Environment variable with the key of a server that asks for one."""
TIMEOUT_S = 300.0
"""Longest wait between two pieces of an answer."""


def get(server: str, path: str) -> dict[str, Any]:
    """What the server shows at a path. Raises ModelError."""
    with _client(server) as client:
        return _body(client.get, path)


def invoke(server: str, name: str, inputs: Any) -> dict[str, Any]:
    """The body that answers: MLflow's PredictionsResponse for a table, else as Databricks' client gives it.

    Raises ModelError, ConfigError for what the server cannot read.
    """
    from mlflow.deployments import DatabricksEndpoint, PredictionsResponse

    with _client(server) as client:
        found = _body(client.post, _path(name), json=request_body(inputs))
    kind: type[dict[str, Any]] = PredictionsResponse if "predictions" in found else DatabricksEndpoint
    return kind(found)


def invoke_stream(server: str, name: str, inputs: Any) -> Iterator[dict[str, Any]]:
    """The chunks of an answer. Raises as `invoke`."""
    body = {**request_body(inputs), "stream": True}
    with _client(server) as client:
        try:
            with client.stream("POST", _path(name), json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refusal(response)
                for line in response.iter_lines():
                    value = line.removeprefix("data:").strip()
                    if value == "[DONE]":
                        return
                    if value:
                        yield _chunk(json.loads(value))
        except httpx.HTTPError as error:
            raise _down(server, error) from None


def request_body(inputs: Any) -> dict[str, Any]:
    """The body for what MLflow's users give: a body, a data frame, an array or a list of rows. Raises ConfigError."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    if hasattr(inputs, "to_dict") and hasattr(inputs, "columns"):
        return {"dataframe_split": json.loads(inputs.to_json(orient="split"))}
    rows = inputs.tolist() if hasattr(inputs, "tolist") else inputs
    if isinstance(rows, list | str):
        return {"inputs": rows}
    raise ConfigError(
        f"inputs of type {type(inputs).__name__} cannot be asked", hint='inputs={"messages": […]} or a data frame'
    )


def _path(name: str) -> str:
    return f"/serving-endpoints/{quote(name, safe='')}/invocations"


def _client(server: str) -> httpx.Client:
    key = os.environ.get(API_KEY_VARIABLE, "").strip()
    return httpx.Client(
        base_url=server,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(TIMEOUT_S, connect=5),
        follow_redirects=False,
        trust_env=not is_loopback(httpx.URL(server).host),
    )


def _body(send: Any, path: str, **values: Any) -> dict[str, Any]:
    try:
        response: httpx.Response = send(path, **values)
    except httpx.HTTPError as error:
        raise _down(path, error) from None
    if response.status_code != 200:
        raise _refusal(response)
    found: dict[str, Any] = response.json()
    return found


def _chunk(value: dict[str, Any]) -> dict[str, Any]:
    if "error" in value:
        raise BadAnswer(str(value["error"].get("message", "the answer broke off")))
    return value


def _down(where: str, error: httpx.HTTPError) -> ModelError:
    return Unavailable(f"{where} does not answer: {error or type(error).__name__}", hint="smallfirst endpoints list")


def _refusal(response: httpx.Response) -> ModelError | ConfigError:
    """The server's refusal, by what its status means."""
    try:
        said = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = f"status {response.status_code}"
    if response.status_code == 401:
        return Unauthorised(said, hint=f"export {API_KEY_VARIABLE}=…")
    if response.status_code == 429:
        return RateLimited(said)
    if response.status_code >= 500:
        return Unavailable(said) if response.status_code == 503 else BadAnswer(said)
    return ConfigError(said)
