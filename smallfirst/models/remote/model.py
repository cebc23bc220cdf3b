"""Any OpenAI-compatible /v1/chat/completions as a Model: a hosted API, vLLM, llama.cpp, or smallfirst itself."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from smallfirst.base.errors import AnswerLost, BadAnswer, ConfigError, ModelError, PriceUnknown
from smallfirst.models.pricing import COST_HEADERS, Charge, PriceBook, TokenUsage, read_usage, stated, tokens_of
from smallfirst.models.protocol import (
    CallableModel,
    Capability,
    Chunk,
    Completion,
    ReportUnfinished,
    Request,
    ResponseFormat,
    estimate_prompt_tokens,
    estimate_written_tokens,
    paid,
    unfinished,
)
from smallfirst.models.remote.client import EndpointClient
from smallfirst.models.remote.config import EndpointConfig
from smallfirst.models.remote.http import HttpResponse, HttpSession
from smallfirst.models.remote.responses import (
    MAX_HIDDEN_TOKENS,
    PartialAnswer,
    ResponseParser,
    max_response_bytes,
)

__all__ = ["EndpointConfig", "EndpointModel", "open_session"]

_log = logging.getLogger("smallfirst.endpoint")
CHAT = "/chat/completions"


def open_session(config: EndpointConfig, key: str, *, unix_socket: Path | None = None) -> HttpSession:
    """Return a session to the endpoint for the running event loop. Open no connection yet."""
    return HttpSession(
        config.base_url,
        key=key,
        timeout_s=config.timeout_s,
        connect_timeout_s=config.connect_timeout_s,
        max_connections=config.max_concurrency,
        unix_socket=unix_socket,
    )


class EndpointModel(CallableModel):
    """A model behind an OpenAI-compatible address; usable from several `asyncio.run` calls."""

    capabilities: frozenset[Capability] = frozenset(
        {Capability.STREAM, Capability.JSON, Capability.LOGPROBS, Capability.READINESS}
    )
    """Whether an endpoint offers them shows when it is asked. Embeddings are asked of it directly."""

    def __init__(
        self,
        config: EndpointConfig,
        prices: PriceBook,
        *,
        connect: Callable[[EndpointConfig, str], HttpSession] = open_session,
        api_key: str | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect to nothing yet; `api_key` is for servers this program starts. Raise ConfigError, PriceUnknown."""
        self.config = config
        self._prices = prices
        self._by_tokens, self._machine = is_priced_by_tokens(config, prices), prices.machine_named(config.machine)
        self._is_own = api_key is not None  # no attempt of its own: its answer is priced by who started it
        key = api_key or _key_from_environment(config)
        self._parser = ResponseParser(config.base_url, config.model, config.api_key_env, key)
        self._client = EndpointClient(
            config,
            self._parser,
            open_session=lambda: connect(config, key),
            sleep=sleep,
            clock=clock,
        )

    @property
    def name(self) -> str:
        return self.config.model

    async def complete(self, request: Request) -> Completion:
        async with self._asking(request, self._body(request), n_unseen=request.max_tokens) as (answer, response):
            async with asyncio.timeout(self.config.timeout_s):
                content = await response.read(max_bytes=max_response_bytes(request))
            self._parser.parse_body(content, answer)
        return self._completion(answer)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Yield the answer piece by piece; never retry once a piece has come. Raise ModelError."""
        body = self._body(request) | {"stream": True, "stream_options": {"include_usage": True}}
        async with self._asking(request, body) as (answer, response):
            async for data in response.events(max_bytes=max_response_bytes(request, stream=True)):
                if (chunk := self._parser.parse_event(data, answer)) is not None:
                    yield chunk
            if answer.finish_reason is None:
                raise self._parser.lost("it broke off (the stream ended early)", "the answer broke off")
        yield Chunk(completion=self._completion(answer))

    async def ready(self) -> None:
        self._client.check()

    async def aclose(self) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def _asking(
        self, request: Request, fields: dict[str, Any], *, n_unseen: int = 0
    ) -> AsyncIterator[tuple[PartialAnswer, HttpResponse]]:
        """Send the fields; yield an answer to be filled from the response, and price it at the end. Raise ModelError.

        If it is cut off, the endpoint may have written `n_unseen` tokens unseen.
        """
        body, bill = json.dumps(fields).encode(), None if self._is_own else request.bill
        async with self._client.slot() as (session, share):
            # A token is at least one byte of what was sent.
            answer = PartialAnswer(len(body) + MAX_HIDDEN_TOKENS, request.max_tokens + MAX_HIDDEN_TOKENS)
            with self._report(answer, request, share, n_unseen):
                async with self._client.post(session, CHAT, body, bill) as (response, attempt):
                    answer.begun = True
                    answer.reported = read_usage({}, {name: response.header(name) for name in COST_HEADERS})
                    yield answer, response
                answer.seconds = time.perf_counter() - answer.started
                answer.charge = self._charge(answer, answer.seconds * share)
                attempt.cost_usd = answer.charge.usd

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            self.config.max_tokens_key: request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            "stop": list(request.stop) or None,
            "response_format": _response_format(request.response_format),
            "logprobs": None if request.logprobs is None else True,
            "top_logprobs": request.logprobs or None,
            **self.config.extra_body,
        }
        return {key: value for key, value in body.items() if value is not None}

    def _completion(self, answer: PartialAnswer) -> Completion:
        return Completion(
            text=answer.text,
            answered_by=self.name,
            latency_ms=answer.seconds * 1000,
            **paid(answer.charge),
            finish_reason="length" if answer.finish_reason == "length" else "stop",
            tokens=tuple(answer.tokens),
        )

    def _report(self, answer: PartialAnswer, request: Request, share: float, n_unseen: int) -> ReportUnfinished:
        def used(error: BaseException) -> Completion | None:
            if isinstance(error, ModelError) and not answer.begun:
                # Nobody knows whether a lost answer has to be paid; any other error is a refusal.
                lost = isinstance(error, AnswerLost)
                return unfinished(stated(self.name, None, source="no answer came"), estimated=False) if lost else None
            written = max(n_unseen, estimate_written_tokens(answer.n_chunks, len(answer.text.encode())))
            tokens = tokens_of(estimate_prompt_tokens(request), max(written, len(answer.tokens)))
            busy_s = (time.perf_counter() - answer.started) * share
            return unfinished(self._charge(answer, busy_s, tokens), estimated=answer.reported.tokens is None)

        return ReportUnfinished(request.bill, used)

    def _charge(self, answer: PartialAnswer, busy_s: float, estimate: TokenUsage | None = None) -> Charge:
        """Return the line of the bill. Raise BadAnswer if the endpoint named neither cost nor tokens."""
        tokens, tier, usd, source = answer.reported
        tokens = tokens or estimate
        if usd is not None and self.config.priced_by != "machine":
            return stated(self.name, usd, tokens=tokens or TokenUsage(), tier=tier, source=source)
        if not self._by_tokens:
            return self._machine.charge(self.name, busy_s, tokens)
        if self.config.priced_by == "billed" and estimate is None:
            raise BadAnswer(
                f"{self._parser.url} did not state what its answer cost, and `priced_by: billed` relies on that",
                hint="set `priced_by: tokens` and its price under prices.tokens",
                reason="no stated cost, so no price",
            )
        if tokens is None:
            raise BadAnswer(
                f"{self._parser.url} did not say how many tokens it used: its answer has no price",
                hint="ask for usage in the endpoint's own settings, or set `priced_by: machine`",
                reason="no usage, so no price",
            )
        try:
            return self._prices.charge(self.name, tokens, tier=tier, api_url=self.config.base_url)
        except PriceUnknown as error:  # of this tier, or from today on: the answer is there, and its cost is not known
            _log.warning("%s", error)
            return Charge(model=self.name, usd=None, basis="tokens", tokens=tokens, tier=tier, source=error.args[0])


def _response_format(wanted: ResponseFormat | None) -> dict[str, Any] | None:
    if wanted is None:
        return None
    if wanted.kind == "json_object":
        return {"type": "json_object"}
    schema = {"name": wanted.name or "answer", "schema": wanted.json_schema, "strict": wanted.strict}
    return {"type": "json_schema", "json_schema": schema}


def is_priced_by_tokens(config: EndpointConfig, prices: PriceBook) -> bool:
    """Return True if tokens are paid, False if machine time is. Raise PriceUnknown if a hosted model has no price."""
    if config.priced_by in ("machine", "billed"):
        return config.priced_by == "billed"
    try:
        prices.source_of(config.model, api_url=config.base_url)
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
