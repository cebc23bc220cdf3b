"""The running answers, and the new requests that still read their prompts before they join them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from smallfirst.errors import ModelError
from smallfirst.models.generation.generator import DROP_BELOW, Batch, Generator
from smallfirst.models.generation.sequence import GeneratedSequence, GenerationRequest, GenerationResult, TextDelta

GenerationEvent = TextDelta | GenerationResult | ModelError


class ScheduledRequest:
    """One request, its sequence once it has started, and the queue of its events."""

    def __init__(self, request: GenerationRequest, *, streams: bool) -> None:
        self.request, self.streams = request, streams
        self.events: asyncio.Queue[GenerationEvent] = asyncio.Queue()
        self.cancelled = False
        """True once nobody waits for the answer."""
        self.sequence: GeneratedSequence | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def max_tokens(self) -> int:
        return len(self.request.ids) + self.request.max_tokens

    def send(self, events: Sequence[GenerationEvent]) -> None:
        """Send events to whoever waits. May be called from any thread."""

        def put() -> None:
            for event in events:
                self.events.put_nowait(event)

        try:
            self._loop.call_soon_threadsafe(put)
        except RuntimeError:  # the loop is closed, so nobody waits
            self.cancelled = True


class RunningBatch:
    """The running batch, and a second one of new requests that joins it once their prompts are read."""

    def __init__(self, generator: Generator, name: str) -> None:
        """Generate with `generator`; errors mention `name`."""
        self._generator, self._name = generator, name
        self.running: Batch | None = None
        self.joining: Batch | None = None
        self.requests: list[ScheduledRequest] = []

    @property
    def n_active(self) -> int:
        return sum(batch.n_active for batch in (self.running, self.joining) if batch)

    def tokens_with(self, new: Sequence[ScheduledRequest]) -> int:
        """Return the keys and values that the present and these new requests may come to need, padding included."""
        requests = [*self.requests, *new]
        return len(requests) * max((request.max_tokens for request in requests), default=0)

    def admit(self, requests: Sequence[ScheduledRequest]) -> None:
        """Start to read these prompts. All share one cached prefix, and no other requests may be joining."""
        prefix = requests[0].request.prefix
        sequences: list[GeneratedSequence] = []
        for request in requests:
            try:
                tokenizer = self._generator.tokenizer
                request.sequence = GeneratedSequence(request.request, tokenizer, streams=request.streams)
                sequences.append(request.sequence)
                self.requests.append(request)
            except Exception as error:  # the others start all the same
                request.send([self._model_error(error)])
        if not sequences:
            return
        try:
            cache = self._generator.prefix(prefix) if prefix else None
            self.joining = Batch(self._generator, sequences, prefix=cache)
        except Exception as error:
            self._fail(error)

    def step(self, read_tokens: int) -> None:
        """Add a token to each answer, and read at most `read_tokens` of new prompts while answers are running."""
        cancelled = {request for request in self.requests if request.cancelled}  # another thread may add to them
        self.requests = [request for request in self.requests if request not in cancelled]
        for request in cancelled:
            if request.sequence:
                request.sequence.finished = True
        try:
            self._advance(DROP_BELOW if not cancelled else 1.0, read_tokens)
        except Exception as error:
            self._fail(error)
        self._send()

    def _advance(self, drop_below: float, read_tokens: int) -> None:
        if self.running:
            self.running.drop_finished(drop_below)
            if not self.running.n_active:
                self.running = None
        if self.running:
            self.running.step(self.running.forced_width)
        if self.joining:
            self._read(self.joining, read_tokens)

    def _read(self, new: Batch, read_tokens: int) -> None:
        new.drop_finished()
        if not new.n_active:
            self.joining = None
            return
        limit = self._generator.batch_tokens if self.running is None else read_tokens
        new.step(max(1, limit // len(new.sequences)))
        if new.reading:
            return
        self.joining = None
        if self.running is None or not self.running.n_active:
            self.running = new
        else:
            self.running.drop_finished()
            self.running.join(new)

    def _send(self) -> None:
        unfinished: list[ScheduledRequest] = []
        for request in self.requests:
            sequence = request.sequence
            if sequence is None:
                continue
            events: list[GenerationEvent] = []
            if request.streams and (delta := sequence.delta()):
                events.append(delta)
            if sequence.finished:
                events.append(sequence.error or sequence.result())
            else:
                unfinished.append(request)
            if events:
                request.send(events)
        self.requests = unfinished

    def _fail(self, error: Exception) -> None:
        self.fail(self._model_error(error))

    def fail(self, error: ModelError) -> None:
        """End every request with an error."""
        for request in self.requests:
            request.send([error])
        self.running = self.joining = None
        self.requests = []

    def _model_error(self, error: Exception) -> ModelError:
        return error if isinstance(error, ModelError) else ModelError(f"{self._name} could not answer: {error}")
