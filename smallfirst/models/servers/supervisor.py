"""Keep an engine's process running: start it with the first request, restart it after a crash, kill it if it hangs."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Annotated, Generic, TypeVar

from pydantic import Field

from smallfirst.errors import Unavailable
from smallfirst.models.servers.child_process import ChildProcess
from smallfirst.records import Record

P = TypeVar("P", bound=ChildProcess)
RESTART_TIMEOUT_S = 10.0
"""Requests wait so long for an engine that starts again after a crash; some take minutes."""
EXIT_TIMEOUT_S = 0.5
"""Sockets break a moment before the process ends."""


class RestartPolicy(Record):
    """When a crashed engine is restarted, and a hanging one killed."""

    initial_backoff_s: Annotated[float, Field(gt=0)] = 0.5
    """Wait before the restart after a crash; doubled with each crash in a row."""
    max_backoff_s: Annotated[float, Field(gt=0)] = 60
    """Longest such wait."""
    stable_after_s: Annotated[float, Field(ge=0)] = 60
    """A crash after so long a run counts as the first one."""
    max_request_wait_s: Annotated[float, Field(ge=0)] = 2
    """Requests sit out the last seconds of that wait, this many at most; before that they are refused."""
    probe_interval_s: Annotated[float, Field(gt=0)] = 5
    """Time between two probes while requests are in flight."""
    probe_timeout_s: Annotated[float, Field(gt=0)] = 60
    """An engine that does not answer a probe within this time is killed. It answers none while it reads one batch of a
    prompt."""


class Supervisor(Generic[P]):
    """The one process of an engine. Any number of event loops and threads may share it."""

    def __init__(
        self,
        name: str,
        start: Callable[[], P],
        probe: Callable[[P, float], None],
        policy: RestartPolicy | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Start nothing yet; `start` and `probe` (within the seconds given) block, and raise if there is no answer."""
        self._name, self._start, self._probe = name, start, probe
        self._policy, self._clock = policy or RestartPolicy(), clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._process: P | None = None
        self._starting: Future[P] | None = None
        self._epoch = self._n_crashes = self._n_in_flight = 0
        self._not_before_s, self._output_tail = 0.0, ""

    async def process(self) -> P:
        while True:
            with self._lock:
                if (running := self._running()) is not None:
                    return running
                wait_s = self._not_before_s - self._clock()
                if self._starting is None and wait_s <= 0:
                    self._starting = Future()
                    run = contextvars.copy_context().run  # with the task's state folder
                    threading.Thread(target=run, args=(self._run, self._starting, self._epoch), daemon=True).start()
                starting = self._starting
            if starting is not None:
                # Others wait for the same start: a caller who leaves must not cancel it.
                return await self._started(asyncio.shield(asyncio.wrap_future(starting)))
            if wait_s > self._policy.max_request_wait_s:
                times = "once" if self._n_crashes == 1 else f"{self._n_crashes} times in a row"
                raise Unavailable(
                    f"{self._name}: the engine failed {times} and restarts in {wait_s:.0f} s; its last output: "
                    f"{self._output_tail}",
                    hint="if memory is short, lower context_tokens or slots",
                )
            await self._sleep(wait_s)

    async def _started(self, starting: Awaitable[P]) -> P:
        if not self._n_crashes:
            return await starting
        try:
            return await asyncio.wait_for(starting, RESTART_TIMEOUT_S)
        except TimeoutError:
            raise Unavailable(
                f"{self._name}: the engine crashed and is starting again", hint="retry after a while"
            ) from None

    @contextmanager
    def request(self) -> Iterator[int]:
        with self._lock:
            self._n_in_flight += 1
            n_in_flight = self._n_in_flight
        try:
            yield n_in_flight
        finally:
            with self._lock:
                self._n_in_flight -= 1

    def crash_error(self, process: P) -> Unavailable | None:
        """Return the error for a request that `process` broke off by ending; None if it still runs."""
        if process.ended.wait(EXIT_TIMEOUT_S) or not process.is_alive:
            return Unavailable(
                f"{self._name}: the engine ended while it answered: {process.output_tail()}",
                hint="retry; it is restarted",
            )
        return None

    def check_health(self, process: P) -> None:
        try:
            self._probe(process, self._policy.probe_timeout_s)
        except Exception as error:
            raise Unavailable(f"{self._name}: the engine does not answer: {error}") from None

    def stop(self) -> None:
        """End the process, also one that is just starting; a later request starts a new one."""
        with self._lock:
            process, self._process = self._process, None
            self._epoch += 1
            self._not_before_s, self._n_crashes = 0.0, 0
        if process is not None:
            process.stop()

    def _running(self) -> P | None:
        """Return the process if it is alive; count a crash if it no longer is. Hold the lock."""
        if self._process is not None and not self._process.is_alive:
            process, self._process = self._process, None
            process.stop()
            self._count_crash(process.uptime_s, process.ended_s, process.output_tail())
        return self._process

    def _run(self, starting: Future[P], epoch: int) -> None:
        try:
            process = self._start()
        except BaseException as error:
            with self._lock:
                self._starting = None
                self._count_crash(0.0, self._clock(), str(error))
            starting.set_exception(error)
            return
        with self._lock:
            self._starting = None
            wanted = epoch == self._epoch
            if wanted:
                self._process = process
        if wanted:
            starting.set_result(process)
            self._watch(process)
        else:
            process.stop()
            starting.set_exception(Unavailable(f"{self._name}: closed while the engine was starting"))

    def _watch(self, process: P) -> None:
        """Kill the process if it does not answer a probe while requests are in flight; return when it ends."""
        while not process.ended.wait(self._policy.probe_interval_s):
            if not self._n_in_flight:
                continue
            try:
                self._probe(process, self._policy.probe_timeout_s)
            except Exception:
                process.kill(f"killed: no answer to a probe within {self._policy.probe_timeout_s:g} s")

    def _count_crash(self, uptime_s: float, ended_s: float, output_tail: str) -> None:
        """Hold the lock."""
        self._n_crashes = 1 if uptime_s >= self._policy.stable_after_s else self._n_crashes + 1
        backoff_s = self._policy.initial_backoff_s * 2 ** min(self._n_crashes - 1, 30)
        self._not_before_s = ended_s + min(self._policy.max_backoff_s, backoff_s)
        self._output_tail = output_tail
