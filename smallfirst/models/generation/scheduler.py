"""A thread that writes answers while requests come and go: continuous batching.

Between two steps of the answers under way, newcomers read a bounded part of their prompts; once these are read they
join the batch. So a long prompt slows the others down and never stops them, and an answer may end, or be given up by
its client, without waiting for the rest. Pieces are handed out as they are written.

What is kept is bounded by rows and by tokens of keys and values; who finds no room waits in the order of coming. Rows
of different adapters over one base have batches of their own: their keys and values never meet.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, NamedTuple, TypeVar

from smallfirst.errors import ModelError
from smallfirst.models.generation.adapter_batch import AdapterBatch, ScheduledRequest
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.sequence import GenerationRequest, GenerationResult, TextDelta

R = TypeVar("R")
DRAIN_S = 10.0
"""Time for what was asked before the end."""
ABORT_S = 5.0
"""Time for the step that is under way when the rest is given up."""


class SchedulerLimits(NamedTuple):
    """What may be under way at once."""

    rows: int = 64
    """Answers."""
    memory_tokens: int = 32_768
    """Tokens of keys and values, padding and room for the answers included; one answer alone may need more."""
    read_tokens: int = 2048
    """Tokens of newcomers' prompts that are read between two steps of the answers under way."""


class ContinuousBatchScheduler:
    """Writes what is asked of it, in one thread of its own."""

    def __init__(self, writer: Generator, *, name: str, limits: SchedulerLimits | None = None) -> None:
        """`name` stands in errors. The writer belongs to this thread alone from now on."""
        self.writer, self.limits, self._name = writer, limits or SchedulerLimits(), name
        self._lanes: dict[str, AdapterBatch] = {}
        self._waiting: deque[ScheduledRequest] = deque()
        self._errands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._bell = threading.Condition()
        self._closed = self._given_up = False
        self._users = 1
        self._thread = threading.Thread(target=self._work, name=f"answers of {name}", daemon=True)
        self._thread.start()
        # A thread that has run native code must not be torn down by the interpreter's exit.
        atexit.register(self._stop)

    @property
    def tokenizer(self) -> Any:
        """Of the model."""
        return self.writer.tokenizer

    @property
    def under_way(self) -> int:
        """Rows that hold keys and values of an answer nobody has given up."""
        return sum(lane.alive for lane in list(self._lanes.values()))

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    async def write(self, ask: GenerationRequest) -> GenerationResult:
        """The whole answer. Raises ModelError. Cancelled, its row is free within a step."""
        async with aclosing(self._events(ask, speaks=False)) as events:
            async for event in events:
                if isinstance(event, GenerationResult):
                    return event
        raise ModelError(f"{self._name} ended without an answer")

    def stream(self, ask: GenerationRequest) -> AsyncGenerator[TextDelta | GenerationResult]:
        """The answer's pieces, then the whole. Raises ModelError. Closed early, its row is free within a step."""
        return self._events(ask, speaks=True)

    async def run(self, work: Callable[[], R]) -> R:
        """What `work` gives, called in the writer's thread between two steps. Raises ModelError if it fails."""
        future: Future[R] = Future()
        with self._bell:
            self._check_open()
            self._errands.append((work, future))
            self._bell.notify()
        return await asyncio.wrap_future(future)

    @property
    def closed(self) -> bool:
        """True once nothing can be asked any more."""
        return self._closed

    def share(self) -> ContinuousBatchScheduler:
        """The same one, for a further user; each of them closes it once."""
        self._users += 1
        return self

    async def aclose(self) -> None:
        """Stop the thread once its last user has closed it and what was asked is written.

        What takes longer than ten seconds then is given up.
        """
        self._users -= 1
        if self._users > 0:
            return
        atexit.unregister(self._stop)
        await asyncio.to_thread(self._stop)

    async def _events(self, ask: GenerationRequest, *, speaks: bool) -> AsyncGenerator[TextDelta | GenerationResult]:
        job = ScheduledRequest(ask, speaks=speaks)
        with self._bell:
            self._check_open()
            self._waiting.append(job)
            self._bell.notify()
        try:
            while True:
                event = await job.events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, GenerationResult):
                    return
        finally:
            job.gone = True

    def _check_open(self) -> None:
        if self._closed:
            raise ModelError(f"{self._name} is closed")

    def _stop(self) -> None:
        with self._bell:
            self._closed = True
            self._bell.notify()
        self._thread.join(timeout=DRAIN_S)
        self._given_up = True
        self._thread.join(timeout=ABORT_S)

    def _work(self) -> None:
        while self._has_work():
            if self._given_up:
                self._fail_all(ModelError(f"{self._name} is closed"))
                return
            try:
                self._turn()
            except Exception as error:  # without its thread nobody would ever be answered
                self._fail_all(ModelError(f"{self._name} could not answer: {error}"))

    def _turn(self) -> None:
        """Nothing back; what others want is done, newcomers begin, and every answer is a step further."""
        self._run_errands()
        self._admit()
        for lane in list(self._lanes.values()):
            lane.turn()
            if not lane.jobs:
                del self._lanes[lane.adapter]

    def _has_work(self) -> bool:
        """True once there is something to do; False once it is closed and all is done."""
        with self._bell:
            while not (self._waiting or self._errands or self._lanes):
                if self._closed:
                    return False
                self._bell.wait()
            return True

    def _run_errands(self) -> None:
        while self._errands:
            work, future = self._errands.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except ModelError as error:
                future.set_exception(error)
            except Exception as error:
                future.set_exception(ModelError(f"{self._name} could not answer: {error}"))

    def _admit(self) -> None:
        """Nothing back; as many newcomers as there is room for begin to read, oldest first."""
        while chosen := self._take_newcomers():
            adapter = chosen[0].ask.adapter
            if adapter not in self._lanes:
                self._lanes[adapter] = AdapterBatch(self.writer, adapter, self.limits.read_tokens, self._name)
            self._lanes[adapter].admit(chosen)

    def _take_newcomers(self) -> list[ScheduledRequest]:
        """Those that begin together, no longer waiting; who has gone waits no longer either."""
        with self._bell:
            self._waiting = deque(job for job in self._waiting if not job.gone)
            chosen = list(self._newcomers())
            if chosen:
                taken = set(map(id, chosen))
                self._waiting = deque(job for job in self._waiting if id(job) not in taken)
        return chosen

    def _newcomers(self) -> Iterator[ScheduledRequest]:
        """Those that may begin together: of one adapter and one remembered beginning, and within the limits."""
        busy = {adapter for adapter, lane in self._lanes.items() if lane.joining}
        first = next((job for job in self._waiting if job.ask.adapter not in busy), None)
        if first is None or self._too_little_room():
            return
        kind = (first.ask.adapter, first.ask.prefix)
        chosen: list[ScheduledRequest] = []
        for job in self._waiting:
            if (job.ask.adapter, job.ask.prefix) != kind:
                continue
            if not self._fits([*chosen, job]):
                return
            chosen.append(job)
            yield job

    def _too_little_room(self) -> bool:
        """True if so few of many could begin that it is better to wait: to read few prompts takes as long as many."""
        room = self.limits.rows - self.under_way
        return bool(self._lanes) and room < min(len(self._waiting), max(1, self.limits.rows // 8))

    def _fits(self, jobs: list[ScheduledRequest]) -> bool:
        """True if these may begin now; one that comes alone always may, or it would wait for ever."""
        if len(jobs) == 1 and not self._lanes:
            return True
        adapter, longest = jobs[0].ask.adapter, max(len(job.ask.ids) for job in jobs)
        rows = len(jobs) + self.under_way
        tokens = sum(lane.tokens_with(jobs if name == adapter else []) for name, lane in self._lanes.items())
        if adapter not in self._lanes:
            tokens += len(jobs) * max(job.most_tokens for job in jobs)
        return (
            rows <= self.limits.rows
            and tokens <= self.limits.memory_tokens
            and len(jobs) * longest <= self.writer.batch_tokens
        )

    def _fail_all(self, error: ModelError) -> None:
        with self._bell:
            waiting, self._waiting = self._waiting, deque()
        for job in [*waiting, *(job for lane in self._lanes.values() for job in lane.jobs)]:
            job.tell([error])
        for _, future in self._errands:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        self._lanes.clear()
