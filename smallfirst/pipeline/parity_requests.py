"""Send many conversations to an OpenAI-compatible endpoint, as a client would: over HTTP, some at the same time.

A request that the server asks to repeat later is repeated; any other failure becomes a reply that carries its reason.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from smallfirst.data.dataset import Message
from smallfirst.models.remote.http import ConnectionBroken, HttpSession, ResponseTimeout
from smallfirst.serving.loopback import Address

SHOWN_CHARS = 160
"""Quoted texts are shortened to this many characters."""
_CONCURRENCY = 8
_MAX_ATTEMPTS = 4
_TIMEOUT_S = 120.0


class EndpointReply(NamedTuple):
    """The reply to one conversation."""

    text: str | None
    """The answer; None if there is none."""
    confidence: float | None = None
    """The endpoint's confidence, in [0, 1]; None where it reports none."""
    error: str = ""
    """Why there is no answer."""


async def ask_all(address: Address, model: str, conversations: Sequence[Sequence[Message]]) -> list[EndpointReply]:
    """Return one reply to each conversation, in order. Raise nothing for what the endpoint does."""
    session = HttpSession(
        address.base_url.rstrip("/"), key=address.key, timeout_s=_TIMEOUT_S, max_connections=_CONCURRENCY
    )

    async def ask(messages: Sequence[Message]) -> EndpointReply:
        body = {"model": model, "messages": [{"role": one.role, "content": one.content} for one in messages]}
        return await _ask(session, json.dumps(body).encode())

    try:
        return list(await asyncio.gather(*map(ask, conversations)))
    finally:
        await session.aclose()


async def _ask(session: HttpSession, body: bytes) -> EndpointReply:
    error = ""
    for attempt in range(_MAX_ATTEMPTS):
        try:
            response = await session.post("/chat/completions", body)
            content = await response.read()
            if response.status == 200:
                return _parse(json.loads(content))
        except (ConnectionBroken, ResponseTimeout, ValueError) as failure:
            return EndpointReply(None, error=f"no answer ({type(failure).__name__})")
        error = f"HTTP {response.status}: {' '.join(content.split())[:SHOWN_CHARS]}"
        if response.status not in (429, 503):
            break
        await asyncio.sleep(2.0**attempt / 2)
    return EndpointReply(None, error=error)


def _parse(body: Any) -> EndpointReply:
    try:
        extension = body.get("smallfirst") or {}
        return EndpointReply(body["choices"][0]["message"]["content"], extension.get("confidence"))
    except (AttributeError, KeyError, IndexError, TypeError):
        return EndpointReply(None, error="the response is not a chat completion")
