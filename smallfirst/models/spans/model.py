"""A Model that answers with what an encoder marks in the text; waiting requests share a pass.

What the tagger and the reader have in common: a long text in windows, and an encoder with heads over its token states.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from smallfirst.base.files import write_atomically
from smallfirst.models.batching import SHORT_PASS, BatchWorker, estimated_tokens
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.manifest import Manifest
from smallfirst.models.pricing import MachinePrice, tokens_of
from smallfirst.models.protocol import CallableModel, Capability, Completion, Request, ValuePlace, paid

ENCODER_FOLDER, HEADS_FILE = "encoder", "heads.safetensors"
OVERLAP = 4
"""Windows overlap by one part in so many, so that what one cuts stands whole in the other."""


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
    read: dict[str, ValuePlace | None] = {}
    """By argument of a call, or path of a field, where its value was read."""


class SpanScorer(Protocol):
    """Answers to many texts at once. Called from one thread at a time."""

    def answer(self, texts: Sequence[str]) -> list[SpanAnswer]:
        """Return one answer per text, in order."""


class SpanModel(CallableModel):
    """A SpanScorer as a Model: batches concurrent requests and prices the machine's time."""

    capabilities = frozenset({Capability.CHOSEN, Capability.READINESS})

    def __init__(
        self, scorer: SpanScorer, manifest: Manifest, *, name: str = "", price: MachinePrice | None = None
    ) -> None:
        self.manifest, self.name = manifest, name or manifest.task.name
        self.max_answer_tokens = manifest.task.max_answer_tokens
        self.functions = getattr(manifest.task, "tools", None)
        self._price = price or MachinePrice()
        self._worker: BatchWorker[str, SpanAnswer] = BatchWorker(
            scorer.answer,
            name=self.name,
            max_batch_size=128,
            size=estimated_tokens,
            budget=SHORT_PASS,
            price=self._price,
        )

    async def complete(self, request: Request) -> Completion:
        """Return the marked answer; it generates no tokens. Raise ModelError if there is none."""
        began = time.perf_counter()
        answer = await self._worker.submit(request.text, request.bill)
        at = max((i for i, message in enumerate(request.messages) if message.role == "user"), default=0)
        return Completion(
            text=answer.text,
            answered_by=self.name,
            latency_ms=(time.perf_counter() - began) * 1000,
            **paid(self._price.charge(self.name, answer.busy_s, tokens_of(answer.n_tokens))),
            confidence=answer.confidence,
            field_confidence=answer.field_confidence,
            read={name: place and place.in_message(at) for name, place in answer.read.items()},
        )

    async def ready(self) -> None:
        await self._worker.submit("ready")

    async def aclose(self) -> None:
        await self._worker.aclose()


def windows(n: int, size: int) -> list[range]:
    """Return ranges of at most `size` that hold all of `n` tokens, each but a single one full; neighbours overlap."""
    starts = [*range(0, n - size, size - size // OVERLAP), max(0, n - size)]
    return [range(start, min(n, start + size)) for start in starts]


class MarkingNetwork(torch.nn.Module):
    """An encoder, which is trained as `body`, and heads over its token states."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.body: Any = encoder.model if encoder.engine is None else None

    def save(self, folder: Path) -> None:
        """Write the encoder with its tokenizer, and the heads; the manifest is written last, by the caller."""
        from safetensors.torch import save

        self.encoder.model.save_pretrained(folder / ENCODER_FOLDER)
        self.encoder.tokenizer.save_pretrained(folder / ENCODER_FOLDER)
        heads = {name: w.contiguous() for name, w in self.state_dict().items() if not name.startswith("body.")}
        write_atomically(folder / HEADS_FILE, save(heads))

    def load_heads(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self.load_state_dict(load_file(folder / HEADS_FILE), strict=False)
