"""MLflow's deployments plugin: `mlflow.deployments.get_deploy_client("smallfirst")`.

    client.create_endpoint("desk", config)            Databricks' config, as it is
    client.predict(endpoint="desk", inputs={"messages": […]})

MLflow searches this module for its client class, so exactly one may be visible here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar
from urllib.parse import quote

from mlflow.deployments.base import BaseDeploymentClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST

from smallfirst.base.errors import BadAnswer, ConfigError, SmallfirstError, Unavailable
from smallfirst.interfaces.mlflow_deployments import endpoints
from smallfirst.interfaces.mlflow_deployments.endpoints import describe
from smallfirst.models.remote.http import BlockingSession, ConnectionBroken, HttpResponse, HttpSession, error_text

P = ParamSpec("P")
T = TypeVar("T")
API_KEY_VARIABLE = "SMALLFIRST_API_KEY"
"""Environment variable with the key of a server that requires one."""
TIMEOUT_S = 300.0
"""Longest wait between two chunks of an answer."""


def run_local(name: str, model_uri: str, flavor: str | None = None, config: Any = None) -> dict[str, Any]:
    """Create a deployment on this machine; MLflow calls this without the target. Raise MlflowException."""
    return SmallfirstClient("smallfirst").create_deployment(name, model_uri, flavor, config)


def target_help() -> str:
    """Return the text of `mlflow deployments help -t smallfirst`."""
    return (
        "smallfirst: endpoints of this machine, each a background process \n"
        "The config is that of Databricks' serving endpoints, and docs/deploy.md says what of it has an effect here.\n"
        "{{secrets/scope/key}} is read from the environment variable SCOPE_KEY and never kept; a server that asks for\n"
        f"a key is sent the one in {API_KEY_VARIABLE}.\n"
    )


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
    code = RESOURCE_DOES_NOT_EXIST if isinstance(error, endpoints.EndpointNotFound) else code
    raise MlflowException(str(error), error_code=code) from error


class SmallfirstClient(BaseDeploymentClient):  # type: ignore[misc]
    """Endpoints of smallfirst, with the calls of MLflow's Databricks client."""

    @_mlflow_errors
    def create_endpoint(
        self, name: str | None = None, config: Mapping[str, Any] | None = None, route_optimized: bool = False
    ) -> dict[str, Any]:
        """Return the new endpoint once it answers."""
        return describe(endpoints.create(name, config))

    @_mlflow_errors
    def update_endpoint(self, endpoint: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the endpoint once the new config is live; if it cannot be, the old one stays live."""
        return describe(endpoints.update(endpoint, config or {}))

    def update_endpoint_config(self, endpoint: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Call `update_endpoint`, by the name that Databricks' client uses."""
        return self.update_endpoint(endpoint, config)

    @_mlflow_errors
    def delete_endpoint(self, endpoint: str) -> None:
        """Delete the endpoint once its running requests are done; ignore one that does not exist."""
        endpoints.delete(endpoint)

    @_mlflow_errors
    def list_endpoints(self) -> list[dict[str, Any]]:
        return [describe(endpoint) for endpoint in endpoints.all_endpoints()]

    @_mlflow_errors
    def get_endpoint(self, endpoint: str) -> dict[str, Any]:
        return describe(endpoints.find(endpoint))

    @_mlflow_errors
    def predict(self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None) -> Any:
        """Return the chat completion, or the completion of a `prompt`."""
        from mlflow.deployments import DatabricksEndpoint

        with _answered(endpoint or deployment_name, _request_body(inputs)) as (session, response):
            found = json.loads(session.read(response))
        return DatabricksEndpoint(found)

    def predict_stream(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> Iterator[dict[str, Any]]:
        try:
            body = {**_request_body(inputs), "stream": True}
            with _answered(endpoint or deployment_name, body) as (session, response):
                for value in session.events(response):
                    if value and value != "[DONE]":
                        chunk = json.loads(value)
                        if "error" in chunk:
                            raise BadAnswer(str(chunk["error"].get("message", "the answer broke off")))
                        yield chunk
        except SmallfirstError as error:
            _raise_mlflow_exception(error)

    def create_deployment(
        self, name: str, model_uri: str, flavor: str | None = None, config: Any = None, endpoint: str | None = None
    ) -> dict[str, Any]:
        """Create an endpoint of one registered model, `models:/catalog.schema.model/3` or `…@champion`."""
        return {**self.create_endpoint(name, {**(config or {}), **_one_model(model_uri)}), "flavor": "smallfirst"}

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Any = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Give the deployment another model; running requests end on the model they began with."""
        return {**self.update_endpoint(name, {**(config or {}), **_one_model(model_uri or "")}), "flavor": "smallfirst"}

    def delete_deployment(self, name: str, config: Any = None, endpoint: str | None = None) -> None:
        self.delete_endpoint(name)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        return self.list_endpoints()

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        return self.get_endpoint(name)


def _one_model(model_uri: str) -> dict[str, Any]:
    """Return the config of an endpoint of one registered model."""
    name, _, version = model_uri.removeprefix("models:/").replace("@", "/@").partition("/")
    return {"served_entities": [{"entity_name": name, "entity_version": version or "@champion"}]}


def _request_body(inputs: Any) -> dict[str, Any]:
    if not isinstance(inputs, Mapping):
        raise ConfigError(
            f"inputs are a body such as a chat's, not {type(inputs).__name__}",
            hint='inputs={"messages": […]}; or  smallfirst score TASK ROWS  for many rows',
        )
    return dict(inputs)


@contextmanager
def _answered(name: str | None, body: Mapping[str, Any]) -> Iterator[tuple[BlockingSession, HttpResponse]]:
    """Yield what an endpoint answers. Raise Unavailable, ConfigError for a request that it refuses, BadAnswer."""
    if not name:
        raise ConfigError("no endpoint is named", hint='predict(endpoint="…", inputs={"messages": […]})')
    server, key = describe(endpoints.find(name))["url"], os.environ.get(API_KEY_VARIABLE, "").strip()
    try:
        with BlockingSession(lambda: HttpSession(server, key=key, timeout_s=TIMEOUT_S)) as session:
            response = session.send("POST", f"/serving-endpoints/{quote(name, safe='')}/invocations", body)
            if response.status != 200:
                raise _refusal(response.status, session.read(response))
            yield session, response
    except ConnectionBroken as error:
        hint = f'update_endpoint("{name}", {{}}) starts one that was killed'
        raise Unavailable(f"{server} does not answer: {error_text(error)}", hint=hint) from None


def _refusal(status: int, content: bytes) -> SmallfirstError:
    try:
        message = str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"status {status}"
    kind = BadAnswer if status == 429 or status >= 500 else ConfigError
    return kind(message, hint=f"export {API_KEY_VARIABLE}=…" if status == 401 else None)
