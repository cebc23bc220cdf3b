"""Any OpenAI-compatible /v1/chat/completions as a Model: a hosted API, vLLM, llama.cpp, ourselves.

Failures before the first byte of an answer are tried again, with growing waits that honour
Retry-After. Timeouts are not: the server may still be at work, and would be paid twice. A price is
looked up before the first paid call.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import httpx
import pydantic
from pydantic import Field

from smallfirst.errors import BadAnswer, ConfigError, ModelError, PriceUnknown
from smallfirst.models.model import Chunk, Completion, Request
from smallfirst.models.replies import Answer, Replies, after, retry_after_s
from smallfirst.pricing import PriceBook
from smallfirst.records import Record

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0


class EndpointConfig(Record):
    """Where an endpoint is and how it may be used."""

    base_url: str
    """Address up to and including `/v1`."""
    model: str
    """Name of the model at the endpoint; its price is looked up by this name."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key. The key itself is never in a file."""
    timeout_s: Annotated[float, Field(gt=0)] = 60
    """Longest wait for the first byte of an answer, for the rest of it, and between pieces."""
    connect_timeout_s: Annotated[float, Field(gt=0)] = 5
    """Longest wait for a connection."""
    max_retries: Annotated[int, Field(ge=0)] = 3
    """Tries after the first, on 429, 5xx and broken connections."""
    max_concurrency: Annotated[int, Field(ge=1)] = 8
    """Most requests under way at once; the others wait here."""
    priced_by: Literal["tokens", "machine"] | None = None
    """What is paid for. Default: tokens, or machine time on loopback if no token price is known."""
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """How this endpoint calls the length limit; hosted reasoning models want the long name."""
    extra_body: dict[str, Any] = {}
    """Added to every request body; null takes a setting out (`temperature: null`)."""

    @pydantic.field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        try:
            url = httpx.URL(value)
        except httpx.InvalidURL as error:
            raise ValueError(f"is no address: {error}") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("must be a full address such as https://api.example.com/v1")
        if url.userinfo:
            raise ValueError("must hold no user or password; the key comes from the environment")
        return value.rstrip("/")

    @property
    def is_loopback(self) -> bool:
        """True if the address is this machine."""
        host = httpx.URL(self.base_url).host
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


@dataclass
class _Lane:
    """What belongs to one event loop, since sockets cannot be shared between loops."""

    client: httpx.AsyncClient
    places: asyncio.Semaphore
    keeper: AsyncGenerator[None, None]


class EndpointModel:
    """A model behind an OpenAI-compatible address; usable from several `asyncio.run` calls."""

    def __init__(
        self,
        config: EndpointConfig,
        prices: PriceBook,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        api_key: str | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """A model that has not connected yet.

        `api_key` is for servers that this program starts itself; the key of any other comes from
        the environment. Raises ConfigError without a key, PriceUnknown if answers would have no
        price.
        """
        self.config = config
        self._prices = prices
        self._by_tokens = _is_priced_by_tokens(config, prices)
        self._key = api_key or _key_from_environment(config)
        self._replies = Replies(config.base_url, config.model, config.api_key_env, self._key)
        self._transport = transport
        self._sleep = sleep
        self._lanes: dict[asyncio.AbstractEventLoop, _Lane] = {}
        self._n_under_way = 0

    @property
    def name(self) -> str:
        """The endpoint's model name."""
        return self.config.model

    async def complete(self, request: Request) -> Completion:
        """The whole answer, timed from sending, retries included. Raises ModelError."""
        async with self._turn() as (client, share):
            answer = Answer()
            response = await self._send(client, self._body(request))
            try:
                async with asyncio.timeout(self.config.timeout_s):
                    content = await response.aread()
            except (TimeoutError, httpx.RequestError) as error:
                raise self._replies.down(f"broke off its answer ({_reason(error)})") from None
            finally:
                await response.aclose()
            self._replies.read(content.decode(errors="replace"), answer)
            return self._completion(answer, share)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The answer piece by piece; not asked again once a piece has come. Raises ModelError."""
        body = self._body(request) | {"stream": True, "stream_options": {"include_usage": True}}
        async with self._turn() as (client, share):
            answer = Answer()
            response = await self._send(client, body)
            try:
                async for line in response.aiter_lines():
                    if piece := self._replies.read_event(line, answer):
                        yield Chunk(text=piece)
            except httpx.RequestError as error:
                raise self._replies.down(f"broke off its answer ({_reason(error)})") from None
            finally:
                await response.aclose()
            if answer.finish_reason is None:
                raise self._replies.down("broke off its answer (the stream ended early)")
            yield Chunk(completion=self._completion(answer, share))

    async def aclose(self) -> None:
        """Close the connections of the running event loop. Those of other loops end with them."""
        lane = self._lanes.pop(asyncio.get_running_loop(), None)
        if lane is not None:
            await lane.keeper.aclose()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[tuple[httpx.AsyncClient, float]]:
        """This loop's client and the request's share of the machine, once a place is free.

        The share is 1 / requests under way when this one starts: good enough to spread the cost
        of a machine over requests that it answers side by side.
        """
        loop = asyncio.get_running_loop()
        for old in [known for known in list(self._lanes) if known.is_closed()]:
            self._lanes.pop(old, None)
        lane = self._lanes.get(loop)
        if lane is None:
            client = self._new_client()
            places = asyncio.Semaphore(self.config.max_concurrency)
            lane = self._lanes[loop] = _Lane(client, places, _closed_with_its_loop(client))
            await anext(lane.keeper)
        async with lane.places:
            self._n_under_way += 1
            try:
                yield lane.client, 1 / self._n_under_way
            finally:
                self._n_under_way -= 1

    def _new_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(self.config.timeout_s, connect=self.config.connect_timeout_s),
            limits=httpx.Limits(max_connections=self.config.max_concurrency),
            # A redirect could carry the key elsewhere; a proxy has no business with loopback.
            follow_redirects=False,
            trust_env=not self.config.is_loopback,
            transport=self._transport,
        )

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": [message.model_dump() for message in request.messages],
            self.config.max_tokens_key: request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            "stop": list(request.stop) or None,
            **self.config.extra_body,
        }
        return {key: value for key, value in body.items() if value is not None}

    async def _send(self, client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        """An accepted response whose body is still unread. Tries again where that is safe."""
        error: ModelError
        for tries in range(1, self.config.max_retries + 2):
            asked_s: float | None = None
            try:
                request = client.build_request("POST", self._replies.url, json=body)
                response = await client.send(request, stream=True)
                if response.is_success:
                    return response
                error = await self._refusal(response, tries)
                asked_s = retry_after_s(response.headers.get("retry-after", ""))
            except (httpx.ReadTimeout, httpx.WriteTimeout):
                limit = f"{self.config.timeout_s:g} s"
                raise self._replies.down(f"gave no answer within {limit}") from None
            except httpx.TransportError as broken:
                error = self._replies.down(f"{_reason(broken)}{after(tries)}")
            if not error.retryable or tries > self.config.max_retries:
                break
            growing_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (tries - 1))
            wait_s = growing_s * random.uniform(0.5, 1) if asked_s is None else asked_s
            if wait_s > self.config.timeout_s:  # nobody would wait that long for an answer
                break
            await self._sleep(wait_s)
        raise error

    async def _refusal(self, response: httpx.Response, tries: int) -> ModelError:
        try:
            content = (await response.aread()).decode(errors="replace")
        finally:
            await response.aclose()
        return self._replies.refusal(response.status_code, content, tries)

    def _completion(self, answer: Answer, share: float) -> Completion:
        seconds, usage = time.perf_counter() - answer.started, answer.usage
        if not self._by_tokens:
            cost_usd = self._prices.machine.cost_usd(seconds * share)
        elif usage is None:
            raise BadAnswer(
                f"{self._replies.url} did not say how many tokens it used: its answer has no price",
                hint="ask for usage in the endpoint's own settings, or set `priced_by: machine`",
            )
        else:
            read, written, url = usage.prompt_tokens, usage.completion_tokens, self.config.base_url
            cost_usd = self._prices.token_cost_usd(self.name, read, written, api_url=url)
        return Completion(
            text=answer.text,
            answered_by=self.name,
            latency_ms=seconds * 1000,
            cost_usd=cost_usd,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            finish_reason="length" if answer.finish_reason == "length" else "stop",
        )


async def _closed_with_its_loop(client: httpx.AsyncClient) -> AsyncGenerator[None, None]:
    """Closes `client` with its loop: `asyncio.run` closes all started generators at its end."""
    try:
        yield
    finally:
        await client.aclose()


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


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
