"""The base of Models that wrap another Model, which delegates every call, and that of Models that can be called."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

from smallfirst.base.errors import BadAnswer, ModelError
from smallfirst.base.sync import run_sync
from smallfirst.models.protocol import (
    Capability,
    Chunk,
    Completion,
    LabelScores,
    Model,
    Request,
    label_probability_model,
    open_stream,
    probed_model,
    stream_in_one_chunk,
)
from smallfirst.models.usage import max_answer_tokens


class DelegatingModel:
    """Answer as `inner` does; subclasses override what differs, or `_target` alone to redirect every call."""

    def __init__(self, inner: Model, *, name: str | None = None) -> None:
        self.inner, self._name = inner, name

    @property
    def name(self) -> str:
        return self.inner.name if self._name is None else self._name

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self.inner.capabilities

    @property
    def max_answer_tokens(self) -> int | None:
        return max_answer_tokens(self.inner)

    @contextmanager
    def _target(self) -> Iterator[Model]:
        """Yield the model that takes the next call; it stays usable until the context ends."""
        yield self.inner

    async def complete(self, request: Request) -> Completion:
        with self._target() as model:
            return await model.complete(request)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Yield the answer piece by piece. Closing the iterator closes the wrapped model's."""
        with self._target() as model:
            async with open_stream(model, request) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def probabilities(self, texts: Sequence[str]) -> list[LabelScores]:
        with self._target() as model:
            able = label_probability_model(model)
            if able is None:
                raise ModelError(f"{model.name} has no label probabilities")
            return await able.probabilities(texts)

    async def ready(self) -> None:
        with self._target() as model:
            able = probed_model(model)
            if able is not None:
                await able.ready()

    async def aclose(self) -> None:
        """Close the wrapped model. A subclass that shares it overrides this."""
        await self.inner.aclose()


class OpenEndedReplay(DelegatingModel):
    """Replay recorded answers to open-ended requests, so that a Router can be measured on labelled rows as well.

    A labelled row taken for an open-ended request gets an empty answer at the cost and latency of `task_answers`.
    """

    def __init__(self, open_answers: Model, task_answers: Model) -> None:
        super().__init__(open_answers)
        self._task_answers = task_answers

    async def complete(self, request: Request) -> Completion:
        try:
            return await self.inner.complete(request)
        except BadAnswer:
            return (await self._task_answers.complete(request)).model_copy(update={"text": ""})

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        return stream_in_one_chunk(self, request)


class CallableModel:
    """A base of Models that can be called: `router("where is my card")`, with or without an event loop."""

    def __call__(self: Model, request: str | Request) -> Completion:
        """Return the whole answer to a text, as `await complete(Request.ask(text))` does."""
        return run_sync(self.complete(Request.ask(request) if isinstance(request, str) else request))

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Yield the whole answer as one chunk."""
        return stream_in_one_chunk(self, request)

    async def aclose(self) -> None:
        """Do nothing: no resource is held."""

    def __repr__(self: Model) -> str:
        return f"{type(self).__name__}({self.name!r})"
