"""The endpoints of a server: a plugin with the routes of Databricks' serving endpoints.

`smallfirst serve --plugin mlflow_deployments` keeps each config in a file of the state folder and loads its models. A
new config is loaded beside the live one and takes its place between two requests.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from contextvars import copy_context
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smallfirst import Model
from smallfirst.base.errors import ConfigError, SmallfirstError, did_you_mean
from smallfirst.base.files import write_atomically
from smallfirst.base.paths import home
from smallfirst.base.records import Record
from smallfirst.deployment.endpoint_plan import load_endpoint
from smallfirst.deployment.hot_swap import HotSwapModels, ModelSet, RegistryWatcher, one_line
from smallfirst.interfaces.mlflow_deployments.config import EndpointBody, parse_config
from smallfirst.serving.plugins import ApiError, Plugin, PluginContext, PluginRequest, PluginResponse, PluginRoute

API = "/api/2.0/serving-endpoints"
MAX_BODY_BYTES = 256 * 1024
CLOSE_EVERY_S, LINGER_S = 5.0, 1.0
"""Seconds between two looks for replaced models, and seconds that these stay open after their last request."""


class EndpointRecord(Record):
    """An endpoint and its config."""

    number: int
    """Of the config, from 1."""
    created_at: datetime
    updated_at: datetime
    body: EndpointBody


class EndpointNotFound(SmallfirstError):
    """No endpoint has this name."""


class Endpoints(Plugin):
    """The plugin."""

    name = "endpoints"

    def __init__(self, folder: Path) -> None:
        """Load the endpoints in `folder`; one that cannot be loaded is NOT_READY until its next update or start."""
        self.folder, self.models = folder, HotSwapModels()
        self.records = {path.stem: EndpointRecord.load(path) for path in sorted(folder.glob("*.json"))}
        self.live: dict[str, dict[str, int]] = {}
        """The version of each entity, by the endpoint that answers with it."""
        self.why: dict[str, str] = {}
        """Why an endpoint does not answer, by name."""
        self._changing = threading.Lock()
        self._context = copy_context()  # with the state folder: a thread does not inherit it
        self._closer = RegistryWatcher(self.models, [], interval_s=CLOSE_EVERY_S, linger_s=LINGER_S)
        for name, record in self.records.items():
            try:
                self._load(record)
            except SmallfirstError as error:
                self.why[name] = one_line(error)
        self.routes = (
            PluginRoute("POST", API, self._create),
            PluginRoute("GET", API, lambda _: {"endpoints": [self.shown(name) for name in sorted(self.records)]}),
            PluginRoute("GET", f"{API}/{{name}}", lambda call: self._answer(self.shown, call.path_params["name"])),
            PluginRoute("PUT", f"{API}/{{name}}/config", self._update),
            PluginRoute("DELETE", f"{API}/{{name}}", lambda call: self.delete(call.path_params["name"])),
        )

    def find(self, name: str, caller: str) -> Model | None:
        return self.models.get(name)

    def names(self, caller: str) -> Mapping[str, int]:
        made = {name: int(record.created_at.timestamp()) for name, record in self.records.items()}
        return {served: made[served.partition("/")[0]] for served in self.models}

    def started(self) -> None:
        self._closer.start()

    async def aclose(self) -> None:
        await self._closer.stop()
        await self.models.aclose()

    async def _create(self, call: PluginRequest) -> PluginResponse:
        return await asyncio.to_thread(self._answer, self.create, await call.json(max_bytes=MAX_BODY_BYTES))

    async def _update(self, call: PluginRequest) -> PluginResponse:
        body = await call.json(max_bytes=MAX_BODY_BYTES)
        return await asyncio.to_thread(self._answer, self.update, call.path_params["name"], body)

    def _answer(self, work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        """Return what `work` returns. Raise ApiError in the words of its error."""
        try:
            return self._context.copy().run(work, *arguments)
        except SmallfirstError as error:
            told = f"{error.args[0]}\n  next: {error.hint}" if error.hint else str(error.args[0])
            missing = isinstance(error, EndpointNotFound)
            raise ApiError(404 if missing else 400, told, code="not_found" if missing else None) from None

    def create(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the new endpoint, which answers from now on. Raise SmallfirstError if it cannot."""
        with self._changing:
            body, now = parse_config(None, config), datetime.now(UTC)
            if body.name in self.records:
                hint = f'update_endpoint("{body.name}", …), or delete it first'
                raise ConfigError(f'there is an endpoint "{body.name}" already', hint=hint)
            return self._put(EndpointRecord(number=1, created_at=now, updated_at=now, body=body))

    def update(self, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the endpoint once the new config is live. Raise SmallfirstError if it cannot be; the old one stays."""
        with self._changing:
            before = self.record(name)
            body = parse_config(name, config, before=before.body)
            changes = {"number": before.number + 1, "updated_at": datetime.now(UTC), "body": body}
            return self._put(before.model_copy(update=changes))

    def delete(self, name: str) -> dict[str, Any]:
        """Remove an endpoint, whose running requests end; do nothing if there is none."""
        with self._changing:
            if self.records.pop(name, None) is not None:
                (self.folder / f"{name}.json").unlink(missing_ok=True)
                self.live.pop(name, None)
                self.why.pop(name, None)
                self.models.put([], without=[name])
        return {}

    def record(self, name: str) -> EndpointRecord:
        """Return an endpoint's record. Raise EndpointNotFound with the nearest name."""
        if name not in self.records:
            near = did_you_mean(name[:128], self.records)
            raise EndpointNotFound(f'no endpoint is called "{name[:128]}"{near}')
        return self.records[name]

    def _put(self, record: EndpointRecord) -> dict[str, Any]:
        self._load(record)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        content = record.model_dump_json(indent=2, exclude_unset=True).encode()
        write_atomically(self.folder / f"{record.body.name}.json", content, mode=0o600)
        return self.shown(record.body.name)

    def _load(self, record: EndpointRecord) -> None:
        name = record.body.name
        loaded = load_endpoint(name, record.body.references, record.body.config.percent)
        self.records[name], self.live[name] = record, loaded.versions
        self.models.put([ModelSet(name, loaded.models, loaded)])
        self.why.pop(name, None)

    def shown(self, name: str) -> dict[str, Any]:
        """Return an endpoint in Databricks' format with, in `state`, the reason for its state."""
        record, live = self.record(name), self.live.get(name)
        body = record.body.model_dump(mode="json", exclude_unset=True)
        for entity, shown in zip(record.body.config.served_entities, body["config"]["served_entities"], strict=True):
            version = (live or {}).get(entity.served_name)
            shown |= {"name": entity.served_name, **({"live_version": str(version)} if version else {})}
        why = self.why.get(name)
        return {
            **body,
            "creation_timestamp": int(record.created_at.timestamp() * 1000),
            "last_updated_timestamp": int(record.updated_at.timestamp() * 1000),
            "state": {
                "ready": "NOT_READY" if live is None else "READY",
                "config_update": "NOT_UPDATING",
                **({"why": why} if why else {}),
            },
            "config": {**body["config"], "config_version": record.number},
            "task": "llm/v1/chat",
        }


def create_plugin(context: PluginContext) -> Endpoints | None:
    """Return the plugin of `smallfirst serve`; None if it is not enabled."""
    return Endpoints(home() / "endpoints") if context.enabled else None
