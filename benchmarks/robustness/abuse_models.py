"""The models of the attacked server: a real, tiny Llama, and one that writes faster than clients read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.accuracy.tiny import make_tiny
from smallfirst.models.protocol import Capability, Chunk, Completion, Model, Request

_PIECE, _PIECES = "flood " * 5_000, 3_000


def tiny(folder: Path) -> Model:
    """Return a seeded Llama of two layers that writes some random tokens."""
    from smallfirst.models.generation.generator import Generator
    from smallfirst.models.generation.model import GenerativeModel

    if not (folder / "config.json").is_file():
        make_tiny(folder)
    return GenerativeModel.published(Generator.load(folder, chat=True), name="tiny")


class Flood:
    """Yield ninety megabytes of text in pieces."""

    capabilities: frozenset[Capability] = frozenset({Capability.STREAM})

    name = "flood"

    async def complete(self, request: Request) -> Completion:
        """One piece."""
        return Completion(text=_PIECE, answered_by=self.name, latency_ms=1.0, cost_usd=0.0)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """All pieces."""
        for _ in range(_PIECES):
            yield Chunk(text=_PIECE)
        yield Chunk(completion=Completion(text=_PIECE, answered_by=self.name, latency_ms=1.0, cost_usd=0.0))

    async def aclose(self) -> None:
        """Holds nothing."""
