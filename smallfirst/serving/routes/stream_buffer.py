"""Read a model's stream ahead of its client: one task reads and closes it, another sends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from smallfirst.errors import BadAnswer
from smallfirst.models.protocol import Chunk

_MAX_AHEAD = 64
"""Chunks that a model may be ahead of its client."""

Chunks = asyncio.Queue[Chunk | Exception]


@asynccontextmanager
async def buffer_stream(stream: AsyncIterator[Chunk]) -> AsyncIterator[Chunks]:
    """Yield a queue that a task fills from `stream`; that task also closes the stream at the end."""
    chunks: Chunks = asyncio.Queue(_MAX_AHEAD)
    filling = asyncio.create_task(_fill(chunks, stream))
    try:
        yield chunks
    finally:
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)


async def _fill(chunks: Chunks, stream: AsyncIterator[Chunk]) -> None:
    try:
        async for chunk in stream:
            await chunks.put(chunk)
            if chunk.completion is not None:
                return
        await chunks.put(BadAnswer("the stream ended without a completion"))
    except Exception as error:
        await chunks.put(error)
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


async def next_chunk(chunks: Chunks) -> Chunk:
    """Return the next chunk. Raise what the stream raised."""
    item = await chunks.get()
    if isinstance(item, Exception):
        raise item
    return item


async def first_chunk(chunks: Chunks) -> Chunk:
    """Return the first text with all that is ready by then, perhaps the Completion. Raise what the stream raised."""
    found = await next_chunk(chunks)
    while found.completion is None and (not found.text or not chunks.empty()):
        more = await next_chunk(chunks)
        found = Chunk(text=found.text + more.text, tokens=found.tokens + more.tokens, completion=more.completion)
    if not found.text and found.completion is not None:
        # A model may send its whole answer with the Completion alone.
        return Chunk(text=found.completion.text, tokens=found.completion.tokens, completion=found.completion)
    return found
