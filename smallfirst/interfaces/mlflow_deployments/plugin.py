"""MLflow's deployments plugin: `mlflow.deployments.get_deploy_client("smallfirst")`.

    client.create_endpoint("desk", config)            Databricks' config, as it is
    client.predict(endpoint="desk", inputs={"messages": […]})

Target `smallfirst` keeps endpoints on this machine, each a process that outlives this one. Target
`smallfirst:/http://127.0.0.1:8000` is a server that runs already: it is asked and listed, and changed by whoever runs
it. MLflow looks through this module for its client, so exactly one may be visible here. Every error is an
MlflowException in smallfirst's words.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar
from urllib.parse import quote

from mlflow.deployments.base import BaseDeploymentClient
from mlflow.exceptions import MlflowException

from smallfirst.errors import ConfigError, SmallfirstError

P = ParamSpec("P")
T = TypeVar("T")

_HELP = """\
smallfirst serves registered fine-tuned models, external models and cascades of both behind one name on this machine.

Target:  smallfirst                          endpoints kept here, each a background process
         smallfirst:/http://127.0.0.1:8000   a server that runs already: predict, list and get

Endpoint config: what Databricks' serving endpoints take, as it is.
  served_entities   {"name", "entity_name": "catalog.schema.model", "entity_version": "3" or "@champion"}
                    {"name", "external_model": {"name", "provider", "task": "llm/v1/chat", "openai_config": {…}}}
                    providers: openai, databricks-model-serving, custom
  traffic_config    {"routes": [{"served_model_name", "traffic_percentage"}]}, together 100
  smallfirst        {"strategy": "split" or "cascade", "fallback", "override": {"by", "because"}, "sticky_by",
                     "prices", "server": {"host", "port", "api_keys_sha256", …}, "follow_every_s"}
Secrets: {{secrets/scope/key}} is read from the environment variable SCOPE_KEY; it is never kept.
A server that asks for a key is sent the one in SMALLFIRST_API_KEY.

Deployment (mlflow deployments create -t smallfirst --name desk -m models:/catalog.schema.model@champion):
  an endpoint of one registered model. -C port=8001 chooses its port.

On the command line: smallfirst endpoints list | show | logs | start | stop
"""


def run_local(name: str, model_uri: str, flavor: str | None = None, config: Any = None) -> dict[str, Any]:
    """The deployment, which runs on this machine until it is deleted. Raises MlflowException.

    MLflow calls it without the target.
    """
    return SmallfirstClient("smallfirst").create_deployment(name, model_uri, flavor, config)


def target_help() -> str:
    """What `mlflow deployments help -t smallfirst` shows."""
    return _HELP


def _told(function: Callable[P, T]) -> Callable[P, T]:
    """The function, its errors as MLflow's."""

    @wraps(function)
    def telling(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except SmallfirstError as error:
            _refuse(error)

    return telling


def _refuse(error: SmallfirstError) -> NoReturn:
    from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST

    from smallfirst.interfaces.mlflow_deployments.lifecycle import EndpointNotFound

    code = INVALID_PARAMETER_VALUE if isinstance(error, ConfigError) else INTERNAL_ERROR
    code = RESOURCE_DOES_NOT_EXIST if isinstance(error, EndpointNotFound) else code
    raise MlflowException(str(error), error_code=code) from error


class SmallfirstClient(BaseDeploymentClient):
    """Endpoints of smallfirst, with the calls of MLflow's Databricks client."""

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)  # type: ignore[no-untyped-call]
        self._server = target_uri.partition(":/")[2].strip("/")
        if self._server and not self._server.startswith(("http://", "https://")):
            raise MlflowException(f"{target_uri}: after smallfirst:/ stands a server, such as http://127.0.0.1:8000")

    @_told
    def create_endpoint(
        self, name: str | None = None, config: Mapping[str, Any] | None = None, route_optimized: bool = False
    ) -> dict[str, Any]:
        """The endpoint, once it answers; what has no effect here is listed under `notes` and printed."""
        from smallfirst.interfaces.mlflow_deployments import lifecycle as endpoints

        self._check_local("created")
        given = {**(config or {}), **({"route_optimized": True} if route_optimized else {})}
        return _shown(endpoints.create(name, given, log=_log))

    @_told
    def update_endpoint(self, endpoint: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The endpoint, once the new config answers; one that cannot go live leaves the old one answering."""
        from smallfirst.interfaces.mlflow_deployments import lifecycle as endpoints

        self._check_local("changed")
        return _shown(endpoints.update(endpoint, config or {}, log=_log))

    def update_endpoint_config(self, endpoint: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """As `update_endpoint`, by the name that Databricks' client has for it."""
        return self.update_endpoint(endpoint, config)

    @_told
    def delete_endpoint(self, endpoint: str) -> None:
        """Nothing, once the endpoint is gone, its running requests done; one that is gone already is no error."""
        from smallfirst.interfaces.mlflow_deployments import lifecycle as endpoints

        self._check_local("deleted")
        endpoints.delete(endpoint)

    @_told
    def list_endpoints(self) -> list[dict[str, Any]]:
        """All endpoints."""
        if self._server:
            from smallfirst.interfaces.mlflow_deployments.client import get

            found: list[dict[str, Any]] = get(self._server, "/api/2.0/serving-endpoints")["endpoints"]
            return found
        from smallfirst.interfaces.mlflow_deployments import lifecycle as endpoints
        from smallfirst.interfaces.mlflow_deployments.listing import describe

        return [describe(endpoint) for endpoint in endpoints.all_endpoints()]

    @_told
    def get_endpoint(self, endpoint: str) -> dict[str, Any]:
        """One endpoint."""
        if self._server:
            from smallfirst.interfaces.mlflow_deployments.client import get

            return get(self._server, f"/api/2.0/serving-endpoints/{quote(endpoint, safe='')}")
        from smallfirst.interfaces.mlflow_deployments import lifecycle as endpoints
        from smallfirst.interfaces.mlflow_deployments.listing import describe

        return describe(endpoints.find(endpoint))

    @_told
    def predict(self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None) -> Any:
        """The body that answers: a chat's as OpenAI has it, or `predictions` for a table, a data frame or a list."""
        from smallfirst.interfaces.mlflow_deployments.client import invoke

        return invoke(*self._address(endpoint or deployment_name), inputs)

    def predict_stream(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """The chunks of an answer, as they come."""
        from smallfirst.interfaces.mlflow_deployments.client import invoke_stream

        try:
            yield from invoke_stream(*self._address(endpoint or deployment_name), inputs)
        except SmallfirstError as error:
            _refuse(error)

    @_told
    def create_deployment(
        self, name: str, model_uri: str, flavor: str | None = None, config: Any = None, endpoint: str | None = None
    ) -> dict[str, Any]:
        """An endpoint of one registered model, `models:/catalog.schema.model/3` or `…@champion`."""
        _check_plain(flavor, endpoint)
        return {**self.create_endpoint(name, _one_model(model_uri, config or {})), "flavor": "smallfirst"}

    @_told
    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Any = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """The deployment with another model; requests under way end where they began."""
        _check_plain(flavor, endpoint)
        if model_uri is None:
            raise ConfigError("model_uri is needed", hint="models:/catalog.schema.model@champion")
        return {**self.update_endpoint(name, _one_model(model_uri, config or {})), "flavor": "smallfirst"}

    def delete_deployment(self, name: str, config: Any = None, endpoint: str | None = None) -> None:
        """Nothing, once the deployment is gone; one that is gone already is no error."""
        self.delete_endpoint(name)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """All endpoints, or the one named."""
        return [self.get_endpoint(endpoint)] if endpoint else self.list_endpoints()

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """One deployment."""
        return self.get_endpoint(name)

    def _check_local(self, verb: str) -> None:
        if self._server:
            raise ConfigError(
                f"endpoints of {self._server} are not {verb} from here", hint='get_deploy_client("smallfirst")'
            )

    def _address(self, name: str | None) -> tuple[str, str]:
        """The server and the endpoint to ask."""
        if not name:
            raise ConfigError("no endpoint is named", hint='predict(endpoint="…", inputs={"messages": […]})')
        if self._server:
            return self._server, name
        from smallfirst.interfaces.mlflow_deployments import lifecycle as endpoints

        return endpoints.find_running(name).url, name


def _shown(endpoint: Any) -> dict[str, Any]:
    from smallfirst.interfaces.mlflow_deployments.listing import describe

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
    """The config of an endpoint of one registered model; the command line gives every setting as text."""
    reference = model_uri.removeprefix("models:/")
    name, mark, alias = reference.partition("@")
    version = mark + alias
    if not mark:
        name, _, version = reference.partition("/")
    more = {key: value for key, value in config.items() if key != "port"}
    server = {"smallfirst": {"server": {"port": config["port"]}}} if "port" in config else {}
    return {**server, **more, "served_entities": [{"entity_name": name, "entity_version": version or "@champion"}]}
