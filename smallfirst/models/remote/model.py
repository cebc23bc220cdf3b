"""Any OpenAI-compatible /v1/chat/completions as a Model: a hosted API, vLLM, llama.cpp, ourselves.

`upstream` asks and tries again, `connections` are the wires, `replies` makes sense of what comes back; here a Request
becomes a body and a reply a Completion with its price, which is looked up before the first paid call.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from smallfirst.errors import BadAnswer, ConfigError, PriceUnknown
from smallfirst.models.protocol import Capability, Chunk, Completion, Embeddings, Request, ResponseFormat
from smallfirst.models.remote.client import EndpointClient
from smallfirst.models.remote.config import EndpointConfig
from smallfirst.models.remote.responses import PartialAnswer, ResponseParser, Usage
from smallfirst.pricing import PriceBook

if TYPE_CHECKING:
    import httpx

__all__ = ["EndpointConfig", "EndpointModel"]

CHAT = "/chat/completions"


class EndpointModel:
    """A model behind an OpenAI-compatible address; usable from several `asyncio.run` calls."""

    capabilities: frozenset[Capability] = frozenset({Capability.STREAM, Capability.EMBEDDINGS, Capability.READINESS})
    """What it can do beyond answering."""

    def __init__(
        self,
        config: EndpointConfig,
        prices: PriceBook,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        api_key: str | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A model that has not connected yet.

        `api_key` is for servers that this program starts itself; the key of any other comes from
        the environment. Raises ConfigError without a key, PriceUnknown if answers would have no
        price.
        """
        self.config = config
        self._prices = prices
        self._by_tokens = _is_priced_by_tokens(config, prices)
        key = api_key or _key_from_environment(config)
        self._replies = ResponseParser(config.base_url, config.model, config.api_key_env, key)
        self._upstream = EndpointClient(config, self._replies, transport=transport, sleep=sleep, clock=clock)

    @property
    def name(self) -> str:
        """The endpoint's model name."""
        return self.config.model

    async def complete(self, request: Request) -> Completion:
        """The whole answer, timed from sending, retries included. Raises ModelError."""
        async with self._upstream.turn() as (connections, share):
            answer = PartialAnswer()
            async with self._upstream.post(connections, CHAT, self._body(request)) as reply:
                async with asyncio.timeout(self.config.timeout_s):
                    content = await reply.read()
                self._replies.read(content, answer)
            return self._completion(answer, share)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The answer piece by piece; not asked again once a piece has come. Raises ModelError."""
        body = self._body(request) | {"stream": True, "stream_options": {"include_usage": True}}
        async with self._upstream.turn() as (connections, share):
            answer = PartialAnswer()
            async with self._upstream.post(connections, CHAT, body) as reply:
                async for line in reply.lines():
                    if (chunk := self._replies.parse_event(line, answer)) is not None:
                        yield chunk
                if answer.finish_reason is None:
                    raise self._replies.down("broke off its answer (the stream ended early)")
            yield Chunk(completion=self._completion(answer, share))

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """One vector per text, in order, of length 1. Raises ModelError."""
        if not texts:
            return Embeddings([], 0, 0.0)
        body = {"model": self.config.model, "input": list(texts), "encoding_format": "float"}
        async with self._upstream.turn() as (connections, share):
            began = time.perf_counter()
            async with self._upstream.post(connections, "/embeddings", body) as reply:
                async with asyncio.timeout(self.config.timeout_s):
                    content = await reply.read()
                found = self._replies.parse_embeddings(content, len(texts))
            usage = Usage(prompt_tokens=found.usage.prompt_tokens, completion_tokens=0) if found.usage else None
            cost_usd = self._cost_usd(usage, (time.perf_counter() - began) * share)
        vectors = [_of_length_1(one.embedding) for one in found.data]
        return Embeddings(vectors, usage.prompt_tokens if usage else 0, cost_usd)

    async def ready(self) -> None:
        """Nothing if the endpoint would be asked. Raises LeftAlone after failures; asks nothing itself."""
        self._upstream.check()

    async def aclose(self) -> None:
        """Close the connections of the running event loop. Those of other loops end with them."""
        await self._upstream.aclose()

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            self.config.max_tokens_key: request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            "stop": list(request.stop) or None,
            "response_format": _form(request.response_format),
            "logprobs": None if request.logprobs is None else True,
            "top_logprobs": request.logprobs or None,
            **self.config.extra_body,
        }
        return {key: value for key, value in body.items() if value is not None}

    def _completion(self, answer: PartialAnswer, share: float) -> Completion:
        seconds, usage = time.perf_counter() - answer.started, answer.usage
        return Completion(
            text=answer.text,
            answered_by=self.name,
            latency_ms=seconds * 1000,
            cost_usd=self._cost_usd(usage, seconds * share),
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            finish_reason="length" if answer.finish_reason == "length" else "stop",
            tokens=tuple(answer.tokens),
        )

    def _cost_usd(self, usage: Usage | None, busy_s: float) -> float:
        """What an answer cost, by tokens or by machine. Raises BadAnswer for tokens that nobody counted."""
        if not self._by_tokens:
            return self._prices.machine.cost_usd(busy_s)
        if usage is None:
            raise BadAnswer(
                f"{self._replies.url} did not say how many tokens it used: its answer has no price",
                hint="ask for usage in the endpoint's own settings, or set `priced_by: machine`",
            )
        read, written, url = usage.prompt_tokens, usage.completion_tokens, self.config.base_url
        return self._prices.token_cost_usd(self.name, read, written, api_url=url)


def _form(wanted: ResponseFormat | None) -> dict[str, Any] | None:
    """OpenAI's `response_format`."""
    if wanted is None or wanted.kind == "json_object":
        return None if wanted is None else {"type": "json_object"}
    schema = {"name": wanted.name or "answer", "schema": wanted.json_schema, "strict": wanted.strict}
    return {"type": "json_schema", "json_schema": schema}


def _of_length_1(vector: list[float]) -> list[float]:
    length = math.hypot(*vector)
    return [value / length for value in vector] if length else vector


def _is_priced_by_tokens(config: EndpointConfig, prices: PriceBook) -> bool:
    """Whether tokens or machine time are paid for. Raises PriceUnknown for tokens without one."""
    if config.priced_by == "machine":
        return False
    try:
        prices.source(config.model, api_url=config.base_url)
    except PriceUnknown:
        if config.is_loopback and config.priced_by is None:
            return False
        raise
    return True


def _key_from_environment(config: EndpointConfig) -> str:
    key = os.environ.get(config.api_key_env, "").strip()
    if not key and not config.is_loopback:
        raise ConfigError(
            f"{config.base_url} needs a key, and the variable {config.api_key_env} is not set",
            hint=f"export {config.api_key_env}=…",
        )
    return key
