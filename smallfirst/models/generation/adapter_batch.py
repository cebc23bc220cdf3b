"""The answers of one adapter in a LiveWriter: those under way, and the newcomers that still read their prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from smallfirst.errors import ModelError
from smallfirst.models.generation.generator import DROP_BELOW, Batch, Generator
from smallfirst.models.generation.sequence import GeneratedSequence, GenerationRequest, GenerationResult, TextDelta

GenerationEvent = TextDelta | GenerationResult | ModelError


class ScheduledRequest:
    """One request: what is asked, its line once it has begun, and where its events go."""

    def __init__(self, ask: GenerationRequest, *, speaks: bool) -> None:
        """Made in the event loop that awaits the events. `speaks`: pieces are wanted."""
        self.ask, self.speaks = ask, speaks
        self.events: asyncio.Queue[GenerationEvent] = asyncio.Queue()
        self.gone = False
        """True once nobody waits for the answer."""
        self.line: GeneratedSequence | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def most_tokens(self) -> int:
        """Keys and values that the whole answer may need."""
        return len(self.ask.ids) + self.ask.max_tokens

    def begin(self, tokenizer: Any) -> GeneratedSequence:
        """The line of its answer."""
        self.line = GeneratedSequence(self.ask, tokenizer, speaks=self.speaks)
        return self.line

    def tell(self, events: Sequence[GenerationEvent]) -> None:
        """Nothing back; the events are on their way to whoever waits. Called from any thread."""

        def put() -> None:
            for event in events:
                self.events.put_nowait(event)

        try:
            self._loop.call_soon_threadsafe(put)
        except RuntimeError:  # the loop is closed, so nobody waits
            self.gone = True


class AdapterBatch:
    """The batch of one adapter, and a second one of newcomers that joins it once their prompts are read."""

    def __init__(self, writer: Generator, adapter: str, read_tokens: int, name: str) -> None:
        """`read_tokens` of newcomers are read in a turn while others wait; `name` stands in errors."""
        self._writer, self.adapter, self._read_tokens, self._name = writer, adapter, read_tokens, name
        self.running: Batch | None = None
        self.joining: Batch | None = None
        self.jobs: list[ScheduledRequest] = []

    @property
    def alive(self) -> int:
        """Rows that are not finished."""
        return sum(batch.alive for batch in (self.running, self.joining) if batch)

    def tokens_with(self, newcomers: Sequence[ScheduledRequest]) -> int:
        """Tokens of keys and values that these and the present ones may come to need, padding included."""
        everyone = [*self.jobs, *newcomers]
        return len(everyone) * max((job.most_tokens for job in everyone), default=0)

    def admit(self, jobs: Sequence[ScheduledRequest]) -> None:
        """Nothing back; these begin to read. All of one remembered beginning; none may be joining already."""
        begun, prefix = None, jobs[0].ask.prefix
        lines: list[GeneratedSequence] = []
        for job in jobs:
            try:
                lines.append(job.begin(self._writer.tokenizer))
                self.jobs.append(job)
            except Exception as error:  # the others begin all the same
                job.tell([self._told(error)])
        if not lines:
            return
        try:
            with self._writer.using(self.adapter):
                if prefix:
                    begun = self._writer.prefix(prefix, self.adapter)
                self.joining = Batch(self._writer, lines, begun=begun)
        except Exception as error:
            self._fail(error)

    def turn(self) -> None:
        """Nothing back; every answer is a step further, and what is new is told."""
        gone = {job for job in self.jobs if job.gone}  # asked once: another thread may say so at any moment
        self.jobs = [job for job in self.jobs if job not in gone]
        for job in gone:
            if job.line:
                job.line.finished = True
        try:
            with self._writer.using(self.adapter):
                self._step(DROP_BELOW if not gone else 1.0)
        except Exception as error:
            self._fail(error)
        self._tell()

    def _step(self, drop_below: float) -> None:
        if self.running:
            self.running.drop(drop_below)
            if not self.running.alive:
                self.running = None
        if self.running:
            self.running.step(self.running.forced_width)
        if self.joining:
            self._read(self.joining)

    def _read(self, newcomers: Batch) -> None:
        newcomers.drop()
        if not newcomers.alive:
            self.joining = None
            return
        alone = self.running is None
        most = self._writer.batch_tokens if alone else self._read_tokens
        newcomers.step(max(1, most // len(newcomers.lines)))
        if newcomers.reading:
            return
        self.joining = None
        if self.running is None or not self.running.alive:
            self.running = newcomers
        else:
            self.running.drop()
            self.running.join(newcomers)

    def _tell(self) -> None:
        """Nothing back; pieces and finished answers are on their way."""
        still: list[ScheduledRequest] = []
        for job in self.jobs:
            line = job.line
            if line is None:
                continue
            events: list[GenerationEvent] = []
            if job.speaks and (piece := line.piece()):
                events.append(piece)
            if line.finished:
                events.append(line.failed or line.written())
            else:
                still.append(job)
            if events:
                job.tell(events)
        self.jobs = still

    def _fail(self, error: Exception) -> None:
        for job in self.jobs:
            job.tell([self._told(error)])
        self.running = self.joining = None
        self.jobs = []

    def _told(self, error: Exception) -> ModelError:
        return error if isinstance(error, ModelError) else ModelError(f"{self._name} could not answer: {error}")
