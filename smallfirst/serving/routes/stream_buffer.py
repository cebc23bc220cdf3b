"""Read a model's stream ahead of its client: one task reads and closes it, another sends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from smallfirst.errors import BadAnswer
from smallfirst.models.protocol import Chunk, Model, Request, open_stream
from smallfirst.models.usage import estimate_written_tokens
from smallfirst.serving.request_lifecycle import ApiCall

_MAX_AHEAD = 64
"""Chunks that a model may be ahead of its client."""

Chunks = asyncio.Queue[Chunk | Exception]


@asynccontextmanager
async def buffer_stream(call: ApiCall, model: Model, request: Request) -> AsyncIterator[Chunks]:
    """Yield a queue that a task fills from the model's stream; that task also closes the stream at the end."""
    chunks: Chunks = asyncio.Queue(_MAX_AHEAD)
    filling = asyncio.create_task(_fill(chunks, call, model, request))
    try:
        yield chunks
    finally:
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)


async def _fill(chunks: Chunks, call: ApiCall, model: Model, request: Request) -> None:
    n_chunks = n_characters = 0
    try:
        with call.asking(request, lambda: estimate_written_tokens(n_chunks, n_characters)):
            async with open_stream(model, request) as stream:
                async for chunk in stream:
                    if chunk.completion is not None:
                        call.answers.append(chunk.completion)
                        await chunks.put(chunk)
                        return
                    n_chunks, n_characters = n_chunks + bool(chunk.text), n_characters + len(chunk.text)
                    await chunks.put(chunk)
            raise BadAnswer("the stream ended without a completion")
    except Exception as error:
        await chunks.put(error)


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
