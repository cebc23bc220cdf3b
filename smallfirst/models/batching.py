"""Batching of concurrent calls in one thread, as much as a time budget allows; batches of rows of similar length.

All models in service multiply in one thread: GNU OpenMP keeps helper threads for each thread that starts a product;
with more helpers than processors they sleep, and waking them halves the speed of a small model.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from smallfirst.base.errors import ModelError
from smallfirst.models.pricing import MachinePrice, tokens_of
from smallfirst.models.protocol import Bill, Completion, unfinished, unless_answered

Q = TypeVar("Q")
R = TypeVar("R")

_executor: ThreadPoolExecutor | None = None
_lock = threading.Lock()
_local = threading.local()


class BatchBudget(NamedTuple):
    """How much work a batch takes."""

    seconds: float = float("inf")
    full: float = 1
    """Size of a batch that keeps the machine busy. Smaller ones are not planned, however slow the machine, since that
    would only make it slower. A larger item is a batch of its own."""


SHORT_PASS = BatchBudget(seconds=0.1, full=256)
"""Tokens, roughly, that share a pass. Short passes cost no throughput, and a server can send answers while the next one
runs."""


class BatchWorker(Generic[Q, R]):
    """Computes items in batches, in a thread of its own."""

    def __init__(
        self,
        compute: Callable[[Sequence[Q]], Sequence[R]],
        *,
        name: str,
        max_batch_size: int,
        size: Callable[[Q], int] = lambda _: 1,
        budget: BatchBudget | None = None,
        price: MachinePrice | None = None,
        n_written: Callable[[Q], int] = lambda _: 0,
    ) -> None:
        """Call `compute` with 1 to `max_batch_size` items; `size` is an item's work in the unit of the budget.

        With a price that unit is tokens, and the machine's time of a result that nobody gets is reported, with as many
        tokens written as `n_written` says.
        """
        self._compute, self._name, self._max_batch_size = compute, name, max_batch_size
        self._size, self._throughput = size, ThroughputEstimate(budget or BatchBudget())
        self._price, self._n_written, self._n_submitted = price, n_written, 0
        self._queue: deque[tuple[Q, Future[R]]] = deque()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name=f"answers of {name}", daemon=True)
        self._thread.start()
        # A thread that has run native code must not be torn down by the interpreter's exit.
        atexit.register(self._stop)

    async def submit(self, item: Q, bill: Bill | None = None) -> R:
        """Return the item's result. Raise ModelError if the computation fails or the worker is closed.

        Where nobody gets the result, what it took goes to `bill`.
        """
        future: Future[R] = Future()
        with self._changed:  # an item queued after the thread's last one would wait for ever
            if self._closed:
                raise ModelError(f"{self._name} is closed")
            self._queue.append((item, future))
            self._changed.notify()
        began = time.perf_counter()
        self._n_submitted += 1
        try:
            with unless_answered(bill, lambda _: self._used(item, time.perf_counter() - began)):
                return await asyncio.wrap_future(future)
        finally:
            self._n_submitted -= 1

    async def aclose(self) -> None:
        """Stop the thread once it has computed what waits."""
        atexit.unregister(self._stop)
        await asyncio.to_thread(self._stop)

    def _used(self, item: Q, seconds: float) -> Completion | None:
        if self._price is None:
            return None
        tokens = tokens_of(self._size(item), self._n_written(item))
        return unfinished(self._price.charge(self._name, seconds / self._n_submitted, tokens))

    def _stop(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while batch := self._take():
            began = time.perf_counter()
            self._resolve(batch)
            self._throughput.update(sum(self._size(item) for item, _ in batch), time.perf_counter() - began)

    def _take(self) -> list[tuple[Q, Future[R]]]:
        """Return the next batch without cancelled items; empty once the worker is closed and nothing waits."""
        batch: list[tuple[Q, Future[R]]] = []
        room = self._throughput.batch_size()
        with self._changed:
            while not batch:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    break
                while self._queue and len(batch) < self._max_batch_size:
                    room -= self._size(self._queue[0][0])
                    if batch and room < 0:
                        break
                    item = self._queue.popleft()
                    if item[1].set_running_or_notify_cancel():
                        batch.append(item)
        return batch

    def _resolve(self, batch: list[tuple[Q, Future[R]]]) -> None:
        try:
            results = self._compute([item for item, _ in batch])
            if len(results) != len(batch):
                raise ValueError(f"{len(batch)} texts, {len(results)} results")
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(ModelError(f"{self._name} could not answer: {error}"))
                return
            for one in batch:  # one bad item must not fail its neighbours
                self._resolve([one])
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)


class ThroughputEstimate:
    """Throughput learnt from past batches: a moving mean over about eight of them."""

    decay = 0.875

    def __init__(self, budget: BatchBudget) -> None:
        self._budget, self._size, self._seconds = budget, 0.0, 0.0

    def update(self, size: int, seconds: float) -> None:
        self._size = self.decay * self._size + size
        self._seconds = self.decay * self._seconds + seconds

    def batch_size(self) -> float:
        if self._budget.seconds == float("inf"):
            return float("inf")
        if not self._seconds:
            return self._budget.full
        return max(self._budget.full, self._size / self._seconds * self._budget.seconds)


def usable_cores(system: Path = Path("/sys")) -> int:
    """Return how many physical processor cores this process may use, at most what its container grants it."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for number in os.sched_getaffinity(0):
        place = system / f"devices/system/cpu/cpu{number}/topology/thread_siblings_list"
        cores.add(place.read_text(encoding="ascii") if place.is_file() else str(number))
    try:  # cgroup v2: microseconds in each period, "max" for no limit
        granted, period = map(int, (system / "fs/cgroup/cpu.max").read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return len(cores)
    return max(1, min(len(cores), -(-granted // period)))


def estimated_tokens(text: str) -> int:
    """Return about how many tokens an ordinary text has, before it is tokenised: one for four characters."""
    return 1 + len(text) // 4


def length_batches(
    lengths: Sequence[int], *, max_rows: int | None = None, max_tokens: int | None = None
) -> Iterator[list[int]]:
    """Yield row numbers by batch, shortest first; `max_tokens` includes padding, a longer row is alone."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        full = max_tokens is not None and (len(batch) + 1) * lengths[i] > max_tokens
        if batch and (full or len(batch) == max_rows):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def run_in_compute_thread(work: Callable[[], R]) -> R:
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
