"""Parse the responses of an OpenAI-compatible endpoint, which is not trusted.

Anything that is not JSON with the fields used of the right types, finite numbers and plausible usage, is a BadAnswer
with a reason. Error messages quote responses shortened and without the API key.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any

import pydantic
from pydantic import Field

from smallfirst.base.errors import AnswerLost, BadAnswer, ModelError, RateLimited, Unauthorised, Unavailable
from smallfirst.data.redaction import redact
from smallfirst.models.pricing import Charge, Reported, read_usage
from smallfirst.models.protocol import Chunk, Request, Token
from smallfirst.models.remote.http import MAX_BODY_BYTES

SHOWN_CHARACTERS = 300
MAX_REFUSAL_BYTES = 64 * 1024
"""So much of an error's body is read."""
MAX_HIDDEN_TOKENS = 128 * 1024
"""Tokens that a provider may add to a prompt, or spend on reasoning beyond the length asked for."""
MAX_STATED_USD = 1000
"""Most that an endpoint may say one answer costs."""
MAX_TOKENS_IN_ANSWER = 256 * 1024
"""Most tokens with log-probabilities in one body."""


# The fields used of OpenAI's responses and stream events; others are ignored.

_Count = Annotated[int, Field(ge=0, strict=True)]


class _Part(pydantic.BaseModel):
    type: str
    text: Any = None


class _Message(pydantic.BaseModel):
    content: str | list[_Part] | None = None
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


class _Choice(pydantic.BaseModel):
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
    choices: list[_Choice] = Field([], max_length=128)
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


@dataclass(frozen=True)
class ResponseParser:
    """Parses the responses of one endpoint."""

    base_url: str
    model: str
    api_key_env: str
    key: str = field(repr=False)

    @property
    def url(self) -> str:
        return f"{self.base_url}/chat/completions"

    def parse_body(self, content: bytes, answer: PartialAnswer) -> None:
        """Fill `answer` from a whole response body. Raise BadAnswer or AnswerLost."""
        body = self._body(content, answer)
        if not body.choices or body.choices[0].message is None:
            raise self._not_a_completion(content, "no message")
        answer.pieces.append(body.choices[0].message.text())
        answer.finish_reason = body.choices[0].finish_reason
        answer.tokens.extend(body.choices[0].tokens())

    def parse_event(self, data: str, answer: PartialAnswer) -> Chunk | None:
        if data == "[DONE]":
            return None
        body = self._body(data, answer)
        if not body.choices:
            return None
        choice = body.choices[0]
        answer.finish_reason = choice.finish_reason or answer.finish_reason
        piece, tokens = choice.delta.text() if choice.delta else "", choice.tokens()
        answer.pieces.append(piece)
        answer.n_chunks += bool(piece)
        answer.tokens.extend(tokens)
        return Chunk(text=piece, tokens=tokens) if piece or tokens else None

    def refusal(self, status: int, start: bytes, attempts: int, *, retry_after: str = "") -> ModelError:
        """Return the error for a status; `start` is the beginning of its body."""
        quote = self._quoted(start.decode(errors="replace"))
        if status in (401, 403):
            return Unauthorised(
                f"{self.url} refused the key (HTTP {status}): {quote}",
                hint=f"put a key that may use {self.model} into the variable {self.api_key_env}",
            )
        if status == 429:
            return RateLimited(
                f"{self.url} asks to slow down (HTTP 429){after_attempts(attempts)}: {quote}",
                hint="wait a while, or lower max_concurrency",
            )
        if did_nothing(status, retry_after):
            return self.unavailable(f"HTTP {status}{after_attempts(attempts)}: {quote}")
        if status == 408 or status >= 500:
            return self.lost(f"HTTP {status}{after_attempts(attempts)}: {quote}", f"status {status}")
        if 300 <= status < 400:
            quote = "a redirect, which is not followed because the key would go along"
        return BadAnswer(
            f"{self.url} refused the request (HTTP {status}): {quote}",
            hint=f'check base_url, and that the endpoint knows the model "{self.model}"',
            reason=f"status {status}",
        )

    def unavailable(self, what: str) -> Unavailable:
        return Unavailable(
            f"{self.url} is unavailable: {what}",
            hint=f"see if it is up: curl {self.base_url}/models",
        )

    def lost(self, what: str, reason: str) -> AnswerLost:
        return AnswerLost(
            f"{self.url} took the request and gave no answer: {what}",
            hint="it may be paid, so it is not sent again; see the endpoint's own records",
            reason=reason,
        )

    def invalid(self, reason: str) -> BadAnswer:
        return BadAnswer(f"{self.url} answered with something invalid: {reason}", reason=reason)

    def _body(self, content: bytes | str, answer: PartialAnswer) -> _ChatCompletion:
        """Return the content, its usage noted in `answer`."""
        try:
            # From the bytes: objects of Python for fields of no use would take most of the time and memory.
            body = _ChatCompletion.model_validate_json(content)
        except pydantic.ValidationError as error:
            raise self._not_a_completion(content, _reason(error)) from None
        if body.error is not None:
            raise self.lost(f"error while answering: {self._quoted(str(body.error))}", "an error while answering")
        reported = read_usage(body.model_dump(include={"usage", "service_tier", "smallfirst"}))
        if (tokens := reported.tokens) is not None:
            most = answer.max_prompt_tokens, answer.max_completion_tokens
            if tokens.prompt_tokens > most[0] or tokens.completion_tokens > most[1]:
                raise self.invalid(f"usage of more than {most[0]:,} or {most[1]:,} tokens for this request")
        if (reported.usd or 0.0) > MAX_STATED_USD:
            raise self.invalid(f"a cost of more than ${MAX_STATED_USD:,} for this request")
        answer.reported = answer.reported.then(reported)
        return body

    def _not_a_completion(self, content: bytes | str, reason: str) -> BadAnswer:
        return BadAnswer(
            f"{self.url} answered with something that is not a chat completion ({reason}): {self._quoted(content)}",
            hint="check that base_url ends where the API begins, usually /v1",
            reason=reason,
        )

    def _quoted(self, content: bytes | str) -> str:
        start = content[: 100 * SHOWN_CHARACTERS]
        text = " ".join((start if isinstance(start, str) else start.decode(errors="replace")).split())
        if self.key:
            text = text.replace(self.key, "•••")
        return redact(text).text[:SHOWN_CHARACTERS] or "(nothing)"


def max_response_bytes(request: Request, *, stream: bool = False) -> int:
    """Return how large a response may be: 1 MiB and 256 bytes a token or alternative; 4 MiB and 1 KiB for a stream.

    Parsing takes up to some 25 times as much memory, so a hostile response to a usual request costs some 30 MB.
    """
    first, each = (4096, 1024) if stream else (1024, 0)
    n_alternatives = 1 if request.logprobs is None else 2 + request.logprobs
    return min(MAX_BODY_BYTES, first * 1024 + request.max_tokens * (each + 256 * n_alternatives))


def did_nothing(status: int, retry_after: str) -> bool:
    """Return whether a status says that the request was not worked on, so that it may be sent again.

    429 and 425 always; 503 only with Retry-After, since gateways send it also for work that has begun.
    """
    return status in (425, 429) or (status == 503 and retry_after_s(retry_after) is not None)


def _reason(error: pydantic.ValidationError) -> str:
    """Return the first broken rule without quoting what was sent."""
    problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
    return f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg'].partition(' or instance')[0]}"


def retry_after_s(value: str) -> float | None:
    """Return the seconds of a Retry-After header, number or date; None if it is missing or malformed."""
    try:
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def after_attempts(attempts: int) -> str:
    """Return ' after 4 tries' for 4, and an empty string for 1."""
    return f" after {attempts} tries" if attempts > 1 else ""
