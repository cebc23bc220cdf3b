"""Describe endpoints to clients, in Databricks' format and in that of MLflow's gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from smallfirst.interfaces.mlflow_deployments.config_rules import entity_name
from smallfirst.interfaces.mlflow_deployments.config_schema import EndpointBody
from smallfirst.interfaces.mlflow_deployments.lifecycle import EndpointFolder, EndpointRecord, ServerStatus
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
    """Return the endpoint in Databricks' format, with `url`, `notes` and, in `state`, the reason for its state."""
    record = endpoint.config or endpoint.pending
    assert record is not None
    alive, status = endpoint.alive, endpoint.status
    body = EndpointBody.model_validate(record.body)
    external = all(entity.external_model is not None for entity in body.config.served_entities)
    return {
        "name": record.name,
        "id": record.id,
        "creator": record.created_by,
        "creation_timestamp": _ms(record.created_at),
        "last_updated_timestamp": _ms(record.updated_at),
        "state": _state(endpoint, alive, status),
        "config": {**record.body["config"], **_entities(body, record, status if alive else None)},
        "tags": record.body.get("tags") or [],
        **({"description": record.body["description"]} if record.body.get("description") else {}),
        **({"smallfirst": own} if (own := _without_hashes(record.body.get("smallfirst") or {})) else {}),
        "task": "llm/v1/chat",
        "endpoint_type": "EXTERNAL_MODEL" if external else "CUSTOM_MODEL",
        "permission_level": "CAN_MANAGE",
        "route_optimized": False,
        "url": record.url,
        "notes": list(status.notes) if status else [],
    }


def _without_hashes(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with the number of keys in place of their hashes."""
    server = own.get("server") or {}
    if not server.get("api_keys_sha256"):
        return dict(own)
    return {**own, "server": {**server, "api_keys_sha256": f"{len(server['api_keys_sha256'])} not shown"}}


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


def _entities(body: EndpointBody, record: EndpointRecord, status: ServerStatus | None) -> dict[str, Any]:
    deployment = "DEPLOYMENT_READY" if status and status.live else "DEPLOYMENT_FAILED"
    shown = []
    for raw, entity in zip(record.body["config"]["served_entities"], body.config.served_entities, strict=True):
        name = entity_name(entity)
        live = status.versions.get(name) if status else None
        version = {"live_version": str(live)} if live else {}
        shown.append({**raw, "name": name, **version, "state": {"deployment": deployment}})
    return {"served_entities": shown, "config_version": record.number}


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def listing_routes(all_endpoints: Callable[[], list[EndpointInfo]]) -> tuple[PluginRoute, ...]:
    """Return the routes that list and show, in both formats, those of `all_endpoints` that the caller may use."""

    def permitted() -> list[EndpointInfo]:
        return [endpoint for endpoint in all_endpoints() if current_caller().may_use(endpoint["name"])]

    def routes(path: str, convert: Callable[[EndpointInfo], EndpointInfo]) -> tuple[PluginRoute, ...]:
        def list_all(_: PluginRequest) -> PluginResponse:
            return {"endpoints": [convert(endpoint) for endpoint in permitted()]}

        def show(request: PluginRequest) -> PluginResponse:
            name = request.path_params["name"]
            found = next((endpoint for endpoint in permitted() if endpoint["name"] == name), None)
            if found is None:
                raise ApiError(404, f'No endpoint is called "{name[:128]}".', code="endpoint_not_found")
            return convert(found)

        return (
            PluginRoute("GET", path, list_all, "user"),
            PluginRoute("GET", f"{path}/", list_all, "user"),
            PluginRoute("GET", f"{path}/{{name}}", show, "user"),
        )

    return (*routes("/api/2.0/serving-endpoints", dict), *routes("/api/2.0/endpoints", gateway_entry))


def gateway_entry(endpoint: Mapping[str, Any]) -> EndpointInfo:
    """Return an endpoint in the format of MLflow's gateway."""
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
        state = {"ready": "READY", "config_update": "NOT_UPDATING"}
        self.routes = listing_routes(
            lambda: [{"name": name, "task": "llm/v1/chat", "state": state} for name in names()]
        )


def create_plugin(context: PluginContext) -> EndpointListing | None:
    """Return the plugin for `smallfirst serve`; None if it serves no model of its own."""
    return EndpointListing(lambda: context.models) if context.models else None
