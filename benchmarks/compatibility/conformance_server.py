"""A server for benchmarks/compatibility/conformance.py: SmolLM2-135M-Instruct under the names that the suites ask for.

    python -m benchmarks.compatibility.conformance_server PORT KEY LEDGER

Under openai-python's names an answer is cut at 24 tokens, since its tests check the form and set no length; `small`
is not cut.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from smallfirst.models import catalog as base
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.model import GenerativeModel
from smallfirst.models.protocol import Capability, Chunk, Completion, Embeddings, Request
from smallfirst.serving.app import serve
from smallfirst.serving.auth.keys import hash_key
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.settings import ServeSettings

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
NAMES = ("gpt-6-astra", "gpt-3.5-turbo-instruct", "text-embedding-3-small")
MOST_TOKENS = 24


class Short:
    """A chat model whose answers are cut early."""

    capabilities: frozenset[Capability] = frozenset({Capability.EMBEDDINGS, Capability.READINESS})

    def __init__(self, model: GenerativeModel) -> None:
        self._model = model
        self.name = model.name

    async def complete(self, request: Request) -> Completion:
        """The beginning of its answer."""
        return await self._model.complete(_cut(request))

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The same piece by piece."""
        return self._model.stream(_cut(request))

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Its vectors."""
        assert Capability.EMBEDDINGS in self._model.capabilities
        return await self._model.embed(texts)

    async def ready(self) -> None:
        """Its state."""
        await self._model.ready()

    async def aclose(self) -> None:
        """Close the model."""
        await self._model.aclose()


def _cut(request: Request) -> Request:
    return request.model_copy(update={"max_tokens": min(request.max_tokens, MOST_TOKENS)})


def main() -> None:
    """Serve until told to stop."""
    port, key, path = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    whole = GenerativeModel.published(Generator.load(base.find_weights(BASE), chat=True), name="smollm2")
    settings = ServeSettings(port=port, api_keys_sha256=(hash_key(key),))
    serve({**dict.fromkeys(NAMES, Short(whole)), "small": whole}, ledger=Ledger(path), settings=settings)


if __name__ == "__main__":
    main()
