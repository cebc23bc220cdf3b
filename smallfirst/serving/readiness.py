"""Whether the server would answer now: every model is asked for a tiny piece of real work, the ledger for its state.

A probe that comes while another one is under way shares its result, and nothing older than a moment is ever told: a
load balancer must not send requests to a server that was ready once. What is paid for is never asked, and an upstream
that is down does not make this server so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from smallfirst.models.protocol import Model, probed_model
from smallfirst.models.remote.client import CircuitOpenError

_log = logging.getLogger("smallfirst.serving")

FRESH_S = 1.0
"""Seconds for which a result is told again: probes must not become the load."""
LONGEST_S = 10.0
"""Seconds after which a model that has not answered is not ready."""


class Ready(NamedTuple):
    """Who would answer."""

    unready: tuple[str, ...]
    """Served names that would not."""

    @property
    def ready(self) -> bool:
        """True if everybody would."""
        return not self.unready


class Readiness:
    """Asks the models whether they would answer."""

    def __init__(
        self, models: Mapping[str, Model], *, ledger_ready: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Asks those of `models` that can be asked; a model under two names is asked once."""
        self._models, self._ledger_ready = models, ledger_ready
        self.stopping = False
        self._last: tuple[float, asyncio.Task[Ready]] | None = None

    async def look(self) -> Ready:
        """Who is not ready; a server that is being stopped is not, at once."""
        if self.stopping:
            return Ready(("the server, which is stopping",))
        now = time.monotonic()
        if self._last is None or (self._last[1].done() and now - self._last[0] > FRESH_S):
            self._last = (now, asyncio.create_task(self._ask()))
        return await asyncio.shield(self._last[1])

    async def _ask(self) -> Ready:
        probes: dict[str, Callable[[], Awaitable[None]]] = {}
        for name in list(self._models):
            model = self._models.get(name)
            probed = model and probed_model(model)
            if probed:
                probes[name] = probed.ready
        if self._ledger_ready is not None:
            probes["the ledger"] = self._ledger_ready
        found = await asyncio.gather(*(_answers(name, probe) for name, probe in probes.items()))
        return Ready(tuple(name for name, well in zip(probes, found, strict=True) if not well))


async def _answers(name: str, probe: Callable[[], Awaitable[None]]) -> bool:
    try:
        async with asyncio.timeout(LONGEST_S):
            await probe()
    except CircuitOpenError:
        return True  # another machine is down, and it is down for every server: what is answered here still is
    except Exception as error:
        _log.warning("not ready: %s: %s", name, " ".join(str(error).split())[:300] or type(error).__name__)
        return False
    return True
