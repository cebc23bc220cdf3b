"""MLflow's deployments plugin: `mlflow.deployments.get_deploy_client("smallfirst")`.

    client.create_endpoint("desk", config)            Databricks' config, as it is
    client.predict(endpoint="desk", inputs={"messages": […]})

It asks the server at http://127.0.0.1:8000, or at the address of `smallfirst://HOST:PORT`. MLflow searches this module
for its client class, so exactly one may be visible here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from mlflow.deployments.base import BaseDeploymentClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST

from smallfirst.interfaces.mlflow_deployments.endpoints import API
from smallfirst.models.remote.http import BlockingSession, ConnectionBroken, HttpSession, error_text

API_KEY_VARIABLE = "SMALLFIRST_API_KEY"
"""Environment variable with the key of a server that requires one: one of the role admin."""
TIMEOUT_S = 300.0
"""Longest wait for an answer: models are read from disk."""


def run_local(name: str, model_uri: str, flavor: str | None = None, config: Any = None) -> dict[str, Any]:
    """Create a deployment on this machine; MLflow calls this without the target. Raise MlflowException."""
    return SmallfirstClient("smallfirst").create_deployment(name, model_uri, flavor, config)


def target_help() -> str:
    """Return the text of `mlflow deployments help -t smallfirst`."""
    return (
        "smallfirst: endpoints of  smallfirst serve --plugin mlflow_deployments  at port 8000, or smallfirst://HOST:PORT\n"
        "The config is that of Databricks' serving endpoints, and docs/deploy.md says what of it has an effect here.\n"
        f"A server that asks for a key is sent the one in {API_KEY_VARIABLE}.\n"
    )


class SmallfirstClient(BaseDeploymentClient):  # type: ignore[misc]
    """Endpoints of a server, with the calls of MLflow's Databricks client. Every call raises MlflowException."""

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)
        self.url = f"http://{target_uri.partition('://')[2] or '127.0.0.1:8000'}"

    def create_endpoint(
        self, name: str | None = None, config: Mapping[str, Any] | None = None, route_optimized: bool = False
    ) -> dict[str, Any]:
        return self._shown(self._ask("POST", API, {**({"name": name} if name else {}), **(config or {})}))

    def update_endpoint(self, endpoint: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the endpoint once the new config is live; if it cannot be, the old one stays live."""
        return self._shown(self._ask("PUT", f"{_path(endpoint)}/config", dict(config or {})))

    def update_endpoint_config(self, endpoint: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Call `update_endpoint`, by the name that Databricks' client uses."""
        return self.update_endpoint(endpoint, config)

    def delete_endpoint(self, endpoint: str) -> None:
        """Delete the endpoint, whose running requests end; ignore one that does not exist."""
        self._ask("DELETE", _path(endpoint))

    def list_endpoints(self) -> list[dict[str, Any]]:
        return [self._shown(one) for one in self._ask("GET", API)["endpoints"]]

    def get_endpoint(self, endpoint: str) -> dict[str, Any]:
        return self._shown(self._ask("GET", _path(endpoint)))

    def predict(self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None) -> Any:
        """Return the chat completion, or the completion of a `prompt`."""
        from mlflow.deployments import DatabricksEndpoint

        name = endpoint or deployment_name
        if not name or not isinstance(inputs, Mapping):
            wanted = 'predict(endpoint="…", inputs={"messages": […]}); smallfirst score TASK ROWS  is for many rows'
            raise MlflowException(f"name an endpoint and a body: {wanted}", error_code=INVALID_PARAMETER_VALUE)
        path = f"/serving-endpoints/{quote(name, safe='')}/invocations"
        return DatabricksEndpoint(self._ask("POST", path, dict(inputs)))

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

    def _shown(self, endpoint: dict[str, Any]) -> dict[str, Any]:
        return {**endpoint, "url": self.url}

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        key = os.environ.get(API_KEY_VARIABLE, "").strip()
        try:
            with BlockingSession(lambda: HttpSession(self.url, key=key, timeout_s=TIMEOUT_S)) as session:
                response = session.send(method, path, body)
                content = session.read(response)
        except ConnectionBroken as error:
            hint = "smallfirst serve --plugin mlflow_deployments"
            raise MlflowException(f"{self.url} does not answer: {error_text(error)}\n  next: {hint}") from None
        if response.status != 200:
            raise _refusal(response.status, content)
        return dict(json.loads(content))


def _path(endpoint: str) -> str:
    return f"{API}/{quote(endpoint, safe='')}"


def _one_model(model_uri: str) -> dict[str, Any]:
    """Return the config of an endpoint of one registered model."""
    name, _, version = model_uri.removeprefix("models:/").replace("@", "/@").partition("/")
    return {"served_entities": [{"entity_name": name, "entity_version": version or "@champion"}]}


def _refusal(status: int, content: bytes) -> MlflowException:
    try:
        message = str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"status {status}"
    if status == 401:
        message += f"\n  next: export {API_KEY_VARIABLE}=…"
    code = INTERNAL_ERROR if status == 429 or status >= 500 else INVALID_PARAMETER_VALUE
    return MlflowException(message, error_code=RESOURCE_DOES_NOT_EXIST if status == 404 else code)
