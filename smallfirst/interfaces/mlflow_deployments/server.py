"""The process of one endpoint, with the models of its config, which are replaced without interrupting requests.

It runs as `python -m smallfirst.interfaces.mlflow_deployments.server FOLDER LOCK`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from smallfirst import Completion, Ledger, Request, serve
from smallfirst.deployment.endpoint_plan import LoadedEndpoint, load_endpoint, resolve_versions
from smallfirst.deployment.hot_swap import HotSwapModels, ModelSet
from smallfirst.deployment.monitoring_routes import MonitoringRoutes
from smallfirst.deployment.registry_watcher import RegistryWatcher
from smallfirst.errors import ConfigError, SmallfirstError
from smallfirst.interfaces.mlflow_deployments.config import ParsedConfig, parse_config
from smallfirst.interfaces.mlflow_deployments.lifecycle import EndpointFolder, EndpointRecord
from smallfirst.interfaces.mlflow_deployments.listing import describe, listing_routes
from smallfirst.jobs.supervisor import claim_lock
from smallfirst.paths import ledger_place
from smallfirst.serving.plugins import Plugin, installed_plugins

_log = logging.getLogger("smallfirst.serving")

POLL_INTERVAL_S = 0.2
LINGER_S = 1.0
"""Seconds that replaced models stay open after their last request."""


class LiveEndpoint(Plugin):
    """The plugin of an endpoint's server, with the served models in `models`."""

    def __init__(self, endpoint: EndpointFolder, ledger: Ledger) -> None:
        """Load the pending config, or else the last live one. Raise SmallfirstError if neither can be loaded."""
        self.endpoint, self.models, self._ledger = endpoint, HotSwapModels(), ledger
        self._monitoring = MonitoringRoutes([], ledger)
        self.collectors = self._monitoring.collectors
        self.status: dict[str, Any] = {"live": 0, "versions": {}, "failed": 0, "why": "", "notes": ()}
        self.config = self._load_first()
        self.replace(self.config)
        self._pending, self._aliases = PendingConfig(self), MovedAliases(self)
        self._watcher = RegistryWatcher(self.models, [self._pending, self._aliases], linger_s=LINGER_S)
        self.routes = (*listing_routes(lambda: [describe(endpoint)]), *self._monitoring.routes)

    def started(self) -> None:
        self.report(live=self.config.record.number)
        self._watcher.start()

    async def refresh(self) -> None:
        await self._monitoring.refresh()

    async def aclose(self) -> None:
        await self._watcher.stop()
        await self.models.aclose()

    def answered(self, id: str, request: Request, completion: Completion) -> None:
        """Count the answer and hand it to the audits, unless a version that was replaced meanwhile gave it."""
        route = completion.route
        router = self._monitoring.by_task.get(route.task) if route else None
        if route and router and route.certified and not router.gave(completion):
            completion = completion.model_copy(update={"route": route.model_copy(update={"audited": False})})
        self._monitoring.answered(id, request, completion)

    def load(self, record: EndpointRecord) -> LoadedConfig:
        parsed = parse_config(record.name, record.body)
        stored = parsed.settings.store_bodies
        return LoadedConfig(record, parsed, load_endpoint(record.name, parsed.plan, self._ledger, store_bodies=stored))

    def check_aliases(self) -> None:
        self._watcher.poll([self._aliases])

    def replace(self, config: LoadedConfig) -> None:
        self.config = config
        self._monitoring.by_task = {router.name: router for router in config.loaded.routers}
        self.models.put([ModelSet(config.record.name, config.loaded.models, config.loaded)])
        self.status |= {"versions": config.loaded.versions, "notes": (*config.parsed.notes, *config.loaded.notes)}

    def report(self, **values: Any) -> None:
        self.status |= values
        self.endpoint.report_status(**self.status)

    def report_failure(self, record: EndpointRecord, error: Exception) -> None:
        _log.warning("%s: config %d cannot go live: %s", record.name, record.number, error)
        self.endpoint.drop_pending()
        self.report(failed=record.number, why=_with_hint(error))

    def _load_first(self) -> LoadedConfig:
        pending, config = self.endpoint.pending, self.endpoint.config
        if pending is not None:
            try:
                loaded = self.load(pending)
            except Exception as error:
                self.report_failure(pending, error)
                if config is None:
                    raise
            else:
                self.endpoint.promote_pending()
                return loaded
        if config is None:
            raise ConfigError(f"{self.endpoint.name} has no config", hint="create it again")
        return self.load(config)


class LoadedConfig(NamedTuple):
    """A config with its models."""

    record: EndpointRecord
    parsed: ParsedConfig
    loaded: LoadedEndpoint

    async def aclose(self) -> None:
        await self.loaded.aclose()


class PendingConfig:
    """The pending config of an endpoint as a target of the RegistryWatcher."""

    name, interval_s = "pending config", POLL_INTERVAL_S

    def __init__(self, live: LiveEndpoint) -> None:
        self._live = live

    def current(self) -> EndpointRecord:
        return self._live.config.record

    def wanted(self) -> EndpointRecord:
        pending = self._live.endpoint.pending
        return self.current() if pending is None or pending.number == self.current().number else pending

    def load(self, wanted: EndpointRecord) -> LoadedConfig:
        return self._live.load(wanted)

    def activate(self, loaded: LoadedConfig) -> None:
        self._live.endpoint.promote_pending()
        self._live.replace(loaded)
        self._live.report(live=loaded.record.number, failed=0, why="")
        _log.warning("%s: config %d is live", loaded.record.name, loaded.record.number)

    def failed(self, wanted: EndpointRecord | None, error: Exception) -> None:
        if wanted is None:
            _log.warning("%s: the pending config cannot be read: %s", self._live.endpoint.name, error)
        else:
            self._live.report_failure(wanted, error)

    def recovered(self) -> None:
        """Do nothing: the status keeps the reason of the last failure."""


class MovedAliases:
    """The aliases in the live config as a target of the RegistryWatcher."""

    name = "aliases"

    def __init__(self, live: LiveEndpoint) -> None:
        self._live = live

    @property
    def interval_s(self) -> float:
        return self._live.config.parsed.follow_every_s

    def current(self) -> dict[str, int]:
        return self._live.config.loaded.versions

    def wanted(self) -> dict[str, int]:
        plan = self._live.config.parsed.plan
        followed = any(entity.version.startswith("@") for entity in plan.registered)
        return resolve_versions(plan) if followed else self.current()

    def load(self, wanted: dict[str, int]) -> LoadedConfig:
        return self._live.load(self._live.config.record)

    def activate(self, loaded: LoadedConfig) -> None:
        self._live.replace(loaded)
        self._live.report(why="")
        _log.warning("%s: answers from %s", self._live.endpoint.name, loaded.loaded.versions)

    def failed(self, wanted: dict[str, int] | None, error: Exception) -> None:
        _log.warning("%s: a moved alias is not followed: %s", self._live.endpoint.name, error)
        self._live.report(why=_with_hint(error))

    def recovered(self) -> None:
        self._live.report(why="")


def _with_hint(error: Exception) -> str:
    hint = getattr(error, "hint", None)
    text = " ".join(str(error.args[0] if error.args else "").split()) or type(error).__name__
    return f"{text}; {hint}"[:2000] if hint else text[:2000]


def main(arguments: Sequence[str]) -> int:
    """Return 0 after SIGTERM, 1 if the endpoint could not be served, 2 if another process serves it."""
    endpoint = EndpointFolder(Path(arguments[0]).absolute())
    if claim_lock(endpoint.lock, arguments) is None:
        print(f"{endpoint.name} is served by another process", file=sys.stderr)
        return 2
    try:
        serve_endpoint(endpoint)
    except SmallfirstError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def serve_endpoint(endpoint: EndpointFolder) -> None:
    """Serve the endpoint until the process is told to stop and has drained. Raise SmallfirstError if it cannot."""
    with closing(Ledger(ledger_place(create=True))) as ledger:
        live = LiveEndpoint(endpoint, ledger)
        record = endpoint.config
        assert record is not None
        settings = live.config.parsed.settings.model_copy(update={"port": record.port})
        serve(live.models, ledger=ledger, settings=settings, plugins=[live, *installed_plugins(live.models)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
