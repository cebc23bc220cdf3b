"""Group commit: one thread writes all waiting items in one transaction, and a lone item without delay.

If a batch fails, its items are written one by one, so that only those at fault fail.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_Waiting = tuple[T, "Future[None] | asyncio.Future[None]"]


class GroupCommitWriter(Generic[T]):
    """Write items in the order in which they came, from any thread and any event loop."""

    def __init__(self, write: Callable[[Sequence[T]], None], *, name: str) -> None:
        """`write` takes one or more items and writes all of them, or raises and writes none."""
        self._write = write
        self._lock = threading.Lock()
        self._waiting: list[_Waiting[T]] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    def put(self, item: T) -> None:
        """Write an item and wait for it. Raise what `write` raised."""
        written: Future[None] = Future()
        self._add(item, written)
        written.result()

    async def put_async(self, item: T) -> None:
        """Write an item and wait for it; it is written even if the caller is cancelled. Raise what `write` raised."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._add(item, written)
        await asyncio.shield(written)

    def close(self) -> None:
        """Wait for pending items and end the thread. Safe to call twice."""
        self._thread.shutdown(wait=True)

    def _add(self, item: T, written: Future[None] | asyncio.Future[None]) -> None:
        with self._lock:
            # One run of the thread takes all waiting items, so only the first one has to start it.
            if not self._waiting:
                self._thread.submit(self._work)
            self._waiting.append((item, written))

    def _work(self) -> None:
        with self._lock:
            taken, self._waiting = self._waiting, []
        try:
            self._write([item for item, _ in taken])
            errors: list[Exception | None] = [None] * len(taken)
        except Exception as error:
            errors = [error] if len(taken) == 1 else [self._write_alone(item) for item, _ in taken]
        _notify(taken, errors)

    def _write_alone(self, item: T) -> Exception | None:
        try:
            self._write([item])
        except Exception as error:
            return error
        return None


def _notify(taken: Sequence[_Waiting[T]], errors: Sequence[Exception | None]) -> None:
    """Set all results, those of one event loop in one call, since each call wakes the loop."""
    by_loop = defaultdict[asyncio.AbstractEventLoop, list[Any]](list)
    for (_, written), error in zip(taken, errors, strict=True):
        if isinstance(written, asyncio.Future):
            by_loop[written.get_loop()].append((written, error))
        else:
            _set_all([(written, error)])
    for loop, ended in by_loop.items():
        try:
            loop.call_soon_threadsafe(_set_all, ended)
        except RuntimeError:  # the loop has ended, and with it all who waited in it
            continue


def _set_all(ended: Sequence[tuple[Future[None] | asyncio.Future[None], Exception | None]]) -> None:
    for written, error in ended:
        if written.done():
            continue
        if error is None:
            written.set_result(None)
        else:
            written.set_exception(error)
