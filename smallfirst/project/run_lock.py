"""One run of a task at a time: a second start is refused and told who is at work.

The kernel releases the lock when its process ends, however it ends, so it never has to be cleared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

from smallfirst.errors import TrainingError
from smallfirst.files import is_locked, try_lock
from smallfirst.paths import home, state_folder

_held: ContextVar[frozenset[Path]] = ContextVar("run locks of this call", default=frozenset())


@contextmanager
def only_run(task: str) -> Iterator[None]:
    """Hold the task against a second run; a stage of the same run may call it again.

    Raise TrainingError, with the other's process and start, if a run is under way.
    """
    folder = home() / "tasks" / task
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.lock"
    if path in _held.get():
        yield
        return
    descriptor = try_lock(path)
    if descriptor is None:
        raise _under_way(task, _who(path))
    token = _held.set(_held.get() | {path})
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "since": since}).encode(), 0)
        yield
    finally:
        _held.reset(token)
        os.close(descriptor)


def refuse_second_run(task: str) -> None:
    """Raise TrainingError as `only_run`, but write nothing."""
    if busy := run_under_way(task):
        raise _under_way(task, busy)


def run_under_way(task: str) -> str:
    """Return process and start of the run of a task that is under way; empty if there is none."""
    path = state_folder() / "tasks" / task / "run.lock"
    return _who(path) if path.exists() and is_locked(path) else ""


def _under_way(task: str, busy: str) -> TrainingError:
    return TrainingError(f"a run of {task} is under way ({busy})", hint="wait until it ends, or stop that process")


def _who(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return f"process {found['pid']}, since {found['since'][:16].replace('T', ' ')} UTC"
    except (OSError, ValueError, KeyError, TypeError):  # it is being written at this moment
        return "started just now"
