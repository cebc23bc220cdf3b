"""A Model that answers with a label, chosen by the label probabilities of any scorer; waiting requests share a pass."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy import special

from smallfirst.base.errors import ModelError
from smallfirst.models.batching import SHORT_PASS, BatchWorker, estimated_tokens
from smallfirst.models.manifest import Manifest
from smallfirst.models.pricing import Charge, MachinePrice, tokens_of
from smallfirst.models.protocol import Bill, CallableModel, Capability, Completion, LabelScores, Request, Token, paid


class LabelLogProbs(NamedTuple):
    """Label probabilities of one text."""

    log_probabilities: Sequence[float]
    """One per label, in label order, in nats; where a text may have several labels, the log-odds of each."""
    n_tokens: int
    """Tokens read; 0 where nothing is tokenised."""
    busy_s: float


class TextScorer(Protocol):
    """Label probabilities of many texts at once. Called from one thread at a time."""

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        """Return one result per text, in order."""


class LabelAnswers(CallableModel, ABC):
    """A Model that answers with the likeliest label; subclasses say where the log-probabilities come from."""

    max_answer_tokens = 1

    def __init__(self, manifest: Manifest, *, name: str = "", price: MachinePrice | None = None) -> None:
        self.manifest = manifest
        self.name = name or manifest.task.name
        self._price = price or MachinePrice()

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset({Capability.CHOSEN, Capability.LOGPROBS, Capability.LABEL_PROBABILITIES, Capability.READINESS})

    @abstractmethod
    async def log_probabilities(self, text: str, *, tenant: str = "", bill: Bill | None = None) -> LabelLogProbs:
        """Return the label log-probabilities of one text. Raise ModelError."""

    async def complete(self, request: Request) -> Completion:
        began = time.perf_counter()
        scored = await self._score(request.text, request.tenant, request.bill)
        probabilities = special.softmax(self._logits(scored))
        return Completion(
            **likeliest(self.manifest.task.closed, probabilities),
            answered_by=self.name,
            latency_ms=(time.perf_counter() - began) * 1000,
            **paid(self._charge(scored)),
            tokens=() if request.logprobs is None else (self._token(scored, request.logprobs),),
        )

    async def probabilities(self, texts: Sequence[str], bill: Bill | None = None) -> list[LabelScores]:
        return [
            LabelScores(
                labels=self.manifest.task.closed,
                probabilities=special.softmax(self._logits(scored)).tolist(),
                n_tokens=scored.n_tokens,
                charges=(self._charge(scored),),
            )
            for scored in await asyncio.gather(*(self._score(text, bill=bill) for text in texts))
        ]

    async def ready(self) -> None:
        await self._score("ready")

    async def _score(self, text: str, tenant: str = "", bill: Bill | None = None) -> LabelLogProbs:
        scored = await self.log_probabilities(text, tenant=tenant, bill=bill)
        if not np.isfinite(scored.log_probabilities).any():
            raise ModelError(f"{self.name} could not answer: its label probabilities are not numbers")
        return scored

    def _logits(self, scored: LabelLogProbs) -> np.ndarray:
        return np.asarray(scored.log_probabilities, dtype=np.float64) / self.manifest.temperature

    def _charge(self, scored: LabelLogProbs) -> Charge:
        return self._price.charge(self.name, scored.busy_s, tokens_of(scored.n_tokens, 1))

    def _token(self, scored: LabelLogProbs, n_top: int) -> Token:
        labels = self.manifest.task.closed
        logs = special.log_softmax(self._logits(scored))
        best = np.argsort(-logs)
        text = labels[best[0]]
        top = tuple((labels[i], float(logs[i])) for i in best[:n_top])
        return Token(text=text, logprob=float(logs[best[0]]), octets=tuple(text.encode()), top=top)


class LabelModel(LabelAnswers):
    """A TextScorer as a Model: batches concurrent requests and prices the machine's time."""

    max_batch_size = 512
    """Texts in a pass; those that arrive meanwhile wait for the next."""

    def __init__(
        self, scorer: TextScorer, manifest: Manifest, *, name: str = "", price: MachinePrice | None = None
    ) -> None:
        super().__init__(manifest, name=name, price=price)
        self.encoder = getattr(scorer, "encoder", None)
        """The SentenceEncoder that it reads with, which others may ask too; None if it reads otherwise."""
        self._worker: BatchWorker[str, LabelLogProbs] = BatchWorker(
            scorer.score,
            name=self.name,
            max_batch_size=self.max_batch_size,
            size=estimated_tokens,
            budget=SHORT_PASS,
            price=self._price,
            n_written=lambda _: 1,
        )

    async def log_probabilities(self, text: str, *, tenant: str = "", bill: Bill | None = None) -> LabelLogProbs:
        return await self._worker.submit(text, bill)

    async def aclose(self) -> None:
        await self._worker.aclose()


def likeliest(labels: Sequence[str], probabilities: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Return the fields of a Completion that answers with the likeliest label."""
    best = np.argsort(-np.asarray(probabilities))[:5]
    alternatives = tuple((labels[i], float(probabilities[i])) for i in best)
    return {"text": alternatives[0][0], "confidence": alternatives[0][1], "alternatives": alternatives}
