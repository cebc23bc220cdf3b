"""Describe endpoints to clients, in Databricks' format and in that of MLflow's gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from smallfirst.interfaces.mlflow_deployments.lifecycle import EndpointFolder
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
    record, alive, status = endpoint.config, endpoint.alive, endpoint.status
    assert record is not None
    body = record.body.model_dump(mode="json", exclude_unset=True)
    ready = alive and status.live > 0
    for entity, shown in zip(record.body.config.served_entities, body["config"]["served_entities"], strict=True):
        live = status.versions.get(entity.served_name) if alive else None
        shown |= {"name": entity.served_name, **({"live_version": str(live)} if live else {})}
    server = body.get("smallfirst", {}).get("server", {})
    if hashes := server.pop("api_keys_sha256", None):
        server["api_keys_sha256"] = f"{len(hashes)} not shown"
    return {
        **body,
        "id": record.id,
        "creator": record.created_by,
        "creation_timestamp": int(record.created_at.timestamp() * 1000),
        "last_updated_timestamp": int(record.updated_at.timestamp() * 1000),
        "state": {
            "ready": "READY" if ready else "NOT_READY",
            "config_update": "UPDATE_FAILED" if status.failed else "NOT_UPDATING",
            **({"why": why} if (why := status.why if alive else _not_alive(endpoint.name)) else {}),
        },
        "config": {**body["config"], "config_version": record.number},
        "task": "llm/v1/chat",
        "endpoint_type": "CUSTOM_MODEL" if record.body.registered else "EXTERNAL_MODEL",
        "url": record.url,
        "log": str(endpoint.output),
        "notes": [*record.notes, *status.notes],
    }


def _not_alive(name: str) -> str:
    return f"no server runs (stopped or killed): smallfirst endpoints start {name}"


def listing_routes(all_endpoints: Callable[[], list[EndpointInfo]]) -> tuple[PluginRoute, ...]:
    """Return the routes that list and show, in both formats, those of `all_endpoints` that the caller may use."""

    def routes(path: str, convert: Callable[[EndpointInfo], EndpointInfo]) -> tuple[PluginRoute, ...]:
        def permitted() -> dict[str, EndpointInfo]:
            return {one["name"]: convert(one) for one in all_endpoints() if current_caller().may_use(one["name"])}

        def list_all(_: PluginRequest) -> PluginResponse:
            return {"endpoints": [*permitted().values()]}

        def show(request: PluginRequest) -> PluginResponse:
            name = request.path_params["name"]
            if (found := permitted().get(name)) is None:
                raise ApiError(404, f'No endpoint is called "{name[:128]}".', code="endpoint_not_found")
            return found

        return (
            PluginRoute("GET", path, list_all, "user"),
            PluginRoute("GET", f"{path}/", list_all, "user"),
            PluginRoute("GET", f"{path}/{{name}}", show, "user"),
        )

    return (*routes("/api/2.0/serving-endpoints", dict), *routes("/api/2.0/endpoints", _gateway_entry))


def _gateway_entry(endpoint: Mapping[str, Any]) -> EndpointInfo:
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
