"""An endpoint as its clients see it: in Databricks' words, and in those of MLflow's own HTTP client.

GET /api/2.0/serving-endpoints[/NAME]   as Databricks answers
GET /api/2.0/endpoints/[NAME]           as MLflow's gateway answers
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from smallfirst.interfaces.mlflow_deployments.config_rules import entity_name
from smallfirst.interfaces.mlflow_deployments.config_schema import EndpointBody
from smallfirst.interfaces.mlflow_deployments.endpoint_folder import EndpointFolder, EndpointRecord, ServerStatus
from smallfirst.serving.plugins import (
    ApiError,
    Plugin,
    PluginContext,
    PluginRequest,
    PluginResponse,
    PluginRoute,
    current_caller,
)

EndpointInfo = dict[str, Any]


def describe(endpoint: EndpointFolder) -> EndpointInfo:
    """The endpoint as Databricks' API shows one, with `url`, `notes` and, in `state`, why it is as it is."""
    kept = endpoint.config or endpoint.pending
    assert kept is not None
    alive, status = endpoint.alive, endpoint.status
    body = EndpointBody.model_validate(kept.body)
    external = all(entity.external_model is not None for entity in body.config.served_entities)
    return {
        "name": kept.name,
        "id": kept.id,
        "creator": kept.created_by,
        "creation_timestamp": _ms(kept.created_at),
        "last_updated_timestamp": _ms(kept.updated_at),
        "state": _state(endpoint, alive, status),
        "config": {**kept.body["config"], **_entities(body, kept, status if alive else None)},
        "tags": kept.body.get("tags") or [],
        **({"description": kept.body["description"]} if kept.body.get("description") else {}),
        **({"smallfirst": kept.body["smallfirst"]} if kept.body.get("smallfirst") else {}),
        "task": "llm/v1/chat",
        "endpoint_type": "EXTERNAL_MODEL" if external else "CUSTOM_MODEL",
        "permission_level": "CAN_MANAGE",
        "route_optimized": False,
        "url": kept.url,
        "notes": list(status.notes) if status else [],
    }


def _state(endpoint: EndpointFolder, alive: bool, status: ServerStatus | None) -> dict[str, str]:
    ready = alive and status is not None and status.live > 0
    update = "NOT_UPDATING"
    if alive and (endpoint.pending is not None or not ready):
        update = "IN_PROGRESS"
    elif status is not None and status.failed:
        update = "UPDATE_FAILED"
    why = status.why if status else ""
    if not alive:
        why = f"no server runs (stopped or killed): smallfirst endpoints start {endpoint.name}"
    return {"ready": "READY" if ready else "NOT_READY", "config_update": update, **({"why": why} if why else {})}


def _entities(body: EndpointBody, kept: EndpointRecord, status: ServerStatus | None) -> dict[str, Any]:
    """The served entities, each with its name, its state and the version that answers."""
    deployment = "DEPLOYMENT_READY" if status and status.live else "DEPLOYMENT_FAILED"
    shown = []
    for raw, entity in zip(kept.body["config"]["served_entities"], body.config.served_entities, strict=True):
        name = entity_name(entity)
        live = status.versions.get(name) if status else None
        known = {"live_version": str(live)} if live else {}
        shown.append({**raw, "name": name, **known, "state": {"deployment": deployment}})
    return {"served_entities": shown, "config_version": kept.number}


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def listing_routes(look: Callable[[], list[EndpointInfo]]) -> tuple[PluginRoute, ...]:
    """The routes that list and show the caller's endpoints; `look` gives all, each at least with `name` and `task`."""

    def seen() -> list[EndpointInfo]:
        return [endpoint for endpoint in look() if current_caller().may_use(endpoint["name"])]

    def one(call: PluginRequest) -> EndpointInfo:
        name = call.path_params["name"]
        found = next((endpoint for endpoint in seen() if endpoint["name"] == name), None)
        if found is None:
            raise ApiError(404, f'No endpoint is called "{name[:128]}".', code="endpoint_not_found")
        return found

    async def databricks_all(_: PluginRequest) -> PluginResponse:
        return {"endpoints": seen()}

    async def databricks_one(call: PluginRequest) -> PluginResponse:
        return one(call)

    async def mlflow_all(_: PluginRequest) -> PluginResponse:
        return {"endpoints": [gateway_entry(endpoint) for endpoint in seen()]}

    async def mlflow_one(call: PluginRequest) -> PluginResponse:
        return gateway_entry(one(call))

    return (
        PluginRoute("GET", "/api/2.0/serving-endpoints", databricks_all, "user"),
        PluginRoute("GET", "/api/2.0/serving-endpoints/", databricks_all, "user"),
        PluginRoute("GET", "/api/2.0/serving-endpoints/{name}", databricks_one, "user"),
        PluginRoute("GET", "/api/2.0/endpoints", mlflow_all, "user"),
        PluginRoute("GET", "/api/2.0/endpoints/", mlflow_all, "user"),
        PluginRoute("GET", "/api/2.0/endpoints/{name}", mlflow_one, "user"),
    )


def gateway_entry(endpoint: Mapping[str, Any]) -> EndpointInfo:
    """An endpoint as MLflow's gateway shows one."""
    name = endpoint["name"]
    return {
        "name": name,
        "endpoint_type": endpoint["task"],
        "model": {"name": name, "provider": "smallfirst"},
        "endpoint_url": f"/endpoints/{name}/invocations",
        "limit": None,
    }


class EndpointListing(Plugin):
    """List what any server serves as endpoints, so that `smallfirst serve` answers MLflow's clients too."""

    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        """List the served names that `names` returns."""
        self.routes = listing_routes(lambda: [_served(name) for name in names()])


def create_plugin(context: PluginContext) -> EndpointListing | None:
    """Return the plugin for `smallfirst serve`; None if it serves no model of its own."""
    return EndpointListing(lambda: context.models) if context.models else None


def _served(name: str) -> EndpointInfo:
    return {"name": name, "task": "llm/v1/chat", "state": {"ready": "READY", "config_update": "NOT_UPDATING"}}
