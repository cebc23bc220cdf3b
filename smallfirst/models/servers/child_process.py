"""A child process that ends when this process does: for an engine that may crash, hang or catch signals.

It has a session of its own and ends with its standard input. Secrets in the environment are not passed on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from smallfirst.files import write_atomically

STOP_TIMEOUT_S = 5.0
KEPT_LINES, SHOWN_LINES, MAX_LINE_CHARACTERS = 1000, 3, 500
POLL_INTERVAL_S = 0.05
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
        self.started_s = self.ended_s = time.monotonic()
        self._lines = deque[str](maxlen=KEPT_LINES)
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
        return (self.ended_s if self.ended.is_set() else time.monotonic()) - self.started_s

    def output_tail(self) -> str:
        if self.ended.is_set():  # its output closes a moment before the process ends
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
        code = self._process.poll()
        if code is not None:
            self._reader.join(1)
        lines = list(self._lines)[-SHOWN_LINES:]
        if code is not None:
            lines.append(f"exit code {code}" if code >= 0 else f"ended by signal {-code}")
        return " / ".join(lines) or "no output"

    def write_output(self, log: Path) -> Path:
        """Write the last KEPT_LINES lines of its output to a file for this user only, and return that."""
        return write_atomically(log, "".join(f"{line}\n" for line in self._lines).encode(), mode=0o600)

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
