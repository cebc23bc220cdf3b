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

from smallfirst import Ledger, serve
from smallfirst.base.errors import SmallfirstError
from smallfirst.base.paths import ledger_place
from smallfirst.deployment.endpoint_plan import LoadedEndpoint, load_endpoint, resolve_versions
from smallfirst.deployment.hot_swap import HotSwapModels, ModelSet, RegistryWatcher
from smallfirst.interfaces.jobs.supervisor import claim_lock
from smallfirst.interfaces.mlflow_deployments.endpoints import EndpointFolder, EndpointRecord, ServerStatus
from smallfirst.serving.plugins import Plugin, installed_plugins

_log = logging.getLogger("smallfirst.serving")

POLL_INTERVAL_S = 0.2
FOLLOW_EVERY_S = 5.0
"""Seconds between two lookups of the aliases."""
LINGER_S = 1.0
"""Seconds that replaced models stay open after their last request."""
Wanted = tuple[EndpointRecord, dict[str, int]]
"""A config, and the version of each registered entity."""


class Live(NamedTuple):
    """A config with its models."""

    record: EndpointRecord
    loaded: LoadedEndpoint

    async def aclose(self) -> None:
        await self.loaded.aclose()


class LiveEndpoint(Plugin):
    """The plugin of an endpoint's server, with the served models in `models`.

    It is a target of the RegistryWatcher, which brings it the config on disk and the versions of moved aliases.
    """

    name = "endpoint"

    def __init__(self, endpoint: EndpointFolder) -> None:
        """Load the config. Raise SmallfirstError if that cannot be done."""
        self.endpoint, self.models, self.status = endpoint, HotSwapModels(), ServerStatus()
        self.watcher = RegistryWatcher(self.models, [self], interval_s=POLL_INTERVAL_S, linger_s=LINGER_S)
        self._lost: Exception | None = None
        """Why the last lookup of the aliases failed."""
        self._lookup_at_s = 0.0
        self._replace(self.load((endpoint.config, {})))

    def started(self) -> None:
        self._report(live=self.live.record.number)
        self.watcher.start()

    async def aclose(self) -> None:
        await self.watcher.stop()
        await self.models.aclose()

    def current(self) -> Wanted:
        return self.live.record, self.live.loaded.versions

    def wanted(self) -> Wanted:
        """Return the config on disk, and what its aliases named within the last seconds."""
        record = self.endpoint.config
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

    def load(self, wanted: Wanted) -> Live:
        record, _ = wanted
        return Live(record, load_endpoint(record.body.plan))

    def activate(self, loaded: Live) -> None:
        self._replace(loaded)
        self._report(live=loaded.record.number, why="")
        _log.warning("%s: config %d answers from %s", self.endpoint.name, self.status.live, self.status.versions)

    def failed(self, wanted: Wanted | None, error: Exception) -> None:
        number = wanted[0].number if wanted else self.endpoint.config.number
        _log.warning("%s: config %d is not served: %s", self.endpoint.name, number, error)
        is_new = number != self.live.record.number
        self._report(why=_with_hint(error), **({"failed": number} if is_new else {}))

    def recovered(self) -> None:
        self._report(why="")

    def _report(self, **values: Any) -> None:
        self.status = self.status.model_copy(update=values)
        self.endpoint.save(self.status)

    def _replace(self, live: Live) -> None:
        self.live, self._versions = live, live.loaded.versions
        self.models.put([ModelSet(self.endpoint.name, live.loaded.models, live.loaded)])
        self.status = self.status.model_copy(update={"versions": live.loaded.versions})


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
        endpoint.save(ServerStatus(failed=endpoint.config.number, why=_with_hint(error)))
        return 1
    return 0


def serve_endpoint(endpoint: EndpointFolder) -> None:
    """Serve the endpoint until the process is told to stop and has drained. Raise SmallfirstError if it cannot."""
    live = LiveEndpoint(endpoint)
    record = live.live.record
    settings = record.body.server_settings.model_copy(update={"port": record.port})
    with closing(Ledger(ledger_place(create=True))) as ledger:
        serve(live.models, ledger=ledger, settings=settings, plugins=[live, *installed_plugins(live.models)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
