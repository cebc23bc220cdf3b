"""Call asynchronous code from synchronous code, also in a notebook, where an event loop is running already."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def run_sync(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine, run on one event loop in a thread of its own. Raise what it raises.

    The loop is the same for every call, since connections belong to the loop that opened them.
    """
    running = asyncio.run_coroutine_threadsafe(work, _background_loop())
    try:
        return running.result()
    except BaseException:  # an interrupt of the waiting thread
        running.cancel()
        raise


def outside_event_loop(work: Callable[[], T]) -> T:
    """Return the result of `work`, which may call `asyncio.run`; if a loop is running here, it runs in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    return run_in_thread(work)


def run_in_thread(work: Callable[[], T]) -> T:
    """Return the result of `work`, run in a thread that ends with it while the caller waits. Raise what it raises.

    GNU OpenMP keeps helper threads for each thread that starts a product: a model is loaded in one that ends.
    """
    done: Future[T] = Future()
    context = contextvars.copy_context()  # with the task's state folder

    def run() -> None:
        try:
            done.set_result(context.run(work))
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="work", daemon=True)
    thread.start()
    result = done.result()
    thread.join()
    return result


def _background_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="smallfirst answers", daemon=True).start()
        return _loop
