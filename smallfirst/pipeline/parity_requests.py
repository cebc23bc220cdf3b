"""An OpenAI-compatible endpoint asked many conversations, as a client would: over HTTP, some at once.

A server that asks to wait is asked again; whatever else goes wrong is an answer too, with its reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import httpx

from smallfirst.data.dataset import Message
from smallfirst.serving.loopback import Address

SHOWN_CHARS = 160
"""Texts are shortened to so many characters where they are shown."""
_AT_ONCE = 8
_TRIES = 4
_LONGEST_S = 120.0


class EndpointReply(NamedTuple):
    """What came back."""

    text: str | None
    """The answer; None if there is none."""
    confidence: float | None = None
    """What the endpoint says of it, in [0, 1]; None where it says nothing."""
    error: str = ""
    """Why there is no answer."""


async def ask_all(address: Address, model: str, conversations: Sequence[Sequence[Message]]) -> list[EndpointReply]:
    """One reply to each conversation, in order. Never raises for what the endpoint does."""
    headers = {"authorization": f"Bearer {address.key}"} if address.key else {}
    url, room = f"{address.base_url.rstrip('/')}/chat/completions", asyncio.Semaphore(_AT_ONCE)
    async with httpx.AsyncClient(headers=headers, timeout=_LONGEST_S) as client:

        async def ask(messages: Sequence[Message]) -> EndpointReply:
            said = [{"role": message.role, "content": message.content} for message in messages]
            async with room:
                return await _ask(client, url, {"model": model, "messages": said})

        return list(await asyncio.gather(*map(ask, conversations)))


async def _ask(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> EndpointReply:
    error = ""
    for attempt in range(_TRIES):
        try:
            reply = await client.post(url, json=body)
            if reply.status_code == 200:
                return _read(reply.json())
        except (httpx.HTTPError, ValueError) as failure:
            return EndpointReply(None, error=f"no answer ({type(failure).__name__})")
        error = f"HTTP {reply.status_code}: {' '.join(reply.text.split())[:SHOWN_CHARS]}"
        if reply.status_code not in (429, 503):
            break
        await asyncio.sleep(2.0**attempt / 2)
    return EndpointReply(None, error=error)


def _read(body: Any) -> EndpointReply:
    try:
        told = body.get("smallfirst") or {}
        return EndpointReply(body["choices"][0]["message"]["content"], told.get("confidence"))
    except (AttributeError, KeyError, IndexError, TypeError):
        return EndpointReply(None, error="what came back is no chat completion")
