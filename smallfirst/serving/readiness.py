"""Readiness: every model answers a tiny piece of real work, and the ledger takes a write.

Models that cost money are never probed, and an upstream that is down does not make this server unready.
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
"""Seconds for which a result is reused: probes must not become the load."""
PROBE_TIMEOUT_S = 10.0
"""Seconds after which a model that has not answered is not ready."""


class ReadinessResult(NamedTuple):
    """The result of one check."""

    unready: tuple[str, ...]
    """Served names that would not answer, and "the ledger" or "the server"."""

    @property
    def ready(self) -> bool:
        return not self.unready


class Readiness:
    """Checks whether the models and the ledger of a server would answer."""

    def __init__(
        self, models: Mapping[str, Model], *, ledger_ready: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._models, self._ledger_ready = models, ledger_ready
        self.stopping = False
        """Set to True, the server is not ready at once."""
        self._last: tuple[float, asyncio.Task[ReadinessResult]] | None = None

    async def check(self) -> ReadinessResult:
        if self.stopping:
            return ReadinessResult(("the server, which is stopping",))
        now = time.monotonic()
        if self._last is None or (self._last[1].done() and now - self._last[0] > FRESH_S):
            self._last = (now, asyncio.create_task(self._probe_all()))
        return await asyncio.shield(self._last[1])

    async def _probe_all(self) -> ReadinessResult:
        probes: dict[str, Callable[[], Awaitable[None]]] = {}
        for name in list(self._models):
            model = self._models.get(name)  # names may go while the server runs
            if model is not None and (probed := probed_model(model)) is not None:
                probes[name] = probed.ready
        if self._ledger_ready is not None:
            probes["the ledger"] = self._ledger_ready
        found = await asyncio.gather(*(_answers(name, probe) for name, probe in probes.items()))
        return ReadinessResult(tuple(name for name, ready in zip(probes, found, strict=True) if not ready))


async def _answers(name: str, probe: Callable[[], Awaitable[None]]) -> bool:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            await probe()
    except CircuitOpenError:
        return True  # another machine is down, and it is down for every server: what is answered here still is
    except Exception as error:
        _log.warning("not ready: %s: %s", name, " ".join(str(error).split())[:300] or type(error).__name__)
        return False
    return True
