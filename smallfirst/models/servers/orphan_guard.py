"""Run a program that would outlive its parent (`python orphan_guard.py PROGRAM …`) and end it with standard input.

The file imports no package. The kernel kills the program with this process, whose only thread starts it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

GRACE_PERIOD_S = 3.0
"""Time for the program to end by itself."""
_PARENT_DEATH_SIGNAL = 1


def main(command: list[str]) -> int:
    """Return the program's exit code once it has ended; all that it started ends with it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)
    signal.signal(signal.SIGTERM, lambda *_: None)  # meant for the others of the process group
    threading.Thread(target=_end_with_input, args=(process,), daemon=True).start()
    code = process.wait()
    os.killpg(0, signal.SIGTERM)
    return code if code >= 0 else 128 - code


def _end_with_input(process: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1 << 16):
        pass
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_PERIOD_S)
    os.killpg(0, signal.SIGKILL)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


if __name__ == "__main__":
    # Not sys.exit, which would wait for the thread that still reads.
    os._exit(main(sys.argv[1:]))
