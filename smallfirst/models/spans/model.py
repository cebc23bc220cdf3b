"""A Model that answers with what an encoder marks in the text; waiting requests share a pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from smallfirst.models.batching import SHORT_PASS, BatchWorker, estimated_tokens
from smallfirst.models.manifest import Manifest
from smallfirst.models.pricing import MachinePrice, tokens_of
from smallfirst.models.protocol import CallableModel, Capability, Completion, Request, paid


class SpanAnswer(NamedTuple):
    """The answer to one text."""

    text: str
    """Canonical JSON, or the words marked."""
    confidence: float
    """Calibrated probability in [0, 1] that it is right."""
    field_confidence: dict[str, float]
    """By field path, the probability in [0, 1] of its value, or of its absence; empty where answers have no fields."""
    n_tokens: int
    busy_s: float
    """Share of the pass's time."""


class SpanScorer(Protocol):
    """Answers to many texts at once. Called from one thread at a time."""

    def answer(self, texts: Sequence[str]) -> list[SpanAnswer]:
        """Return one answer per text, in order."""


class SpanModel(CallableModel):
    """A SpanScorer as a Model: batches concurrent requests and prices the machine's time."""

    max_batch_size = 128
    """Texts in a pass; those that arrive meanwhile wait for the next."""
    capabilities = frozenset({Capability.CHOSEN, Capability.READINESS})

    def __init__(
        self, scorer: SpanScorer, manifest: Manifest, *, name: str = "", price: MachinePrice | None = None
    ) -> None:
        self.manifest = manifest
        self.name = name or manifest.task.name
        self.max_answer_tokens = manifest.task.max_answer_tokens
        self._price = price or MachinePrice()
        self._scorer = scorer
        self._worker: BatchWorker[str, SpanAnswer] = BatchWorker(
            scorer.answer,
            name=self.name,
            max_batch_size=self.max_batch_size,
            size=estimated_tokens,
            budget=SHORT_PASS,
            price=self._price,
        )

    async def complete(self, request: Request) -> Completion:
        """Return the marked answer; it generates no tokens. Raise ModelError if there is none."""
        began = time.perf_counter()
        answer = await self._worker.submit(request.text, request.bill)
        return Completion(
            text=answer.text,
            answered_by=self.name,
            latency_ms=(time.perf_counter() - began) * 1000,
            **paid(self._price.charge(self.name, answer.busy_s, tokens_of(answer.n_tokens))),
            confidence=answer.confidence,
            field_confidence=answer.field_confidence,
        )

    async def ready(self) -> None:
        await self._worker.submit("ready")

    async def aclose(self) -> None:
        await self._worker.aclose()
