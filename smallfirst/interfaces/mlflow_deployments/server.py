"""The process of one endpoint, with the models of its config, which are replaced without interrupting requests.

It runs as `python -m smallfirst.interfaces.mlflow_deployments.server FOLDER LOCK`.
"""

from __future__ import annotations

import logging
import sys
import time
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
from smallfirst.interfaces.mlflow_deployments.lifecycle import EndpointFolder, EndpointRecord, ServerStatus
from smallfirst.interfaces.mlflow_deployments.listing import describe, listing_routes
from smallfirst.jobs.supervisor import claim_lock
from smallfirst.paths import ledger_place
from smallfirst.serving.plugins import Plugin, installed_plugins

_log = logging.getLogger("smallfirst.serving")

POLL_INTERVAL_S = 0.2
FOLLOW_EVERY_S = 5.0
"""Seconds between two lookups of the aliases."""
LINGER_S = 1.0
"""Seconds that replaced models stay open after their last request."""


class Live(NamedTuple):
    """A config with its models."""

    record: EndpointRecord
    loaded: LoadedEndpoint

    async def aclose(self) -> None:
        await self.loaded.aclose()


class LiveEndpoint(Plugin):
    """The plugin of an endpoint's server, with the served models in `models`.

    It is a target of the RegistryWatcher, which brings it the pending config and the versions of moved aliases.
    """

    name, interval_s = "endpoint", POLL_INTERVAL_S

    def __init__(self, endpoint: EndpointFolder, ledger: Ledger) -> None:
        """Load the pending config, or else the last live one. Raise SmallfirstError if neither can be loaded."""
        self.endpoint, self.models, self._ledger = endpoint, HotSwapModels(), ledger
        self._monitoring, self.status = MonitoringRoutes([], ledger), ServerStatus()
        self.collectors = self._monitoring.collectors
        self.watcher = RegistryWatcher(self.models, [self], linger_s=LINGER_S)
        self.routes = (*listing_routes(lambda: [describe(endpoint)]), *self._monitoring.routes)
        self._versions: dict[str, int] = {}
        self._lost: Exception | None = None
        """Why the last lookup of the aliases failed."""
        self._lookup_at_s = 0.0
        self._replace(self._load_first())

    def started(self) -> None:
        self.report(live=self.live.record.number)
        self.watcher.start()

    async def refresh(self) -> None:
        await self._monitoring.refresh()

    async def aclose(self) -> None:
        await self.watcher.stop()
        await self.models.aclose()

    def answered(self, id: str, request: Request, completion: Completion) -> None:
        """Count the answer and hand it to the audits, unless a version that was replaced meanwhile gave it."""
        route = completion.route
        router = self._monitoring.by_task.get(route.task) if route else None
        if route and router and route.certified and not router.gave(completion):
            completion = completion.model_copy(update={"route": route.model_copy(update={"audited": False})})
        self._monitoring.answered(id, request, completion)

    def report(self, **values: Any) -> None:
        self.status = self.status.model_copy(update=values)
        self.endpoint.report(self.status)

    def current(self) -> tuple[EndpointRecord, dict[str, int]]:
        return self.live.record, self.live.loaded.versions

    def wanted(self) -> tuple[EndpointRecord, dict[str, int]]:
        """Return the pending config, else the live one, and what its aliases named within the last seconds."""
        record = self.endpoint.pending or self.live.record
        if record.number != self.live.record.number:
            return record, resolve_versions(record.body.plan)
        if time.monotonic() >= self._lookup_at_s:
            self._lookup_at_s, self._lost = time.monotonic() + FOLLOW_EVERY_S, None
            try:
                self._versions = resolve_versions(record.body.plan)
            except Exception as error:
                self._lost = error
        if self._lost:
            raise self._lost
        return record, self._versions

    def load(self, wanted: tuple[EndpointRecord, dict[str, int]]) -> Live:
        record, _ = wanted
        return Live(record, load_endpoint(record.body.plan, self._ledger))

    def activate(self, loaded: Live) -> None:
        if loaded.record.number != self.live.record.number:
            self.endpoint.promote_pending()
        self._replace(loaded)
        self.report(live=loaded.record.number, failed=0, why="")
        _log.warning("%s: config %d answers from %s", self.endpoint.name, self.status.live, self.status.versions)

    def failed(self, wanted: tuple[EndpointRecord, dict[str, int]] | None, error: Exception) -> None:
        record = wanted[0] if wanted else self.endpoint.pending or self.live.record
        _log.warning("%s: config %d is not served: %s", self.endpoint.name, record.number, error)
        if record.number == self.live.record.number:
            self.report(why=_with_hint(error))
        else:
            self._refuse(record, error)

    def recovered(self) -> None:
        if not self.status.failed:
            self.report(why="")

    def _replace(self, live: Live) -> None:
        self.live, self._versions = live, live.loaded.versions
        self._monitoring.by_task = {router.name: router for router in live.loaded.routers}
        self.models.put([ModelSet(self.endpoint.name, live.loaded.models, live.loaded)])
        self.status = self.status.model_copy(update={"versions": live.loaded.versions, "notes": live.loaded.notes})

    def _refuse(self, pending: EndpointRecord, error: Exception) -> None:
        self.endpoint.drop_pending()
        self.report(failed=pending.number, why=_with_hint(error))

    def _load_first(self) -> Live:
        pending, config = self.endpoint.pending, self.endpoint.config
        if pending is not None:
            try:
                found = self.load((pending, {}))
            except Exception as error:
                self._refuse(pending, error)
                if config is None:
                    raise
            else:
                self.endpoint.promote_pending()
                return found
        if config is None:
            raise ConfigError(f"{self.endpoint.name} has no config", hint="create it again")
        return self.load((config, {}))


def _with_hint(error: Exception) -> str:
    text = " ".join(str(error.args[0] if error.args else "").split()) or type(error).__name__
    hint = getattr(error, "hint", None)
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
        record = live.live.record
        settings = record.body.server_settings.model_copy(update={"port": record.port})
        serve(live.models, ledger=ledger, settings=settings, plugins=[live, *installed_plugins(live.models)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
