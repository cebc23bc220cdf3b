"""A general model made to answer a task: instructions and examples in front of the user's text.

This is the fair opponent of the fine-tuned model. It pays for the instructions on every request;
fixed examples come first, so that an endpoint's prompt cache can keep them. Open-ended requests do
not go through here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from smallfirst.data.dataset import Message
from smallfirst.models.protocol import Capability, Chunk, Completion, Model, Request, stream_in_one_chunk
from smallfirst.tasks.task import Shot, Task


class ShotSelector(Protocol):
    """Finds solved examples that suit one text, such as the nearest training rows."""

    def choose(self, text: str) -> Sequence[Shot]:
        """Examples to show for `text`, in the order in which they are shown."""


class PromptedModel:
    """A Task answered by a general model; the answer is the parsed one wherever there is one."""

    capabilities: frozenset[Capability] = frozenset()
    """What it can do beyond answering."""

    def __init__(
        self,
        inner: Model,
        task: Task,
        *,
        shots: Sequence[Shot] = (),
        chooser: ShotSelector | None = None,
        max_tokens: int = 32,
    ) -> None:
        """`shots` are shown to every request, those of `chooser` after them.

        `max_tokens` is the most that an answer may have; a request may ask for less.
        """
        self._inner = inner
        self._task = task
        self._shots = tuple(shots)
        self._chooser = chooser
        self._max_tokens = max_tokens

    @property
    def name(self) -> str:
        """The general model's name."""
        return self._inner.name

    def messages(self, text: str) -> tuple[Message, ...]:
        """What the general model reads for `text`."""
        found = self._chooser.choose(text) if self._chooser else ()
        instructions = self._task.instructions([*self._shots, *found])
        return (*instructions, Message(role="user", content=text))

    async def complete(self, request: Request) -> Completion:
        """The parsed answer, or the model's own words if no answer is found in them."""
        limit = min(request.max_tokens, self._max_tokens)
        # Looking for rows that are near takes a pass of an encoder, which must not hold up everybody.
        turns = await asyncio.to_thread(self.messages, request.text) if self._chooser else self.messages(request.text)
        # The task has a form of its own, which the general model was asked for in words or by its own schema.
        form = {"response_format": None, "logprobs": None}
        asked = {"messages": turns, "max_tokens": limit, **form}
        completion = await self._inner.complete(request.model_copy(update=asked))
        answer = self._task.parse(completion.text)
        return completion if answer is None else completion.model_copy(update={"text": answer})

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The answer in one piece: it can be parsed only when it is whole."""
        return stream_in_one_chunk(self, request)

    async def aclose(self) -> None:
        """Close the general model."""
        await self._inner.aclose()
