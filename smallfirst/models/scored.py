"""A Model that reads its answer from label probabilities, whatever computes them: code tokens, words, an encoder.

Requests that wait at the same moment share one pass of the scorer.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from smallfirst.models.manifest import Manifest
from smallfirst.models.model import Chunk, Completion, Request, stream_whole
from smallfirst.models.worker import Worker
from smallfirst.pricing import MachinePrice


class Scored(NamedTuple):
    """Label probabilities of one text."""

    log_probabilities: Sequence[float]
    """One per label, in label order, in nats."""
    n_tokens: int
    """Tokens read; 0 where nothing is tokenised."""
    busy_s: float
    """Share of the machine's time this text took, in seconds."""


class Scorer(Protocol):
    """Label probabilities of many texts at once. Called from one thread at a time."""

    def score(self, texts: Sequence[str]) -> list[Scored]:
        """One result per text, in order."""


class ScoredModel:
    """A Scorer as a Model: batches what is asked at the same time, prices the machine-seconds."""

    most_at_once = 512

    def __init__(
        self, scorer: Scorer, manifest: Manifest, *, name: str = "", price: MachinePrice | None = None
    ) -> None:
        self.manifest = manifest
        self._name = name or manifest.task.name
        self._price = price or MachinePrice()
        self._worker: Worker[str, Scored] = Worker(scorer.score, name=self._name, most_at_once=self.most_at_once)

    @property
    def name(self) -> str:
        """Name shown in results, headers and the ledger."""
        return self._name

    async def complete(self, request: Request) -> Completion:
        """The likeliest label, its probability as confidence, the five best as alternatives."""
        began = time.perf_counter()
        scored = await self._worker.ask(request.text)
        probabilities = tempered(scored.log_probabilities, self.manifest.temperature)
        best = np.argsort(-probabilities)[:5]
        labels = self.manifest.task.closed
        return Completion(
            text=labels[best[0]],
            answered_by=self._name,
            latency_ms=(time.perf_counter() - began) * 1000,
            cost_usd=self._price.cost_usd(scored.busy_s),
            prompt_tokens=scored.n_tokens,
            completion_tokens=1,
            confidence=float(probabilities[best[0]]),
            alternatives=tuple((labels[i], float(probabilities[i])) for i in best),
        )

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """A label comes in one piece."""
        return stream_whole(self, request)

    async def aclose(self) -> None:
        """Stop the worker thread once it has answered what waits."""
        await self._worker.aclose()


def tempered(log_probabilities: Sequence[float] | np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities from log-probabilities divided by `temperature`; the last axis sums to 1."""
    scaled = np.asarray(log_probabilities, dtype=np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = weights / weights.sum(axis=-1, keepdims=True)
    return probabilities
