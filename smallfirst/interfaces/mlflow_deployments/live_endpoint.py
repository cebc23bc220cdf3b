"""Inside an endpoint's server: the models of its config, replaced without interrupting requests.

A thread checks several times a second for a pending config, and every few seconds where its aliases point. New models
are loaded beside the live ones and then replace them in one step; running requests end on the models they began with.
A failure is reported in status.json, and the live models stay.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

from smallfirst.deployment.endpoint_plan import LoadedEndpoint, load_endpoint, resolve_versions
from smallfirst.deployment.hot_swap import HotSwapModels, ModelSet
from smallfirst.errors import ConfigError, SmallfirstError
from smallfirst.interfaces.mlflow_deployments.config import ParsedConfig, parse_config
from smallfirst.interfaces.mlflow_deployments.endpoint_folder import EndpointFolder, EndpointRecord
from smallfirst.interfaces.mlflow_deployments.listing import describe, listing_routes
from smallfirst.serving.plugins import Plugin

_log = logging.getLogger("smallfirst.serving")

POLL_INTERVAL_S = 0.2
"""Seconds between two checks for a pending config."""
LINGER_S = 1.0
"""Seconds that replaced models stay open after their last request."""
MAX_BACKOFF_S = 60.0
"""Longest time between two attempts to load a version that could not be loaded."""


class LiveEndpoint(Plugin):
    """The plug-in of an endpoint's server, with the served models in `models`."""

    def __init__(self, endpoint: EndpointFolder) -> None:
        """Load the pending config, or else the last live one. Raise SmallfirstError if neither can be loaded."""
        self.endpoint, self.models = endpoint, HotSwapModels()
        self._status: dict[str, Any] = {"live": 0, "versions": {}, "failed": 0, "why": "", "notes": ()}
        self._refused: dict[str, int] = {}
        self._retry_at_s = self._backoff_s = 0.0
        self._record, self.parsed, loaded = self._load_first()
        self._replace(self._record, self.parsed, loaded)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="endpoint", daemon=True)
        self.routes = listing_routes(lambda: [describe(endpoint)])

    def started(self) -> None:
        """Report that the endpoint answers and start watching; `aclose` ends it."""
        self._report(live=self._record.number)
        self._thread.start()

    async def aclose(self) -> None:
        """Stop watching, then close every model."""
        self._stop.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 15)
        await self.models.aclose()

    def check_aliases(self) -> None:
        """Load the versions that moved aliases point at; retry those that cannot be loaded, later each time."""
        plan = self.parsed.plan
        if not any(entity.version.startswith("@") for entity in plan.registered):
            return
        versions = self._status["versions"]
        try:
            versions = resolve_versions(plan)
            if versions == self._status["versions"]:
                self._clear_refusal()
                return
            if versions == self._refused and time.monotonic() < self._retry_at_s:
                return
            self._replace(self._record, self.parsed, load_endpoint(self._record.name, plan))
        except SmallfirstError as error:
            self._refuse(versions, error)
            return
        self._report(why="")
        _log.warning("%s: answers from %s", self.endpoint.name, self._status["versions"])

    def _load_first(self) -> tuple[EndpointRecord, ParsedConfig, LoadedEndpoint]:
        pending, config = self.endpoint.pending, self.endpoint.config
        if pending is not None:
            try:
                loaded = _load(pending)
            except Exception as error:
                self._report_failure(pending, error)
                if config is None:
                    raise
            else:
                self.endpoint.promote_pending()
                return loaded
        if config is None:
            raise ConfigError(f"{self.endpoint.name} has no config", hint="create it again")
        return _load(config)

    def _replace(self, record: EndpointRecord, parsed: ParsedConfig, loaded: LoadedEndpoint) -> None:
        self._record, self.parsed, self._refused = record, parsed, {}
        self.models.put([ModelSet(record.name, loaded.models, loaded)])
        self._status |= {"versions": loaded.versions, "notes": (*parsed.notes, *loaded.notes)}

    def _report(self, **values: Any) -> None:
        self._status |= values
        self.endpoint.report_status(**self._status)

    def _report_failure(self, record: EndpointRecord, error: Exception) -> None:
        _log.warning("%s: config %d cannot go live: %s", record.name, record.number, error)
        self.endpoint.drop_pending()
        self._report(failed=record.number, why=_in_one_line(error))

    def _watch(self) -> None:
        checked_s = time.monotonic()
        while not self._stop.wait(POLL_INTERVAL_S):
            try:
                self._check_pending()
                if time.monotonic() - checked_s >= self.parsed.follow_every_s:
                    checked_s = time.monotonic()
                    self.check_aliases()
                self._close_replaced()
            except Exception:  # whatever happens here, the live models keep answering
                _log.exception("%s: checking for a new config failed", self.endpoint.name)

    def _check_pending(self) -> None:
        pending = self.endpoint.pending
        if pending is None or pending.number == self._record.number:
            return
        try:
            loaded = _load(pending)
        except Exception as error:
            self._report_failure(pending, error)
            return
        self.endpoint.promote_pending()
        self._replace(*loaded)
        self._report(live=pending.number, failed=0, why="")
        _log.warning("%s: config %d is live", pending.name, pending.number)

    def _refuse(self, versions: dict[str, int], error: SmallfirstError) -> None:
        """Keep the live models and report each reason once."""
        least_s = self.parsed.follow_every_s
        self._backoff_s = min(2 * self._backoff_s, MAX_BACKOFF_S) if versions == self._refused else least_s
        self._refused, self._retry_at_s = versions, time.monotonic() + self._backoff_s
        if self._status["why"] != _in_one_line(error):
            _log.warning("%s: a moved alias is not followed: %s", self.endpoint.name, error)
            self._report(why=_in_one_line(error))

    def _clear_refusal(self) -> None:
        if self._refused:
            self._refused = {}
            self._report(why="")

    def _close_replaced(self) -> None:
        for models in self.models.gone(idle_s=LINGER_S):
            loop = self.models.loop
            if loop is not None and loop.is_running():
                asyncio.run_coroutine_threadsafe(models.aclose(), loop).result(60)
            else:
                asyncio.run(models.aclose())


def _load(record: EndpointRecord) -> tuple[EndpointRecord, ParsedConfig, LoadedEndpoint]:
    parsed = parse_config(record.name, record.body)
    return record, parsed, load_endpoint(record.name, parsed.plan)


def _in_one_line(error: Exception) -> str:
    hint = getattr(error, "hint", None)
    text = " ".join(str(error.args[0] if error.args else "").split()) or type(error).__name__
    return f"{text}; {hint}"[:2000] if hint else text[:2000]
