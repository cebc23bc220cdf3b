"""A thread that answers what waits, together: no request waits for others to come, and a crowd shares one pass.

A lone request thereby has the lowest latency and a crowd the best rate. A pass takes no more than it can answer in a
given time, by the rate of the passes before it, so a long line does not make everybody in it wait for its end. The
price: one Python thread per model.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

from smallfirst.errors import ModelError

Q = TypeVar("Q")
R = TypeVar("R")


class QueueDepth(NamedTuple):
    """What stands in line; what is being answered is not counted."""

    requests: int
    """Those whose askers have not given up."""
    size: int
    """Their sizes together, in the worker's unit (tokens, roughly, where texts are asked)."""


class BatchBudget(NamedTuple):
    """How much work a pass takes."""

    seconds: float = float("inf")
    """Planned length of a pass at most."""
    full: float = 1
    """Size of a pass that keeps the machine busy: smaller ones are not planned, however slow it is, since they would
    only make it slower. A larger question is a pass of its own."""


class BatchWorker(Generic[Q, R]):
    """Answers questions in batches, in one thread of its own."""

    def __init__(
        self,
        answer: Callable[[Sequence[Q]], Sequence[R]],
        *,
        name: str,
        most_at_once: int,
        size: Callable[[Q], int] = lambda _: 1,
        plan: BatchBudget | None = None,
    ) -> None:
        """`answer` takes 1 to `most_at_once` questions and gives one result each, in order.

        `size` says how much work a question is, in the unit of the plan; without a plan a pass may take any time.
        """
        self._answer_all, self._name, self._most_at_once = answer, name, most_at_once
        self._size, self._pace = size, ThroughputEstimate(plan or BatchBudget())
        self._line: deque[tuple[Q, Future[R]]] = deque()
        self._door, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name=f"answers of {name}", daemon=True)
        self._thread.start()
        # A thread that has run native code must not be torn down by the interpreter's exit.
        atexit.register(self._stop)

    async def ask(self, question: Q) -> R:
        """The result. Raises ModelError if it could not be answered or the worker is closed."""
        future: Future[R] = Future()
        with self._door:  # nothing may be queued behind the thread's last item: it would wait for ever
            if self._closed:
                raise ModelError(f"{self._name} is closed")
            self._line.append((question, future))
            self._door.notify()
        return await asyncio.wrap_future(future)

    def waiting(self) -> QueueDepth:
        """What stands in line now, for whoever decides whether another request may join it."""
        with self._door:
            sizes = [self._size(question) for question, future in self._line if not future.cancelled()]
        return QueueDepth(len(sizes), sum(sizes))

    async def aclose(self) -> None:
        """Stop the thread once it has answered what waits."""
        atexit.unregister(self._stop)
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        with self._door:
            self._closed = True
            self._door.notify()
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while taken := self._take():
            began = time.perf_counter()
            self._answer(taken)
            self._pace.learn(sum(self._size(question) for question, _ in taken), time.perf_counter() - began)

    def _take(self) -> list[tuple[Q, Future[R]]]:
        """The next pass, without those who have given up; empty once the worker is closed and nobody waits."""
        taken: list[tuple[Q, Future[R]]] = []
        room = self._pace.affords()
        with self._door:
            while not taken:
                self._door.wait_for(lambda: self._line or self._closed)
                if not self._line:
                    break
                while self._line and len(taken) < self._most_at_once:
                    room -= self._size(self._line[0][0])
                    if taken and room < 0:
                        break
                    item = self._line.popleft()
                    if item[1].set_running_or_notify_cancel():
                        taken.append(item)
        return taken

    def _answer(self, taken: list[tuple[Q, Future[R]]]) -> None:
        try:
            results = self._answer_all([question for question, _ in taken])
            answered = list(zip(taken, results, strict=True))
        except Exception as error:
            if len(taken) == 1:
                taken[0][1].set_exception(ModelError(f"{self._name} could not answer: {error}"))
                return
            for item in taken:  # one bad question must not take its neighbours along
                self._answer([item])
            return
        for (_, future), result in answered:
            future.set_result(result)


class ThroughputEstimate:
    """How fast questions are answered, learnt from passes: a moving mean over about eight of them."""

    keeps = 0.875

    def __init__(self, plan: BatchBudget) -> None:
        self._plan, self._size, self._seconds = plan, 0.0, 0.0

    def learn(self, size: int, seconds: float) -> None:
        """Nothing back; a pass of this size took this long."""
        self._size = self.keeps * self._size + size
        self._seconds = self.keeps * self._seconds + seconds

    def affords(self) -> float:
        """Size of a pass that takes the planned time; a full one before a rate is known."""
        if self._plan.seconds == float("inf"):
            return float("inf")
        if not self._seconds:
            return self._plan.full
        return max(self._plan.full, self._size / self._seconds * self._plan.seconds)
