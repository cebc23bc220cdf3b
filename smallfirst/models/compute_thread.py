"""One thread in which all models in service multiply.

GNU OpenMP keeps helper threads for each thread that starts a product; with more helpers than processors they sleep, and
waking them halves the speed of a small model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_executor: ThreadPoolExecutor | None = None
_lock = threading.Lock()
_local = threading.local()


def run_in_compute_thread(work: Callable[[], T]) -> T:
    """Return the result of `work`, run in the compute thread while the caller waits. Raise what it raises."""
    if getattr(_local, "is_compute_thread", False):
        return work()
    global _executor
    with _lock:
        if _executor is None:
            _executor = ThreadPoolExecutor(1, thread_name_prefix="compute", initializer=_mark)
    return _executor.submit(work).result()


def _mark() -> None:
    _local.is_compute_thread = True
