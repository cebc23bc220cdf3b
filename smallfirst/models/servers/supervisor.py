"""Keeps an engine's process alive: started with the first request, again after a crash, killed when it hangs.

A crash costs the requests that were under way, which fail at once. The next one starts the engine again after a wait
that doubles with each crash in a row; while a long wait runs, requests are refused with the engine's last words instead
of waiting. The watchdog asks the engine only while requests are under way, so an idle one costs nothing.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Annotated, Generic, TypeVar

from pydantic import Field

from smallfirst.errors import Unavailable
from smallfirst.models.servers.child_process import ChildProcess
from smallfirst.records import Record

C = TypeVar("C", bound=ChildProcess)
DYING_S = 0.5
"""Sockets break a moment before the process has ended."""


class RestartPolicy(Record):
    """How long an engine's trouble is borne."""

    initial_backoff_s: Annotated[float, Field(gt=0)] = 0.5
    """Wait before the start after a crash; it doubles with each crash in a row."""
    max_backoff_s: Annotated[float, Field(gt=0)] = 60
    """Most that it grows to."""
    stable_after_s: Annotated[float, Field(ge=0)] = 60
    """An engine that has lived so long may crash again without the wait growing."""
    max_request_wait_s: Annotated[float, Field(ge=0)] = 2
    """Longest part of that wait that a request waits through; with more to go it is refused."""
    probe_interval_s: Annotated[float, Field(gt=0)] = 5
    """How often a working engine is asked for a sign of life."""
    probe_timeout_s: Annotated[float, Field(gt=0)] = 60
    """An engine that gives none for so long is killed. It gives none while it reads one batch of a prompt."""


class Supervisor(Generic[C]):
    """The one process of an engine. Any number of event loops and threads may share it."""

    def __init__(
        self,
        name: str,
        start: Callable[[], C],
        probe: Callable[[C, float], None],
        patience: RestartPolicy | None = None,
    ) -> None:
        """Nothing runs yet.

        `start` blocks until the process answers, and raises Unavailable if it never does. `probe` blocks until the
        engine gives a sign of life, and raises any Exception if there is none within the seconds given.
        """
        self._name, self._start, self._probe = name, start, probe
        self._patience = patience or RestartPolicy()
        self._lock = threading.Lock()
        self._child: C | None = None
        self._starting: Future[C] | None = None
        self._epoch = self._n_crashes = self._n_at_work = 0
        self._not_before_s, self._last_words = 0.0, ""

    async def child(self) -> C:
        """The living process, started now if need be. Raises Unavailable."""
        while True:
            with self._lock:
                if self._living() is not None:
                    return self._living()  # type: ignore[return-value]
                wait_s = self._not_before_s - time.monotonic()
                if self._starting is None and wait_s <= 0:
                    self._starting = Future()
                    threading.Thread(target=self._bring_up, args=(self._starting, self._epoch), daemon=True).start()
                starting = self._starting
            if starting is not None:
                # Others wait for the same start: one who leaves must not cancel it.
                return await asyncio.shield(asyncio.wrap_future(starting))
            if wait_s > self._patience.max_request_wait_s:
                raise self._down(f"is started again in {wait_s:.0f} s")
            await asyncio.sleep(wait_s)

    @contextmanager
    def at_work(self) -> Iterator[int]:
        """While a request is under way; gives how many are, this one included."""
        with self._lock:
            self._n_at_work += 1
            n_in_flight = self._n_at_work
        try:
            yield n_in_flight
        finally:
            with self._lock:
                self._n_at_work -= 1

    def died(self, child: C) -> Unavailable | None:
        """What to tell a request of `child` that broke off; None if the process lives."""
        if child.ended.wait(DYING_S) or not child.is_alive:
            return Unavailable(
                f"{self._name}: the engine died while it answered: {child.output_tail()}",
                hint="ask again; it is started anew",
            )
        return None

    def check_health(self, child: C) -> None:
        """Nothing back once the engine answers. Raises Unavailable."""
        try:
            self._probe(child, self._patience.probe_timeout_s)
        except Exception as error:
            raise Unavailable(f"{self._name}: the engine gives no sign of life: {error}") from None

    def stop(self) -> None:
        """End the process, also one that is just being started; a later request starts a new one."""
        with self._lock:
            child, self._child = self._child, None
            self._epoch += 1
            self._not_before_s, self._n_crashes = 0.0, 0
        if child is not None:
            child.stop()

    def _living(self) -> C | None:
        """The process if it is alive. With the lock held."""
        if self._child is not None and not self._child.is_alive:
            child, self._child = self._child, None
            child.stop()
            self._count_crash(child.uptime_s, child.ended_s, child.output_tail())
        return self._child

    def _bring_up(self, starting: Future[C], epoch: int) -> None:
        began_s = time.monotonic()
        try:
            child = self._start()
        except BaseException as error:
            with self._lock:
                self._starting = None
                self._count_crash(0.0, max(began_s, time.monotonic()), str(error))
            starting.set_exception(error)
            return
        with self._lock:
            self._starting = None
            wanted = epoch == self._epoch
            if wanted:
                self._child = child
        if wanted:
            starting.set_result(child)
            self._watch(child)
        else:
            child.stop()
            starting.set_exception(Unavailable(f"{self._name}: closed while the engine was starting"))

    def _watch(self, child: C) -> None:
        """Kill `child` when it gives no sign of life with requests under way; ends with it."""
        while not child.ended.wait(self._patience.probe_interval_s):
            if not self._n_at_work:
                continue
            try:
                self._probe(child, self._patience.probe_timeout_s)
            except Exception:
                child.kill(f"killed: it gave no sign of life for {self._patience.probe_timeout_s:g} s")

    def _count_crash(self, uptime_s: float, ended_s: float, output_tail: str) -> None:
        """With the lock held."""
        self._n_crashes = 1 if uptime_s >= self._patience.stable_after_s else self._n_crashes + 1
        growing_s = self._patience.initial_backoff_s * 2 ** min(self._n_crashes - 1, 30)
        self._not_before_s = ended_s + min(self._patience.max_backoff_s, growing_s)
        self._last_words = output_tail

    def _down(self, what: str) -> Unavailable:
        times = "once" if self._n_crashes == 1 else f"{self._n_crashes} times in a row"
        return Unavailable(
            f"{self._name}: the engine failed {times} and {what}; its last words: {self._last_words}",
            hint="if memory is short, lower context_tokens or slots",
        )
