"""One thread in which everything that answers here multiplies, and short-lived ones in which models are loaded.

GNU OpenMP gives each thread that starts a product helpers of its own, and keeps them as long as that thread lives. Once
a process has more helpers than processors they no longer wait for work but sleep, and waking them for each small
product halves the speed of a small model. So products of models on duty are made in one thread, and a model is loaded
in a thread that ends with it and takes its helpers along. The price: two models on duty take turns, which on few
processors they would do anyway.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_one: ThreadPoolExecutor | None = None
_door = threading.Lock()
_inside = threading.local()


def run_in_compute_thread(work: Callable[[], T]) -> T:
    """What `work` gives, made in the one thread; the caller waits. Raises what it raises."""
    if getattr(_inside, "yes", False):
        return work()
    global _one
    with _door:
        if _one is None:
            _one = ThreadPoolExecutor(1, thread_name_prefix="compute", initializer=_enter)
    return _one.submit(work).result()


def run_in_temp_thread(work: Callable[[], T]) -> T:
    """What `work` gives, made in a thread that ends with it; the caller waits. Raises what it raises."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="loading")
    thread.start()
    thread.join()
    return done.result()


def _enter() -> None:
    _inside.yes = True
