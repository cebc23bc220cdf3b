"""A fine-tuned generative model, run by llama.cpp from its GGUF export instead of by PyTorch.

Its probabilities are those of rounded weights, so a certificate made with PyTorch does not cover it, and an answer
under a schema has no confidence. A text that is too long is refused, not cut.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from smallfirst.errors import ConfigError
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Capability, Chunk, Completion, Request, stream_in_one_chunk
from smallfirst.models.servers.llama_cpp import LlamaCppConfig, LlamaCppModel
from smallfirst.models.wrappers import DelegatingModel
from smallfirst.pricing.prices import PriceBook

SPARE_TOKENS = 8
"""Room for a start token and an end token."""


class ExportedModel(DelegatingModel):
    """The task's own model, in another engine."""

    capabilities: frozenset[Capability] = frozenset({Capability.LOGPROBS, Capability.READINESS})
    """No JSON: answers follow the task's schema, whatever a request asks for."""

    def __init__(
        self, path: Path, manifest: Manifest, prices: PriceBook, *, name: str = "", slots: int = 2, **settings: Any
    ) -> None:
        """Load nothing yet. Raise ConfigError if answers are not generated or the file is missing, MissingExtra."""
        if manifest.kind != "generative":
            raise ConfigError(
                f'{path}: of kind "{manifest.kind}"; llama.cpp only generates text', hint="serve the model's folder"
            )
        self.manifest = manifest
        slot_tokens = manifest.max_tokens + manifest.task.max_answer_tokens + SPARE_TOKENS
        config = LlamaCppConfig(path=path, slots=slots, context_tokens=slots * slot_tokens, **settings)
        model = LlamaCppModel(config, prices, schema=manifest.task.answer_schema())
        super().__init__(model, name=name or manifest.task.name)

    async def complete(self, request: Request) -> Completion:
        """Return the answer, with its confidence where no grammar shaped it."""
        task, is_free_text = self.manifest.task, self.manifest.task.answer_schema() is None
        update = {
            "messages": tuple(message for message in request.messages if message.role == "user")[-1:],
            "max_tokens": min(request.max_tokens, task.max_answer_tokens),
            "logprobs": request.logprobs or 0 if is_free_text else request.logprobs,
            "response_format": None,
        }
        found = await self.inner.complete(request.model_copy(update=update))
        logprobs = [token.logprob for token in found.tokens]
        has_confidence = is_free_text and logprobs
        return found.model_copy(
            update={
                "text": found.text.strip(),
                "answered_by": self.name,
                "confidence": self.manifest.calibration.confidence(logprobs) if has_confidence else None,
                "tokens": found.tokens if request.logprobs is not None else (),
            }
        )

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        return stream_in_one_chunk(self, request)
