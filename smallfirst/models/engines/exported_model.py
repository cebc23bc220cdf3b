"""A fine-tuned model that writes, run by llama.cpp from its export instead of by PyTorch.

The export's own chat template asks as in training, so a request is sent as it came, and the task's schema is kept as
there. In int8 the weights are half the bytes of bf16, which is what writing waits for. The price: probabilities are
those of rounded weights, and of tokens before the grammar has its say, so an answer under a schema has no confidence,
and no certificate that was made with PyTorch covers this model. A text that is too long is refused, not cut.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from smallfirst.errors import ConfigError
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Capability, Chunk, Completion, Request, stream_in_one_chunk
from smallfirst.models.servers.llama_cpp import LlamaCppConfig, LlamaCppModel
from smallfirst.pricing import PriceBook

SPARE_TOKENS = 8
"""For a start token, and one that ends."""


class ExportedModel:
    """The task's own model, in another engine."""

    capabilities: frozenset[Capability] = frozenset({Capability.READINESS})
    """What it can do beyond answering."""

    def __init__(
        self, path: Path, manifest: Manifest, prices: PriceBook, *, name: str = "", slots: int = 2, **more: Any
    ) -> None:
        """A model that is not loaded yet; `more` goes into its GgufConfig.

        Raises ConfigError if the task's answers are not written, or there is no such file, MissingExtra.
        """
        if manifest.kind != "writes":
            raise ConfigError(
                f'{path}: of kind "{manifest.kind}"; llama.cpp only writes', hint="serve the model's folder"
            )
        self.manifest, self._name = manifest, name or manifest.task.name
        each = manifest.max_tokens + manifest.task.max_answer_tokens + SPARE_TOKENS
        config = LlamaCppConfig(path=path, slots=slots, context_tokens=slots * each, **more)
        self._inner = LlamaCppModel(config, prices, schema=manifest.task.answer_schema())

    @property
    def name(self) -> str:
        """Name shown in results, headers and the ledger."""
        return self._name

    async def complete(self, request: Request) -> Completion:
        """The written answer; with its confidence where no grammar shaped it. Raises ModelError."""
        task, free = self.manifest.task, self.manifest.task.answer_schema() is None
        asked = {
            "messages": tuple(message for message in request.messages if message.role == "user")[-1:],
            "max_tokens": min(request.max_tokens, task.max_answer_tokens),
            "logprobs": request.logprobs or 0 if free else request.logprobs,
            "response_format": None,
        }
        found = await self._inner.complete(request.model_copy(update=asked))
        said = [token.logprob for token in found.tokens]
        return found.model_copy(
            update={
                "text": found.text.strip(),
                "answered_by": self.name,
                "confidence": self.manifest.calibration.confidence(said) if free and said else None,
                "tokens": found.tokens if request.logprobs is not None else (),
            }
        )

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The answer in one piece."""
        return stream_in_one_chunk(self, request)

    async def ready(self) -> None:
        """Nothing if it would answer. Raises ModelError."""
        await self._inner.ready()

    async def aclose(self) -> None:
        """End the child process, if nobody else uses it."""
        await self._inner.aclose()
