"""Limit how many jobs train on this machine at the same time: one file lock for each slot."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from smallfirst.errors import ConfigError
from smallfirst.files import try_lock

AT_ONCE = "SMALLFIRST_JOBS_AT_ONCE"
"""Environment variable: how many jobs of one user may train on this machine at the same time; 1 if not set."""


def take_slot() -> int | None:
    """Return an open file descriptor that holds one of this machine's training slots, or None if all are taken.

    Raise ConfigError if SMALLFIRST_JOBS_AT_ONCE is not a positive number.
    """
    for number in range(_at_once()):
        descriptor = try_lock(Path(tempfile.gettempdir()) / f"smallfirst-{os.getuid()}-{number}.lock")
        if descriptor is not None:
            return descriptor
    return None


def _at_once() -> int:
    text = os.environ.get(AT_ONCE, "").strip() or "1"
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f'{AT_ONCE} is "{text}"; it must be a number from 1', hint=f"export {AT_ONCE}=1")
    return int(text)
