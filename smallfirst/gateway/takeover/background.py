"""Work after an answer: rows of the ledger, comparisons, a new look at the settings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_log = logging.getLogger("smallfirst.gateway")


class BackgroundTasks:
    """Tasks that no answer waits for. What they raise is logged: no answer depends on them."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin `work` in the running loop."""
        task = asyncio.get_running_loop().create_task(_logged(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def wait(self, timeout_s: float = 10) -> None:
        """Wait for what is running, at most so long."""
        if self._running:
            await asyncio.wait(self._running, timeout=timeout_s)


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        _log.exception("work after an answer failed")
