"""MLflow's deployments plugin: `mlflow.deployments.get_deploy_client("smallfirst")`.

    client.create_endpoint("desk", config)            Databricks' config, as it is
    client.predict(endpoint="desk", inputs={"messages": […]})

MLflow searches this module for its client class, so exactly one may be visible here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar
from urllib.parse import quote

from mlflow.deployments.base import BaseDeploymentClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST

from smallfirst.errors import (
    BadAnswer,
    ConfigError,
    ModelError,
    RateLimited,
    SmallfirstError,
    Unauthorised,
    Unavailable,
)
from smallfirst.interfaces.mlflow_deployments import lifecycle
from smallfirst.interfaces.mlflow_deployments.lifecycle import EndpointFolder
from smallfirst.interfaces.mlflow_deployments.listing import describe
from smallfirst.models.remote.http import (
    BlockingSession,
    ConnectionBroken,
    HttpResponse,
    HttpSession,
    ResponseTimeout,
    error_text,
)

P = ParamSpec("P")
T = TypeVar("T")
API_KEY_VARIABLE = "SMALLFIRST_API_KEY"
"""Environment variable with the key of a server that requires one."""
TIMEOUT_S = 300.0
"""Longest wait between two chunks of an answer."""

_HELP = """\
smallfirst serves registered fine-tuned models, external models and cascades of both behind one name on this machine.

Target:  smallfirst                          endpoints kept here, each a background process
         smallfirst:/http://127.0.0.1:8000   a running server: predict, list and get

Endpoint config: what Databricks' serving endpoints take, as it is.
  served_entities   {"name", "entity_name": "catalog.schema.model", "entity_version": "3" or "@champion"}
                    {"name", "external_model": {"name", "provider", "task": "llm/v1/chat", "openai_config": {…}}}
                    providers: openai, databricks-model-serving, custom
  traffic_config    {"routes": [{"served_model_name", "traffic_percentage"}]}, together 100
  smallfirst        {"strategy": "split" or "cascade", "fallback", "sticky_by",
                     "prices", "server": {"host", "port", "api_keys_sha256", …}, "follow_every_s"}
Secrets: {{secrets/scope/key}} is read from the environment variable SCOPE_KEY; it is never kept.
A server that asks for a key is sent the one in SMALLFIRST_API_KEY.

Deployment (mlflow deployments create -t smallfirst --name desk -m models:/catalog.schema.model@champion):
  an endpoint of one registered model. -C port=8001 chooses its port.

On the command line: smallfirst endpoints list | show | logs | start | stop
"""


def run_local(name: str, model_uri: str, flavor: str | None = None, config: Any = None) -> dict[str, Any]:
    """Create a deployment on this machine; MLflow calls this without the target. Raise MlflowException."""
    return SmallfirstClient("smallfirst").create_deployment(name, model_uri, flavor, config)


def target_help() -> str:
    """Return the text of `mlflow deployments help -t smallfirst`."""
    return _HELP


def _mlflow_errors(function: Callable[P, T]) -> Callable[P, T]:
    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except SmallfirstError as error:
            _raise_mlflow_exception(error)

    return wrapped


def _raise_mlflow_exception(error: SmallfirstError) -> NoReturn:
    code = INVALID_PARAMETER_VALUE if isinstance(error, ConfigError) else INTERNAL_ERROR
    code = RESOURCE_DOES_NOT_EXIST if isinstance(error, lifecycle.EndpointNotFound) else code
    raise MlflowException(str(error), error_code=code) from error


class SmallfirstClient(BaseDeploymentClient):  # type: ignore[misc]
    """Endpoints of smallfirst, with the calls of MLflow's Databricks client."""

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)
        self._server = target_uri.partition(":/")[2].strip("/")
        if self._server and not self._server.startswith(("http://", "https://")):
            raise MlflowException(f"{target_uri}: a server such as http://127.0.0.1:8000 must follow smallfirst:/")

    @_mlflow_errors
    def create_endpoint(
        self, name: str | None = None, config: Mapping[str, Any] | None = None, route_optimized: bool = False
    ) -> dict[str, Any]:
        """Return the new endpoint once it answers; settings without effect are listed under `notes` and printed."""
        self._check_local("created")
        given = {**(config or {}), **({"route_optimized": True} if route_optimized else {})}
        return _with_notes_printed(lifecycle.create(name, given, log=_log))

    @_mlflow_errors
    def update_endpoint(self, endpoint: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the endpoint once the new config is live; if it cannot be, the old one stays live."""
        self._check_local("changed")
        return _with_notes_printed(lifecycle.update(endpoint, config or {}, log=_log))

    def update_endpoint_config(self, endpoint: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Call `update_endpoint`, by the name that Databricks' client uses."""
        return self.update_endpoint(endpoint, config)

    @_mlflow_errors
    def delete_endpoint(self, endpoint: str) -> None:
        """Delete the endpoint once its running requests are done; ignore one that does not exist."""
        self._check_local("deleted")
        lifecycle.delete(endpoint)

    @_mlflow_errors
    def list_endpoints(self) -> list[dict[str, Any]]:
        if self._server:
            found: list[dict[str, Any]] = ask(self._server, "GET", "/api/2.0/serving-endpoints")["endpoints"]
            return found
        return [describe(endpoint) for endpoint in lifecycle.all_endpoints()]

    @_mlflow_errors
    def get_endpoint(self, endpoint: str) -> dict[str, Any]:
        if self._server:
            return ask(self._server, "GET", f"/api/2.0/serving-endpoints/{quote(endpoint, safe='')}")
        return describe(lifecycle.find(endpoint))

    @_mlflow_errors
    def predict(self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None) -> Any:
        """Return the response: a chat completion, or `predictions` for a table, a data frame or a list."""
        return invoke(*self._address(endpoint or deployment_name), inputs)

    def predict_stream(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> Iterator[dict[str, Any]]:
        try:
            yield from invoke_stream(*self._address(endpoint or deployment_name), inputs)
        except SmallfirstError as error:
            _raise_mlflow_exception(error)

    @_mlflow_errors
    def create_deployment(
        self, name: str, model_uri: str, flavor: str | None = None, config: Any = None, endpoint: str | None = None
    ) -> dict[str, Any]:
        """Create an endpoint of one registered model, `models:/catalog.schema.model/3` or `…@champion`."""
        _check_plain(flavor, endpoint)
        return {**self.create_endpoint(name, _one_model(model_uri, config or {})), "flavor": "smallfirst"}

    @_mlflow_errors
    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Any = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Give the deployment another model; running requests end on the model they began with."""
        _check_plain(flavor, endpoint)
        if model_uri is None:
            raise ConfigError("model_uri is needed", hint="models:/catalog.schema.model@champion")
        return {**self.update_endpoint(name, _one_model(model_uri, config or {})), "flavor": "smallfirst"}

    def delete_deployment(self, name: str, config: Any = None, endpoint: str | None = None) -> None:
        self.delete_endpoint(name)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        return [self.get_endpoint(endpoint)] if endpoint else self.list_endpoints()

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        return self.get_endpoint(name)

    def _check_local(self, verb: str) -> None:
        if self._server:
            raise ConfigError(
                f"endpoints of {self._server} are not {verb} from here", hint='get_deploy_client("smallfirst")'
            )

    def _address(self, name: str | None) -> tuple[str, str]:
        if not name:
            raise ConfigError("no endpoint is named", hint='predict(endpoint="…", inputs={"messages": […]})')
        if self._server:
            return self._server, name
        return lifecycle.find_running(name).url, name


def _with_notes_printed(endpoint: EndpointFolder) -> dict[str, Any]:
    found = describe(endpoint)
    for note in found["notes"]:
        _log(f"{found['name']}: note: {note}")
    return found


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _check_plain(flavor: str | None, endpoint: str | None) -> None:
    if flavor not in (None, "smallfirst"):
        raise ConfigError(f'flavor "{flavor}" is not served here', hint="leave out the flavor")
    if endpoint is not None:
        raise ConfigError("a deployment is an endpoint of its own here", hint="update_endpoint adds a served entity")


def _one_model(model_uri: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of an endpoint of one registered model. MLflow's command line passes every setting as text."""
    reference = model_uri.removeprefix("models:/")
    name, mark, alias = reference.partition("@")
    version = mark + alias
    if not mark:
        name, _, version = reference.partition("/")
    more = {key: value for key, value in config.items() if key != "port"}
    server = {"smallfirst": {"server": {"port": config["port"]}}} if "port" in config else {}
    return {**server, **more, "served_entities": [{"entity_name": name, "entity_version": version or "@champion"}]}


def ask(server: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the JSON that a server answers. Raise ModelError, ConfigError for a request that it refuses."""
    with _connected(server) as session:
        found: dict[str, Any] = json.loads(session.read(_send(session, method, path, body)))
    return found


def invoke(server: str, name: str, inputs: Any) -> dict[str, Any]:
    """Return a PredictionsResponse for a table, else a DatabricksEndpoint. Raise as `ask` does."""
    from mlflow.deployments import DatabricksEndpoint, PredictionsResponse

    found = ask(server, "POST", _path(name), request_body(inputs))
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


def _send(session: BlockingSession, method: str, path: str, body: Mapping[str, Any] | None) -> HttpResponse:
    response = session.send(method, path, body)
    if response.status != 200:
        raise _refusal(response.status, session.read(response))
    return response


def _refusal(status: int, content: bytes) -> ModelError | ConfigError:
    try:
        message = str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"status {status}"
    if status == 401:
        return Unauthorised(message, hint=f"export {API_KEY_VARIABLE}=…")
    kinds = {429: RateLimited, 503: Unavailable}
    return kinds.get(status, BadAnswer if status >= 500 else ConfigError)(message)
