"""Few-shot prompting: a general model answers a task, with instructions and solved examples before the user's text."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from smallfirst.base.files import write_atomically
from smallfirst.base.records import fingerprint
from smallfirst.data.dataset import Dataset, Message
from smallfirst.models.protocol import CallableModel, Capability, Completion, Model, Request
from smallfirst.tasks.task import Shot, Task

if TYPE_CHECKING:
    from smallfirst.models.encoder.sentence_encoder import SentenceEncoder


class PromptedModel(CallableModel):
    """A Task answered by a general model; the answer is the parsed one wherever there is one."""

    capabilities: frozenset[Capability] = frozenset()

    def __init__(
        self,
        inner: Model,
        task: Task,
        *,
        shots: Sequence[Shot] = (),
        selector: NearestShots | None = None,
        max_tokens: int = 32,
    ) -> None:
        """Show `shots` to every request, then those of `selector`; `max_tokens` bounds an answer."""
        self._inner, self._task, self.max_answer_tokens = inner, task, max_tokens
        self._shots, self._selector = tuple(shots), selector

    @property
    def name(self) -> str:
        return self._inner.name

    def messages(self, text: str) -> tuple[Message, ...]:
        found = self._selector.select(text) if self._selector else ()
        instructions = self._task.instructions([*self._shots, *found])
        return (*instructions, Message(role="user", content=text))

    async def complete(self, request: Request) -> Completion:
        # Selecting takes an encoder's forward pass, which must not block the event loop.
        messages = (
            await asyncio.to_thread(self.messages, request.text) if self._selector else self.messages(request.text)
        )
        # The task has a format of its own, which the instructions or the general model's own schema already demand.
        own = {"messages": messages, "max_tokens": min(request.max_tokens, self.max_answer_tokens)}
        without = {"response_format": None, "logprobs": None}
        completion = await self._inner.complete(request.model_copy(update=own | without))
        answer = self._task.parse(completion.text)
        return completion if answer is None else completion.model_copy(update={"text": answer})

    async def aclose(self) -> None:
        await self._inner.aclose()


def fixed_shots(train: Dataset, task: Task, per_label: int) -> tuple[Shot, ...]:
    """Return `per_label` solved rows of median length per label in turn, or 4 * `per_label` of different lengths."""
    if not task.closed:
        ordered = sorted(train.examples, key=lambda e: (len(e.text) + len(e.answer), e.key))
        n = min(4 * per_label, len(ordered))
        # One out of each equal part by length, so that short and long rows are shown, but not the longest.
        chosen = [ordered[(2 * i + 1) * len(ordered) // (2 * n)] for i in range(n)]
        return tuple(Shot(e.text, e.answer) for e in chosen)
    shots: list[tuple[int, Shot]] = []
    for label in task.closed:
        of_label = sorted((e for e in train.examples if e.answer == label), key=lambda e: (len(e.text), e.key))
        middle = max(0, (len(of_label) - per_label) // 2)
        shots += [(turn, Shot(e.text, label)) for turn, e in enumerate(of_label[middle : middle + per_label])]
    return tuple(shot for _, shot in sorted(shots, key=lambda pair: pair[0]))


class NearestShots:
    """Selects the training rows most similar to a text, the most similar last. Thread-safe."""

    def __init__(self, train: Dataset, encoder: SentenceEncoder, n: int, *, cache: Path) -> None:
        """Embed the rows, or read their vectors from the folder `cache`, which keeps them."""
        self.encoder, self.n = encoder, n
        self.shots = [Shot(e.text, e.answer) for e in train.examples]
        self._lock = threading.Lock()
        texts = [shot.text for shot in self.shots]
        path = cache / f"{fingerprint([encoder.fingerprint, texts])}.npy"
        if not path.exists():
            content = io.BytesIO()
            np.save(content, encoder.embed(texts), allow_pickle=False)
            write_atomically(path, content.getvalue())
        self.vectors = np.load(path, allow_pickle=False)

    def select(self, text: str) -> Sequence[Shot]:
        with self._lock:
            vector = self.encoder.embed([text])[0]
        return [self.shots[i] for i in np.argsort(self.vectors @ vector)[-self.n :]]
