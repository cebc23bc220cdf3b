"""Runs a program that would outlive us (`python leash.py PROGRAM …`): it and its helpers end with our standard input.

Our own interpreter runs this file alone, without any package, since the program may live in another environment. The
kernel kills the program if this process is killed; here that signal is safe, since its only thread starts the program.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

GRACE_S = 3.0
"""What the program gets for ending by itself."""
_PARENT_DEATH_SIGNAL = 1


def main(command: list[str]) -> int:
    """The program's exit code, once it has ended. All that it started ends with it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_us)
    signal.signal(signal.SIGTERM, lambda *_: None)  # meant for the others of our group
    threading.Thread(target=_end_with_input, args=(process,), daemon=True).start()
    code = process.wait()
    os.killpg(0, signal.SIGTERM)
    return code if code >= 0 else 128 - code


def _end_with_input(process: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1 << 16):
        pass
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    os.killpg(0, signal.SIGKILL)


def _die_with_us() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


if __name__ == "__main__":
    # Not sys.exit: the thread still reads, and must not be waited for.
    os._exit(main(sys.argv[1:]))
