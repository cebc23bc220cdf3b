"""An engine in a child process: started with the first request, again after a crash, killed if it hangs.

The child has a session of its own and ends with its standard input, so it ends with this process. Secrets in the
environment are not passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from smallfirst.base.errors import Unavailable
from smallfirst.models.remote.client import CircuitBreaker

STOP_TIMEOUT_S = 5.0
POLL_INTERVAL_S = 0.05
SHOWN_LINES, MAX_LINE_CHARACTERS = 5, 500
MAX_CRASHES = 2
"""So many crashes in a row open the circuit; a single one restarts at once."""
STABLE_AFTER_S = 60.0
"""A crash after so long a run counts as the first one."""
EXIT_TIMEOUT_S = 0.5
"""Sockets break a moment before the process ends."""
PROBE_INTERVAL_S, PROBE_TIMEOUT_S = 5.0, 60.0
"""While requests are in flight the engine is probed, and killed if it does not answer. It answers no probe while it
reads one batch of a prompt."""
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")


class ChildProcess:
    """One running program."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the program. Raise OSError if it does not exist."""
        self._process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._is_stopped = False
        self.ended = threading.Event()
        """Set once the program has ended or closed its output."""
        self._started_s = self.ended_s = time.monotonic()
        self._lines = deque[str](maxlen=SHOWN_LINES)
        self._reader = threading.Thread(target=self._read, name=f"child {self.pid}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def uptime_s(self) -> float:
        return (self.ended_s if self.ended.is_set() else time.monotonic()) - self._started_s

    def output_tail(self) -> str:
        """Return the last lines of its output, and how it ended."""
        if self.ended.is_set():  # its output closes a moment before the process ends
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
        code = self._process.poll()
        if code is not None:
            self._reader.join(1)
        lines = list(self._lines)
        if code is not None:
            lines.append(f"exit code {code}" if code >= 0 else f"ended by signal {-code}")
        return " / ".join(lines) or "no output"

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Return True once `ready()` is, or False if the process ends first or the time is over."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if ready():
                return True
            if self.ended.wait(POLL_INTERVAL_S):
                return False
        self._lines.append(f"not ready within {timeout_s:g} s")
        return False

    def kill(self, reason: str) -> None:
        """Kill the process and all that it started; `reason` becomes the last line of its output."""
        self._lines.append(reason)
        self._kill_group()

    def stop(self) -> None:
        """Close its input, and kill it after STOP_TIMEOUT_S. Safe to call twice."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        self._kill_group()
        self._process.wait()
        self._is_stopped = True
        self._reader.join(STOP_TIMEOUT_S)

    def _kill_group(self) -> None:
        if self._is_stopped:  # the id may belong to another program by now
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            while line := output.readline(1 << 16):
                if text := line.decode(errors="replace").strip():
                    self._lines.append(text[:MAX_LINE_CHARACTERS])
        self.ended_s = time.monotonic()
        self.ended.set()


def child_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without variables that look like secrets, and with `more`."""
    passed = {name: value for name, value in os.environ.items() if not any(word in name.upper() for word in _SECRET)}
    return passed | more


P = TypeVar("P", bound=ChildProcess)


class Supervisor(Generic[P]):
    """The one process of an engine. Any number of event loops and threads may share it."""

    def __init__(
        self,
        name: str,
        start: Callable[[], P],
        probe: Callable[[P, float], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start nothing yet; `start` and `probe` (within the seconds given) block, and raise if there is no answer."""
        self._name, self._start, self._probe = name, start, probe
        self._lock = threading.Lock()
        self._current: Future[P] | None = None
        self._n_in_flight, self._output_tail = 0, ""
        self._breaker = CircuitBreaker(clock, max_failures=MAX_CRASHES)

    async def process(self) -> P:
        """Return the running process, started if there is none. Raise Unavailable if it crashes again and again."""
        with self._lock:
            if self._current is not None and self._current.done():
                self._note_crash(self._current)
            if self._current is None:
                if not self._breaker.enter():
                    raise Unavailable(
                        f"{self._name}: the engine crashed again and restarts in "
                        f"{self._breaker.remaining_open_s:.0f} s; its last output: {self._output_tail}",
                        hint="if memory is short, lower context_tokens or slots",
                    )
                self._current = Future()
                run = contextvars.copy_context().run  # with the task's state folder
                threading.Thread(target=run, args=(self._run, self._current), daemon=True).start()
            # Others wait for the same start: a caller who leaves must not cancel it.
            started = asyncio.shield(asyncio.wrap_future(self._current))
        return await started

    @contextlib.contextmanager
    def request(self) -> Iterator[int]:
        """Yield the number of requests in flight, this one included."""
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
            self._probe(process, PROBE_TIMEOUT_S)
        except Exception as error:
            raise Unavailable(f"{self._name}: the engine does not answer: {error}") from None

    def stop(self) -> None:
        """End the process, also one that is just starting; a later request starts a new one."""
        with self._lock:
            current, self._current = self._current, None
            self._breaker.record(answered=True)
        if current is not None and current.done() and current.exception() is None:
            current.result().stop()

    def _note_crash(self, ended: Future[P]) -> None:
        """Forget the process, and count the crash, unless it is alive. Hold the lock."""
        if (error := ended.exception()) is not None:
            self._output_tail = str(error)
        elif (process := ended.result()).is_alive:
            return
        else:
            process.stop()
            self._output_tail = process.output_tail()
            if process.uptime_s >= STABLE_AFTER_S:
                self._breaker.record(answered=True)
        self._current = None
        self._breaker.record(answered=False)

    def _run(self, starting: Future[P]) -> None:
        try:
            process = self._start()
        except BaseException as error:
            starting.set_exception(error)
            return
        with self._lock:
            wanted = self._current is starting
            if wanted:
                starting.set_result(process)
        if wanted:
            self._watch(process)
        else:
            process.stop()
            starting.set_exception(Unavailable(f"{self._name}: closed while the engine was starting"))

    def _watch(self, process: P) -> None:
        """Kill the process if it does not answer a probe while requests are in flight; return when it ends."""
        while not process.ended.wait(PROBE_INTERVAL_S):
            if not self._n_in_flight:
                continue
            try:
                self._probe(process, PROBE_TIMEOUT_S)
            except Exception:
                process.kill(f"killed: no answer to a probe within {PROBE_TIMEOUT_S:g} s")
