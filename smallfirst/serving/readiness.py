"""Readiness: every model answers a tiny piece of real work, and the ledger takes a write.

Models that cost money are never probed, and an upstream that is down does not make this server unready.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from smallfirst.models.protocol import Model, probed_model
from smallfirst.models.remote.client import CircuitOpenError

_log = logging.getLogger("smallfirst.serving")

FRESH_S = 1.0
"""Seconds for which a result is reused: probes must not become the load."""
PROBE_TIMEOUT_S = 10.0
"""Seconds after which a model that has not answered is not ready."""


class Readiness:
    """Checks whether the models and the ledger of a server would answer."""

    def __init__(self, models: Mapping[str, Model], ledger_ready: Callable[[], Awaitable[None]]) -> None:
        self._models, self._ledger_ready = models, ledger_ready
        self.stopping = False
        """Set to True, the server is not ready at once."""
        self._last: tuple[float, asyncio.Task[bool]] | None = None

    async def check(self) -> bool:
        """Return True if all would answer; the log names what would not."""
        if self.stopping:
            return False
        now = time.monotonic()
        if self._last is None or (self._last[1].done() and now - self._last[0] > FRESH_S):
            self._last = (now, asyncio.create_task(self._probe_all()))
        return await asyncio.shield(self._last[1])

    async def _probe_all(self) -> bool:
        probes = [("the ledger", self._ledger_ready)]
        for name in list(self._models):
            model = self._models.get(name)  # names may go while the server runs
            if model is not None and (probed := probed_model(model)) is not None:
                probes.append((name, probed.ready))
        return all(await asyncio.gather(*(_answers(*probe) for probe in probes)))


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
