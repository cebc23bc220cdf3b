"""Any OpenAI-compatible /v1/chat/completions as a Model: a hosted API, vLLM, llama.cpp, or smallfirst itself.

The endpoint is not trusted. Anything that is not JSON with the fields used of the right types, finite numbers and
plausible usage, is a BadAnswer with a reason.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import Field

from smallfirst.base.errors import AnswerLost, BadAnswer, ConfigError, ModelError, PriceUnknown
from smallfirst.models.pricing import (
    COST_HEADERS,
    MAX_STATED_USD,
    Charge,
    PriceBook,
    Reported,
    TokenUsage,
    read_usage,
    stated,
    tokens_of,
)
from smallfirst.models.protocol import (
    CallableModel,
    Capability,
    Chunk,
    Completion,
    Request,
    ResponseFormat,
    Token,
    estimate_prompt_tokens,
    estimate_written_tokens,
    paid,
    unfinished,
    unless_answered,
)
from smallfirst.models.remote.client import EndpointClient
from smallfirst.models.remote.config import EndpointConfig
from smallfirst.models.remote.http import MAX_BODY_BYTES, HttpResponse

_log = logging.getLogger("smallfirst.endpoint")
CHAT = "/chat/completions"
MAX_HIDDEN_TOKENS = 128 * 1024
"""Tokens that a provider may add to a prompt, or spend on reasoning beyond the length asked for."""
MAX_TOKENS_IN_ANSWER = 256 * 1024
"""Most tokens with log-probabilities in one body."""


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
        api_key: str | None = None,
        unix_socket: Path | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect to nothing yet; `api_key` and `unix_socket` are for servers this program starts.

        Raise ConfigError, PriceUnknown.
        """
        self.config = config
        self._prices = prices
        self._by_tokens, self._machine = is_priced_by_tokens(config, prices), prices.machine_named(config.machine)
        self._is_own = api_key is not None  # no attempt of its own: its answer is priced by who started it
        key = api_key or _key_from_environment(config)
        self._client = EndpointClient(config, key, unix_socket=unix_socket, sleep=sleep, clock=clock)
        self._errors = self._client.errors

    @property
    def name(self) -> str:
        return self.config.model

    async def complete(self, request: Request) -> Completion:
        async with self._asking(request, self._body(request), n_unseen=request.max_tokens) as (answer, response):
            async with asyncio.timeout(self.config.timeout_s):
                content = await response.read(max_bytes=max_response_bytes(request))
            self._parse_body(content, answer)
        return self._completion(answer)

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Yield the answer piece by piece; never retry once a piece has come. Raise ModelError."""
        body = self._body(request) | {"stream": True, "stream_options": {"include_usage": True}}
        async with self._asking(request, body) as (answer, response):
            async for data in response.events(max_bytes=max_response_bytes(request, stream=True)):
                if (chunk := self._parse_event(data, answer)) is not None:
                    yield chunk
            if answer.finish_reason is None:
                raise self._errors.lost("it broke off (the stream ended early)", "the answer broke off")
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

    def _report(
        self, answer: PartialAnswer, request: Request, share: float, n_unseen: int
    ) -> AbstractContextManager[None]:
        def used(error: BaseException) -> Completion | None:
            if isinstance(error, ModelError) and not answer.begun:
                # Nobody knows whether a lost answer has to be paid; any other error is a refusal.
                lost = isinstance(error, AnswerLost)
                return unfinished(stated(self.name, None, source="no answer came"), estimated=False) if lost else None
            written = max(n_unseen, estimate_written_tokens(answer.n_chunks, len(answer.text.encode())))
            tokens = tokens_of(estimate_prompt_tokens(request), max(written, len(answer.tokens)))
            busy_s = (time.perf_counter() - answer.started) * share
            return unfinished(self._charge(answer, busy_s, tokens), estimated=answer.reported.tokens is None)

        return unless_answered(request.bill, used)

    def _parse_body(self, content: bytes, answer: PartialAnswer) -> None:
        """Fill `answer` from a whole response body. Raise BadAnswer or AnswerLost."""
        body = self._checked(content, answer)
        if not body.choices or body.choices[0].message is None:
            raise self._errors.no_completion(content, "no message")
        answer.pieces.append(body.choices[0].message.text())
        answer.finish_reason = body.choices[0].finish_reason
        answer.tokens.extend(body.choices[0].tokens())

    def _parse_event(self, data: str, answer: PartialAnswer) -> Chunk | None:
        if data == "[DONE]":
            return None
        body = self._checked(data, answer)
        if not body.choices:
            return None
        choice = body.choices[0]
        answer.finish_reason = choice.finish_reason or answer.finish_reason
        piece, tokens = choice.delta.text() if choice.delta else "", choice.tokens()
        answer.pieces.append(piece)
        answer.n_chunks += bool(piece)
        answer.tokens.extend(tokens)
        return Chunk(text=piece, tokens=tokens) if piece or tokens else None

    def _checked(self, content: bytes | str, answer: PartialAnswer) -> _ChatCompletion:
        """Return the content, its usage noted in `answer`."""
        try:
            # From the bytes: objects of Python for fields of no use would take most of the time and memory.
            body = _ChatCompletion.model_validate_json(content)
        except pydantic.ValidationError as error:
            raise self._errors.no_completion(content, _reason(error)) from None
        if body.error is not None:
            raise self._errors.lost(
                f"error while answering: {self._errors.quoted(str(body.error))}", "an error while answering"
            )
        reported = read_usage(body.model_dump(include={"usage", "service_tier", "smallfirst"}))
        if (tokens := reported.tokens) is not None:
            most = answer.max_prompt_tokens, answer.max_completion_tokens
            if tokens.prompt_tokens > most[0] or tokens.completion_tokens > most[1]:
                raise self._errors.invalid(f"usage of more than {most[0]:,} or {most[1]:,} tokens for this request")
        if (reported.usd or 0.0) > MAX_STATED_USD:
            raise self._errors.invalid(f"a cost of more than ${MAX_STATED_USD:,} for this request")
        answer.reported = answer.reported.then(reported)
        return body

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
                f"{self._errors.url} did not state what its answer cost, and `priced_by: billed` relies on that",
                hint="set `priced_by: tokens` and its price under prices.tokens",
                reason="no stated cost, so no price",
            )
        if tokens is None:
            raise BadAnswer(
                f"{self._errors.url} did not say how many tokens it used: its answer has no price",
                hint="ask for usage in the endpoint's own settings, or set `priced_by: machine`",
                reason="no usage, so no price",
            )
        try:
            return self._prices.charge(self.name, tokens, tier=tier, api_url=self.config.base_url)
        except PriceUnknown as error:  # of this tier, or from today on: the answer is there, and its cost is not known
            _log.warning("%s", error)
            return Charge(model=self.name, usd=None, basis="tokens", tokens=tokens, tier=tier, source=error.args[0])


# The fields used of OpenAI's responses and stream events; others are ignored.

_Count = Annotated[int, Field(ge=0, strict=True)]


class _ContentPart(pydantic.BaseModel):
    type: str
    text: Any = None


class _Message(pydantic.BaseModel):
    content: str | list[_ContentPart] | None = None
    refusal: str | None = None

    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(p.text for p in self.content if p.type == "text" and isinstance(p.text, str))
        return self.content or self.refusal or ""


class _TopLogprob(pydantic.BaseModel):
    token: str
    logprob: Annotated[float, Field(le=1e-3, allow_inf_nan=False)]  # rounding may lift a certain token above 0


class _TokenLogprob(_TopLogprob):
    bytes: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(max_length=1024)] | None = None
    top_logprobs: list[_TopLogprob] = Field([], max_length=128)

    def as_token(self) -> Token:
        octets = self.token.encode() if self.bytes is None else bytes(self.bytes)
        top = tuple((one.token, one.logprob) for one in self.top_logprobs)
        return Token(text=self.token, logprob=self.logprob, octets=tuple(octets), top=top)


class _Logprobs(pydantic.BaseModel):
    content: Annotated[list[_TokenLogprob], Field(max_length=MAX_TOKENS_IN_ANSWER)] | None = None


class _ResponseChoice(pydantic.BaseModel):
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None

    def tokens(self) -> tuple[Token, ...]:
        written = self.logprobs.content if self.logprobs else None
        return tuple(one.as_token() for one in written or ())


class _Usage(pydantic.BaseModel, extra="allow"):
    prompt_tokens: _Count
    completion_tokens: _Count


class _ChatCompletion(pydantic.BaseModel):
    choices: list[_ResponseChoice] = Field([], max_length=128)
    usage: _Usage | None = None
    service_tier: str | None = None
    smallfirst: dict[str, Any] | None = None
    error: Any = None


@dataclass
class PartialAnswer:
    """An answer as far as it has arrived, and how many tokens it may claim."""

    max_prompt_tokens: int
    max_completion_tokens: int
    started: float = field(default_factory=time.perf_counter)
    pieces: list[str] = field(default_factory=list)
    n_chunks: int = 0
    begun: bool = False
    """True once the endpoint has accepted the request."""
    finish_reason: str | None = None
    reported: Reported = field(default_factory=Reported)
    """What it says of its tokens and its cost."""
    tokens: list[Token] = field(default_factory=list)
    seconds: float = 0.0
    charge: Charge = field(init=False)
    """The line of its bill, once it is complete."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


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
        prices.charge(config.model, TokenUsage(), api_url=config.base_url)
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


def max_response_bytes(request: Request, *, stream: bool = False) -> int:
    """Return how large a response may be: 1 MiB and 256 bytes a token or alternative; 4 MiB and 1 KiB for a stream.

    Parsing takes up to some 25 times as much memory, so a hostile response to a usual request costs some 30 MB.
    """
    first, each = (4096, 1024) if stream else (1024, 0)
    n_alternatives = 1 if request.logprobs is None else 2 + request.logprobs
    return min(MAX_BODY_BYTES, first * 1024 + request.max_tokens * (each + 256 * n_alternatives))


def _reason(error: pydantic.ValidationError) -> str:
    """Return the first broken rule without quoting what was sent."""
    problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
    return f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg'].partition(' or instance')[0]}"
