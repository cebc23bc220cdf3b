"""Locks that the kernel takes back when their holder dies, however it dies.

A process number may be given to another process, a file of it may be stale; a held lock can be neither. A child
inherits its parent's lock with the open file, so there is no moment in which a job that was started looks dead. The
price: `flock`, so no Windows.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from smallfirst.errors import ConfigError

AT_ONCE = "SMALLFIRST_JOBS_AT_ONCE"
"""Environment variable: how many jobs of one user may train on this machine at the same time; 1 if not set."""


def hold(path: Path) -> int | None:
    """An open file that holds the lock at `path` until it is closed by all who inherited it; None if another has it."""
    return _lock(path, fcntl.LOCK_EX)


def is_held(path: Path) -> bool:
    """True if a living process holds the lock at `path`. Asking at the same moment as another reader does no harm."""
    file = _lock(path, fcntl.LOCK_SH)
    if file is None:
        return True
    os.close(file)
    return False


def take_slot() -> int | None:
    """An open file that holds one of this machine's places for training; None if all are taken.

    Raises ConfigError if SMALLFIRST_JOBS_AT_ONCE is no number.
    """
    for number in range(_at_once()):
        file = hold(Path(tempfile.gettempdir()) / f"smallfirst-{os.getuid()}-{number}.lock")
        if file is not None:
            return file
    return None


def _lock(path: Path, how: int) -> int | None:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW  # nobody may lead us to another file
    file = os.open(path, flags, 0o600)
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def _at_once() -> int:
    text = os.environ.get(AT_ONCE, "").strip() or "1"
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f'{AT_ONCE} is "{text}"; it must be a number from 1', hint=f"export {AT_ONCE}=1")
    return int(text)
