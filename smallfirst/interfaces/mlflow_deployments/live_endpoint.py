"""Inside an endpoint's server: the models of its config, replaced while requests are under way.

A thread looks every moment whether another config is wanted, and every few seconds where the aliases in it point. What
is new is loaded beside what answers, then takes its place in one step; requests under way end where they began. What
cannot be loaded is told in status.json, and what answers stays.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from smallfirst.deployment.endpoint_plan import EndpointPlan, LoadedEndpoint, load_endpoint, resolve_versions
from smallfirst.deployment.hot_swap import HotSwapModels, ModelSet
from smallfirst.errors import ConfigError, SmallfirstError
from smallfirst.interfaces.mlflow_deployments.config import ParsedConfig, parse_config
from smallfirst.interfaces.mlflow_deployments.endpoint_folder import EndpointFolder, EndpointRecord
from smallfirst.interfaces.mlflow_deployments.listing import describe, listing_routes
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.serving.plugins import PluginRoute

_log = logging.getLogger("smallfirst.serving")

POLL_INTERVAL_S = 0.2
"""Seconds between two looks for a wanted config."""
LINGER_S = 1.0
"""Seconds that replaced models stay open after their last request."""
MAX_BACKOFF_S = 60.0
"""Longest time between two tries to take a version that could not be taken."""


class LiveEndpoint:
    """The extension of an endpoint's server, and its models as a Fleet."""

    def __init__(self, endpoint: EndpointFolder) -> None:
        """Loads what is wanted, or else what was live. Raises SmallfirstError if neither can be loaded."""
        self.endpoint, self.fleet = endpoint, HotSwapModels()
        self._told: dict[str, Any] = {"live": 0, "versions": {}, "failed": 0, "why": "", "notes": ()}
        self._refused: dict[str, int] = {}
        self._again_at_s = self._wait_s = 0.0
        self._kept, self.parsed, built = self._first()
        self._take(self._kept, self.parsed, built)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="endpoint", daemon=True)
        self.routes: Sequence[PluginRoute] = listing_routes(lambda: [describe(endpoint)])

    def start(self) -> None:
        """Tells that the endpoint answers, and begins to follow. A process that is told to stop ends it by `aclose`."""
        self._tell(live=self._kept.number)
        self._thread.start()

    def find(self, name: str, caller: str) -> Model | None:
        """None: what is served is in the fleet."""
        return None

    def names(self, caller: str) -> Mapping[str, int]:
        """No name is added."""
        return {}

    def answered(self, id: str, request: Request, completion: Completion) -> None:
        """Nothing: answers of an endpoint are not audited."""

    async def aclose(self) -> None:
        """Follow no longer, then close every model."""
        self._stop.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 15)
        await self.fleet.aclose()

    def _first(self) -> tuple[EndpointRecord, ParsedConfig, LoadedEndpoint]:
        wanted, config = self.endpoint.wanted, self.endpoint.config
        if wanted is not None:
            try:
                found = self._load(wanted)
            except Exception as error:
                self._fails(wanted, error)
                if config is None:
                    raise
            else:
                self.endpoint.take_over()
                return found
        if config is None:
            raise ConfigError(f"{self.endpoint.name} has no config", hint="create it again")
        return self._load(config)

    def _load(self, kept: EndpointRecord) -> tuple[EndpointRecord, ParsedConfig, LoadedEndpoint]:
        parsed = parse_config(kept.name, kept.body)
        return kept, parsed, load_endpoint(kept.name, parsed.plan)

    def _take(self, kept: EndpointRecord, parsed: ParsedConfig, built: LoadedEndpoint) -> None:
        """What was built answers from now on."""
        self._kept, self.parsed, self._refused = kept, parsed, {}
        self.fleet.put([ModelSet(kept.name, built.models, built)])
        self._told |= {"versions": built.versions, "notes": (*parsed.notes, *built.notes)}

    def _tell(self, **values: Any) -> None:
        self._told |= values
        self.endpoint.tell(**self._told)

    def _fails(self, kept: EndpointRecord, error: Exception) -> None:
        _log.warning("%s: config %d cannot go live: %s", kept.name, kept.number, error)
        self.endpoint.drop_wanted()
        self._tell(failed=kept.number, why=_said(error))

    def _follow(self) -> None:
        looked_s = time.monotonic()
        while not self._stop.wait(POLL_INTERVAL_S):
            try:
                self._takes_wanted()
                if time.monotonic() - looked_s >= self.parsed.follow_every_s:
                    looked_s = time.monotonic()
                    self._takes_moved()
                self._close_replaced()
            except Exception:  # whatever happens here, what answers goes on answering
                _log.exception("%s: a look at what is wanted failed", self.endpoint.name)

    def _takes_wanted(self) -> None:
        wanted = self.endpoint.wanted
        if wanted is None or wanted.number == self._kept.number:
            return
        try:
            found = self._load(wanted)
        except Exception as error:
            self._fails(wanted, error)
            return
        self.endpoint.take_over()
        self._take(*found)
        self._tell(live=wanted.number, failed=0, why="")
        _log.warning("%s: config %d is live", wanted.name, wanted.number)

    def _takes_moved(self) -> None:
        """Follows aliases that have moved; versions that cannot be taken are tried again, later each time."""
        plan: EndpointPlan = self.parsed.plan
        if not any(entity.version.startswith("@") for entity in plan.registered):
            return
        now = self._told["versions"]
        try:
            now = resolve_versions(plan)
            if now == self._told["versions"]:
                self._forgive()
                return
            if now == self._refused and time.monotonic() < self._again_at_s:
                return
            self._take(self._kept, self.parsed, load_endpoint(self._kept.name, plan))
        except SmallfirstError as error:
            self._refuse(now, error)
            return
        self._tell(why="")
        _log.warning("%s: answers from %s", self.endpoint.name, self._told["versions"])

    def _refuse(self, versions: dict[str, int], error: SmallfirstError) -> None:
        """What answers stays; said once for each reason."""
        least_s = self.parsed.follow_every_s
        self._wait_s = min(2 * self._wait_s, MAX_BACKOFF_S) if versions == self._refused else least_s
        self._refused, self._again_at_s = versions, time.monotonic() + self._wait_s
        if self._told["why"] != _said(error):
            _log.warning("%s: a moved alias is not followed: %s", self.endpoint.name, error)
            self._tell(why=_said(error))

    def _forgive(self) -> None:
        """The aliases are back where they were."""
        if self._refused:
            self._refused = {}
            self._tell(why="")

    def _close_replaced(self) -> None:
        for crew in self.fleet.gone(idle_s=LINGER_S):
            loop = self.fleet.loop
            if loop is not None and loop.is_running():
                asyncio.run_coroutine_threadsafe(crew.aclose(), loop).result(60)
            else:
                asyncio.run(crew.aclose())


def _said(error: Exception) -> str:
    """The error in one line, with what to do next."""
    hint = getattr(error, "hint", None)
    text = " ".join(str(error.args[0] if error.args else "").split()) or type(error).__name__
    return f"{text}; {hint}"[:2000] if hint else text[:2000]
