"""A thread that answers what waits, together: no request waits for others to come, and a crowd shares one pass.

A lone request thereby has the lowest latency and a crowd the best rate. The price: one Python thread per model.
"""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from smallfirst.errors import ModelError

Q = TypeVar("Q")
R = TypeVar("R")


class Worker(Generic[Q, R]):
    """Answers questions in batches, in one thread of its own."""

    def __init__(self, answer: Callable[[Sequence[Q]], Sequence[R]], *, name: str, most_at_once: int) -> None:
        """`answer` takes 1 to `most_at_once` questions and gives one result each, in order."""
        self._answer_all, self._name, self._most_at_once = answer, name, most_at_once
        self._waiting: queue.Queue[tuple[Q, Future[R]] | None] = queue.Queue()
        self._door, self._closed = threading.Lock(), False
        self._thread = threading.Thread(target=self._work, name=f"answers of {name}", daemon=True)
        self._thread.start()
        # A thread that has run native code must not be torn down by the interpreter's exit.
        atexit.register(self._stop)

    async def ask(self, question: Q) -> R:
        """The result. Raises ModelError if the batch failed or the worker is closed."""
        future: Future[R] = Future()
        with self._door:  # nothing may be queued behind the thread's last item: it would wait for ever
            if self._closed:
                raise ModelError(f"{self._name} is closed")
            self._waiting.put((question, future))
        return await asyncio.wrap_future(future)

    async def aclose(self) -> None:
        """Stop the thread once it has answered what waits."""
        atexit.unregister(self._stop)
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        with self._door:
            self._closed = True
            self._waiting.put(None)
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            taken = [first]
            while len(taken) < self._most_at_once and not self._waiting.empty():
                item = self._waiting.get()
                if item is None:
                    self._waiting.put(None)
                    break
                taken.append(item)
            self._answer([item for item in taken if item[1].set_running_or_notify_cancel()])

    def _answer(self, taken: list[tuple[Q, Future[R]]]) -> None:
        if not taken:
            return
        try:
            results = self._answer_all([question for question, _ in taken])
            answered = list(zip(taken, results, strict=True))
        except Exception as error:
            for _, future in taken:
                future.set_exception(ModelError(f"{self._name} could not answer: {error}"))
            return
        for (_, future), result in answered:
            future.set_result(result)
