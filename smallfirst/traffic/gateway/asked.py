"""A request that follows a task's wording, and work on it that no answer waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple

from smallfirst.traffic.answer_format import AnswerFormat

_log = logging.getLogger("smallfirst.takeover")
Json = dict[str, Any]


AskAgain = Callable[[], Awaitable[tuple[int, Json | None]]]
"""Send a request to its upstream once more, not streamed; return the status and the response's body."""


class Asked(NamedTuple):
    """A request that follows a task's wording."""

    id: str
    path: str
    body: Json
    text: str
    """The case that it asks about."""
    again: AskAgain
    """Sends it to its upstream once more."""
    answer_format: AnswerFormat
    """Format of the answers to its wording."""
    tenant: str = "default"
    may_ask: bool = True
    """False while the upstream has not shown that it accepts the client's credential; then it answers itself."""


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
