"""A program that runs beside us and ends when we do: an engine that may crash, hang or catch signals.

It lives in a session of its own, so that Ctrl-C and SIGTERM are ours alone, and ends when its standard input does, even
if we are killed. (The kernel's parent-death signal would not do: it comes when the *thread* that started the child
ends.) Secrets in our environment are not passed on, and nothing it says is kept but its last lines.
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

STOP_TIMEOUT_S = 5.0
LAST_LINES, SHOWN_LINES, LINE_CHARACTERS = 50, 3, 500
POLL_S = 0.05
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")


class ChildProcess:
    """One running program."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], *, announces: str = "") -> None:
        """Started now; a line that begins with `announces` is kept as `announced`. Raises OSError: no such program."""
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
        self.announced: str | None = None
        """The rest of the line by which it says where it listens; None so far."""
        self._announces, self._lines = announces, deque[str](maxlen=LAST_LINES)
        self._reader = threading.Thread(target=self._read, name=f"child {self.pid}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id, which is that of its process group too."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """True while the process runs."""
        return self._process.poll() is None

    @property
    def uptime_s(self) -> float:
        """Seconds it has run."""
        return (self.ended_s if self.ended.is_set() else time.monotonic()) - self.started_s

    def output_tail(self) -> str:
        """Its last lines in one, and how it ended."""
        if self.ended.is_set():  # its output closes a moment before it has ended
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
        code = self._process.poll()
        if code is not None:
            self._reader.join(1)
        lines = list(self._lines)[-SHOWN_LINES:]
        if code is not None:
            lines.append(f"it ended with exit code {code}" if code >= 0 else f"it was ended by signal {-code}")
        return " / ".join(lines) or "it has said nothing"

    def wait_until(self, ready: Callable[[], bool], limit_s: float) -> bool:
        """True once `ready()`; False if it ended before, or is not ready within `limit_s`."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            if ready():
                return True
            if self.ended.wait(POLL_S):
                return False
        self._lines.append(f"it was not ready within {limit_s:g} s")
        return False

    def kill(self, why: str) -> None:
        """End it and all that it started at once; `why` becomes its last words."""
        self._lines.append(why)
        self._kill_group()

    def stop(self) -> None:
        """Ask it to end, and make it after STOP_S seconds. Safe to call twice."""
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
        if self._is_stopped:  # the number may be another program's by now
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _read(self) -> None:
        """Keep its last lines, and see when it ends."""
        assert self._process.stdout is not None
        with self._process.stdout as output:
            while line := output.readline(1 << 16):
                text = line.decode(errors="replace").strip()
                if self._announces and text.startswith(self._announces):
                    self.announced = text.removeprefix(self._announces)
                elif text:
                    self._lines.append(text[:LINE_CHARACTERS])
        self.ended_s = time.monotonic()
        self.ended.set()


def child_environment(**more: str) -> dict[str, str]:
    """Our environment without what looks like a secret, and with `more`."""
    kept = {name: value for name, value in os.environ.items() if not any(word in name.upper() for word in _SECRET)}
    return kept | more
