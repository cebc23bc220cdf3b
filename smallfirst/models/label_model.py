"""A Model that reads its answer from label probabilities, whatever computes them: code tokens, words, an encoder.

Requests that wait at the same moment share a pass of the scorer. The same pass gives everything there is to know of a
text: the label, its token probability, those of all labels.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from smallfirst.errors import ModelError, RequestRefused
from smallfirst.models.batching import BatchBudget, BatchWorker, QueueDepth
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import (
    Capability,
    Chunk,
    Completion,
    Embeddings,
    LabelScores,
    Request,
    Token,
    stream_in_one_chunk,
)
from smallfirst.pricing import MachinePrice

CHARACTERS_PER_TOKEN = 4
"""Of ordinary text, to know how much work waits before it is tokenised."""


class LabelLogProbs(NamedTuple):
    """Label probabilities of one text."""

    log_probabilities: Sequence[float]
    """One per label, in label order, in nats."""
    n_tokens: int
    """Tokens read; 0 where nothing is tokenised."""
    busy_s: float
    """Share of the machine's time this text took, in seconds."""


class TextEmbedding(NamedTuple):
    """What one text looks like to a model."""

    vector: list[float]
    """Of length 1."""
    n_tokens: int
    """Tokens read."""
    busy_s: float
    """Share of the machine's time this text took, in seconds."""


class Scorer(Protocol):
    """Label probabilities of many texts at once. Called from one thread at a time."""

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        """One result per text, in order."""


@runtime_checkable
class Embedder(Protocol):
    """A Scorer that also turns texts into vectors. Called from one thread at a time."""

    def embed(self, texts: Sequence[str]) -> list[TextEmbedding]:
        """One result per text, in order."""


class _Asked(NamedTuple):
    text: str
    vector: bool = False
    """True if the text's vector is wanted, else its label probabilities."""


class LabelModel:
    """A Scorer as a Model: batches what is asked at the same time, prices the machine-seconds."""

    capabilities: frozenset[Capability] = frozenset(
        {Capability.EMBEDDINGS, Capability.LABEL_PROBABILITIES, Capability.READINESS}
    )
    """What it can do beyond answering."""

    most_at_once = 512
    """Texts in a pass; what comes while it runs waits for it."""
    plan = BatchBudget(seconds=0.1, full=256)
    """How many tokens, roughly, share a pass. Short passes cost the rate nothing and let a server send answers while
    the next one runs."""

    def __init__(
        self, scorer: Scorer, manifest: Manifest, *, name: str = "", price: MachinePrice | None = None
    ) -> None:
        self.manifest = manifest
        self._name = name or manifest.task.name
        self._price = price or MachinePrice()
        self._scorer = scorer
        self._worker: BatchWorker[_Asked, LabelLogProbs | TextEmbedding] = BatchWorker(
            self._answer, name=self._name, most_at_once=self.most_at_once, size=_size, plan=self.plan
        )

    @property
    def name(self) -> str:
        """Name shown in results, headers and the ledger."""
        return self._name

    def waiting(self) -> QueueDepth:
        """Requests that stand in line and their tokens, roughly; what is being answered is not counted."""
        return self._worker.waiting()

    async def complete(self, request: Request) -> Completion:
        """The likeliest label, its probability as confidence, the five best as alternatives."""
        began = time.perf_counter()
        scored = await self._score(request.text)
        probabilities = softmax(scored.log_probabilities, self.manifest.temperature)
        best = np.argsort(-probabilities)
        labels = self.manifest.task.closed
        return Completion(
            text=labels[best[0]],
            answered_by=self._name,
            latency_ms=(time.perf_counter() - began) * 1000,
            cost_usd=self._price.cost_usd(scored.busy_s),
            prompt_tokens=scored.n_tokens,
            completion_tokens=1,
            confidence=float(probabilities[best[0]]),
            alternatives=tuple((labels[i], float(probabilities[i])) for i in best[:5]),
            tokens=() if request.logprobs is None else (self._token(scored, best, request.logprobs),),
        )

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """A label comes in one piece."""
        return stream_in_one_chunk(self, request)

    async def probabilities(self, texts: Sequence[str]) -> list[LabelScores]:
        """Calibrated probabilities of all labels for each text, in order. Raises ModelError."""
        labels, temperature = self.manifest.task.closed, self.manifest.temperature
        return [
            LabelScores(
                labels=labels,
                probabilities=softmax(scored.log_probabilities, temperature).tolist(),
                n_tokens=scored.n_tokens,
                cost_usd=self._price.cost_usd(scored.busy_s),
            )
            for scored in await asyncio.gather(*(self._score(text) for text in texts))
        ]

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """One vector of length 1 per text, in order: the mean of the last hidden states of the text's own tokens.

        Raises RequestRefused if the model has none, ModelError if it fails.
        """
        if not isinstance(self._scorer, Embedder):
            raise RequestRefused(f"{self._name} reads words, not vectors: it gives no embeddings")
        asked = [self._worker.ask(_Asked(text, vector=True)) for text in texts]
        found = [one for one in await asyncio.gather(*asked) if isinstance(one, TextEmbedding)]
        cost_usd = sum(self._price.cost_usd(one.busy_s) for one in found)
        return Embeddings([one.vector for one in found], sum(one.n_tokens for one in found), cost_usd)

    async def ready(self) -> None:
        """Nothing back if a tiny text is scored. Raises ModelError if not."""
        await self._score("ready")

    async def aclose(self) -> None:
        """Stop the worker thread once it has answered what waits."""
        await self._worker.aclose()

    async def _score(self, text: str) -> LabelLogProbs:
        """Raises ModelError also for probabilities that are none, as damaged weights give."""
        scored = await self._worker.ask(_Asked(text))
        if not isinstance(scored, LabelLogProbs) or not np.isfinite(scored.log_probabilities).any():
            raise ModelError(f"{self._name} could not answer: its label probabilities are no numbers")
        return scored

    def _answer(self, asked: Sequence[_Asked]) -> list[LabelLogProbs | TextEmbedding]:
        """Runs in the worker's thread."""
        texts = [one.text for one in asked if not one.vector]
        scored = self._scorer.score(texts) if texts else []
        texts = [one.text for one in asked if one.vector]
        embedded = self._scorer.embed(texts) if texts and isinstance(self._scorer, Embedder) else []
        if len(scored) + len(embedded) != len(asked):
            raise ValueError(f"{len(asked)} texts, {len(scored) + len(embedded)} results")
        of_scored, of_embedded = iter(scored), iter(embedded)
        return [next(of_embedded) if one.vector else next(of_scored) for one in asked]

    def _token(self, scored: LabelLogProbs, best: np.ndarray, n_top: int) -> Token:
        """The label as one token, with its log-probability among the labels."""
        labels = self.manifest.task.closed
        logs = log_softmax(scored.log_probabilities, self.manifest.temperature)
        text = labels[best[0]]
        top = tuple((labels[i], float(logs[i])) for i in best[:n_top])
        return Token(text=text, logprob=float(logs[best[0]]), octets=tuple(text.encode()), top=top)


def _size(asked: _Asked) -> int:
    return 1 + len(asked.text) // CHARACTERS_PER_TOKEN


def softmax(log_probabilities: Sequence[float] | np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities from log-probabilities divided by `temperature`; the last axis sums to 1."""
    scaled = np.asarray(log_probabilities, dtype=np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = weights / weights.sum(axis=-1, keepdims=True)
    return probabilities


def log_softmax(log_probabilities: Sequence[float] | np.ndarray, temperature: float) -> np.ndarray:
    """The logarithms of `softmax`, finite even where a probability is too small to be written."""
    scaled = np.asarray(log_probabilities, dtype=np.float64) / temperature
    scaled = scaled - scaled.max(axis=-1, keepdims=True)
    logs: np.ndarray = scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))
    return logs
