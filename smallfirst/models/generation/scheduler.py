"""Continuous batching: a thread that generates answers while requests come and go.

Between two steps new requests read a bounded part of their prompts, then join the batch. Rows and tokens are bounded;
what finds no room waits in order of arrival.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, TypeVar

from smallfirst.errors import ModelError
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.running_batch import RunningBatch, ScheduledRequest
from smallfirst.models.generation.sequence import GeneratedSequence, GenerationRequest, GenerationResult, TextDelta

R = TypeVar("R")
CutOff = Callable[[GeneratedSequence], None]
DRAIN_S = 10.0
"""Time on closing for the requests that are already there."""
ABORT_S = 5.0
"""Time for the current step when the rest is aborted."""


class ContinuousBatchScheduler:
    """Generates the answers to requests in a thread of its own."""

    max_rows = 64
    memory_tokens = 32_768
    """Tokens of keys and values, padding and room for the answers included; one answer alone may need more."""
    read_tokens = 2048
    """Tokens of new prompts that are read between two steps of the running answers."""

    def __init__(self, generator: Generator, *, name: str) -> None:
        """Take over `generator`, which nobody else may use from now on; errors mention `name`."""
        self.generator, self._name = generator, name
        self._batch = RunningBatch(generator, name)
        self._waiting: deque[ScheduledRequest] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self.closed = self._aborted = False
        self._thread = threading.Thread(target=self._run, name=f"answers of {name}", daemon=True)
        self._thread.start()
        # A thread that has run native code must not be torn down by the interpreter's exit.
        atexit.register(self._stop)

    @property
    def tokenizer(self) -> Any:
        return self.generator.tokenizer

    @property
    def n_running(self) -> int:
        """Rows that hold keys and values of an answer that is neither finished nor cancelled."""
        return self._batch.n_active

    async def generate(self, request: GenerationRequest, cut_off: CutOff | None = None) -> GenerationResult:
        """Return the whole answer. Raise ModelError. Cancelled, its row is free within a step.

        `cut_off` is called with an answer that has begun and is not returned.
        """
        async with aclosing(self._events(request, cut_off, streams=False)) as events:
            async for event in events:
                if isinstance(event, GenerationResult):
                    return event
        raise ModelError(f"{self._name} ended without an answer")

    def stream(
        self, request: GenerationRequest, cut_off: CutOff | None = None
    ) -> AsyncGenerator[TextDelta | GenerationResult]:
        """Yield the answer's deltas, then the whole, as `generate` does. Closed early, its row is free in a step."""
        return self._events(request, cut_off, streams=True)

    async def run(self, call: Callable[[], R]) -> R:
        """Return the result of `call`, made in the scheduler's thread between two steps. Raise ModelError."""
        future: Future[R] = Future()
        with self._changed:
            self._check_open()
            self._calls.append((call, future))
            self._changed.notify()
        return await asyncio.wrap_future(future)

    async def aclose(self) -> None:
        """Stop the thread; abort requests that take longer than DRAIN_S."""
        atexit.unregister(self._stop)
        await asyncio.to_thread(self._stop)

    async def _events(
        self, request: GenerationRequest, cut_off: CutOff | None, *, streams: bool
    ) -> AsyncGenerator[TextDelta | GenerationResult]:
        scheduled, event = ScheduledRequest(request, streams=streams), None
        with self._changed:
            self._check_open()
            self._waiting.append(scheduled)
            self._changed.notify()
        try:
            while True:
                event = await scheduled.events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, GenerationResult):
                    return
        finally:
            scheduled.cancelled = True
            if cut_off and scheduled.sequence and not isinstance(event, GenerationResult):
                cut_off(scheduled.sequence)

    def _check_open(self) -> None:
        if self.closed:
            raise ModelError(f"{self._name} is closed")

    def _stop(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify()
        self._thread.join(timeout=DRAIN_S)
        self._aborted = True
        self._thread.join(timeout=ABORT_S)

    def _run(self) -> None:
        while self._wait_for_work():
            if self._aborted:
                self._fail_all(ModelError(f"{self._name} is closed"))
                return
            try:
                self._step()
            except Exception as error:  # without its thread no request would ever be answered
                self._fail_all(ModelError(f"{self._name} could not answer: {error}"))

    def _step(self) -> None:
        self._make_calls()
        self._admit()
        if self._batch.requests:
            self._batch.step(self.read_tokens)
        if not self._batch.requests:
            self._batch.running = self._batch.joining = None

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._waiting or self._calls or self._batch.requests):
                if self.closed:
                    return False
                self._changed.wait()
            return True

    def _make_calls(self) -> None:
        while self._calls:
            call, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except ModelError as error:
                future.set_exception(error)
            except Exception as error:
                future.set_exception(ModelError(f"{self._name} could not answer: {error}"))

    def _admit(self) -> None:
        while chosen := self._take_waiting():
            self._batch.admit(chosen)

    def _take_waiting(self) -> list[ScheduledRequest]:
        with self._changed:
            self._waiting = deque(request for request in self._waiting if not request.cancelled)
            chosen = list(self._startable())
            if chosen:
                taken = set(map(id, chosen))
                self._waiting = deque(request for request in self._waiting if id(request) not in taken)
        return chosen

    def _startable(self) -> Iterator[ScheduledRequest]:
        if not self._waiting or self._batch.joining or self._too_little_room():
            return
        prefix = self._waiting[0].request.prefix
        chosen: list[ScheduledRequest] = []
        for waiting in self._waiting:
            if waiting.request.prefix != prefix:
                continue
            if not self._fits([*chosen, waiting]):
                return
            chosen.append(waiting)
            yield waiting

    def _too_little_room(self) -> bool:
        """Return True if so few of many could start that it is better to wait: reading few prompts takes as long."""
        room = self.max_rows - self.n_running
        return bool(self._batch.requests) and room < min(len(self._waiting), max(1, self.max_rows // 8))

    def _fits(self, new: list[ScheduledRequest]) -> bool:
        """Return True if these may start now; a request that runs alone always may, or it would wait for ever."""
        if len(new) == 1 and not self._batch.requests:
            return True
        longest = max(len(one.request.ids) for one in new)
        return (
            len(new) + self.n_running <= self.max_rows
            and self._batch.tokens_with(new) <= self.memory_tokens
            and len(new) * longest <= self.generator.batch_tokens
        )

    def _fail_all(self, error: ModelError) -> None:
        with self._changed:
            waiting, self._waiting = self._waiting, deque()
        for request in waiting:
            request.send([error])
        self._batch.fail(error)
        for _, future in self._calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
