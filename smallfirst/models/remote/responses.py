"""Parse the responses of an OpenAI-compatible endpoint; error messages quote them shortened and without the API key."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import pydantic
from pydantic import Field

from smallfirst.errors import BadAnswer, ModelError, RateLimited, Unauthorised, Unavailable
from smallfirst.models.protocol import Chunk, Token

SHOWN_CHARACTERS = 300


# The fields used of OpenAI's responses and stream events; others are ignored.


class _Message(pydantic.BaseModel):
    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None

    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(str(p.get("text", "")) for p in self.content if p.get("type") == "text")
        return self.content or self.refusal or ""


class _TopLogprob(pydantic.BaseModel):
    token: str
    logprob: float


class _TokenLogprob(_TopLogprob):
    bytes: list[int] | None = None
    top_logprobs: list[_TopLogprob] = []

    def as_token(self) -> Token:
        octets = self.token.encode() if self.bytes is None else bytes(self.bytes)
        top = tuple((one.token, one.logprob) for one in self.top_logprobs)
        return Token(text=self.token, logprob=self.logprob, octets=tuple(octets), top=top)


class _Logprobs(pydantic.BaseModel):
    content: list[_TokenLogprob] | None = None


class _Choice(pydantic.BaseModel):
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None

    def tokens(self) -> tuple[Token, ...]:
        written = self.logprobs.content if self.logprobs else None
        return tuple(one.as_token() for one in written or ())


class Usage(pydantic.BaseModel):
    """Tokens read and written, as the endpoint counts them."""

    prompt_tokens: int
    completion_tokens: int


class _ChatCompletion(pydantic.BaseModel):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


class _Embedding(pydantic.BaseModel):
    index: int
    embedding: list[float] = Field(min_length=1)


class _EmbeddingUsage(pydantic.BaseModel):
    prompt_tokens: int


class EmbeddingsBody(pydantic.BaseModel):
    """The fields used of an embeddings response."""

    data: list[_Embedding]
    usage: _EmbeddingUsage | None = None


@dataclass
class PartialAnswer:
    """An answer as far as it has arrived."""

    started: float = field(default_factory=time.perf_counter)
    text: str = ""
    n_chunks: int = 0
    begun: bool = False
    """True once the endpoint has accepted the request."""
    finish_reason: str | None = None
    usage: Usage | None = None
    tokens: list[Token] = field(default_factory=list)


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

    def parse_body(self, content: str, answer: PartialAnswer) -> None:
        """Fill `answer` from a whole response body. Raise BadAnswer or Unavailable."""
        body = self._body(content)
        if not body.choices or body.choices[0].message is None:
            raise self._not_a_completion(content)
        answer.text = body.choices[0].message.text()
        answer.finish_reason, answer.usage = body.choices[0].finish_reason, body.usage
        answer.tokens.extend(body.choices[0].tokens())

    def parse_event(self, line: str, answer: PartialAnswer) -> Chunk | None:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            return None
        body = self._body(data)
        answer.usage = body.usage or answer.usage
        if not body.choices:
            return None
        choice = body.choices[0]
        answer.finish_reason = choice.finish_reason or answer.finish_reason
        piece, tokens = choice.delta.text() if choice.delta else "", choice.tokens()
        answer.text += piece
        answer.n_chunks += bool(piece)
        answer.tokens.extend(tokens)
        return Chunk(text=piece, tokens=tokens) if piece or tokens else None

    def parse_embeddings(self, content: str, n: int) -> EmbeddingsBody:
        """Return the embeddings of `n` texts in the order of the texts. Raise BadAnswer."""
        try:
            body = EmbeddingsBody.model_validate_json(content)
        except pydantic.ValidationError:
            raise self._not_embeddings(content) from None
        body.data.sort(key=lambda item: item.index)
        if [item.index for item in body.data] != list(range(n)):
            raise self._not_embeddings(content)
        return body

    def refusal(self, status: int, content: str, attempts: int) -> ModelError:
        quote = self._quoted(content)
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
        if status == 408 or status >= 500:
            return self.unavailable(f"HTTP {status}{after_attempts(attempts)}: {quote}")
        if 300 <= status < 400:
            quote = "a redirect, which is not followed because the key would go along"
        return BadAnswer(
            f"{self.url} refused the request (HTTP {status}): {quote}",
            hint=f'check base_url, and that the endpoint knows the model "{self.model}"',
        )

    def unavailable(self, what: str) -> Unavailable:
        return Unavailable(
            f"{self.url} is unavailable: {what}",
            hint=f"see if it is up: curl {self.base_url}/models",
        )

    def _body(self, content: str) -> _ChatCompletion:
        try:
            body = _ChatCompletion.model_validate_json(content)
        except pydantic.ValidationError:
            raise self._not_a_completion(content) from None
        if body.error is not None:
            raise self.unavailable(f"error while answering: {self._quoted(str(body.error))}")
        return body

    def _not_a_completion(self, content: str) -> BadAnswer:
        return BadAnswer(
            f"{self.url} answered with something that is not a chat completion: {self._quoted(content)}",
            hint="check that base_url ends where the API begins, usually /v1",
        )

    def _not_embeddings(self, content: str) -> BadAnswer:
        return BadAnswer(
            f"{self.base_url}/embeddings did not answer with one vector for each text: {self._quoted(content)}",
            hint=f'check that "{self.model}" is an embedding model there',
        )

    def _quoted(self, content: str) -> str:
        text = " ".join(content.split())
        if self.key:
            text = text.replace(self.key, "•••")
        return text[:SHOWN_CHARACTERS] or "(nothing)"


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
