"""Sense made of what an OpenAI-compatible endpoint replied: answers, streamed events, vectors, refusals.

Everything here comes from outside. It is checked before use, and shown in messages short and
without our key.
"""

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


class ResponseMessage(pydantic.BaseModel):
    """A message, or a piece of one."""

    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None

    def text(self) -> str:
        """The written text; of content in parts only the text parts count, not the thinking."""
        if isinstance(self.content, list):
            return "".join(str(p.get("text", "")) for p in self.content if p.get("type") == "text")
        return self.content or self.refusal or ""


class TopLogprob(pydantic.BaseModel):
    """A token that could have stood there."""

    token: str
    logprob: float


class TokenLogprob(TopLogprob):
    """A token with its log-probability."""

    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] = []

    def as_token(self) -> Token:
        """The same as a Model's Token; of an endpoint that sends no bytes, those of the text."""
        octets = self.token.encode() if self.bytes is None else bytes(self.bytes)
        top = tuple((one.token, one.logprob) for one in self.top_logprobs)
        return Token(text=self.token, logprob=self.logprob, octets=tuple(octets), top=top)


class ChoiceLogprobs(pydantic.BaseModel):
    """What was written, token by token."""

    content: list[TokenLogprob] | None = None


class Choice(pydantic.BaseModel):
    """One of the answers; we ask for one."""

    message: ResponseMessage | None = None
    delta: ResponseMessage | None = None
    finish_reason: str | None = None
    logprobs: ChoiceLogprobs | None = None

    def tokens(self) -> tuple[Token, ...]:
        """Tokens of this answer, or of this piece of it; empty if they were not asked for or not given."""
        written = self.logprobs.content if self.logprobs else None
        return tuple(one.as_token() for one in written or ())


class Usage(pydantic.BaseModel):
    """Tokens read and written, as the endpoint counts them."""

    prompt_tokens: int
    completion_tokens: int


class ChatCompletionBody(pydantic.BaseModel):
    """The parts we read of a response body or of one streamed event."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


class EmbeddingItem(pydantic.BaseModel):
    """One text's vector."""

    index: int
    embedding: list[float] = Field(min_length=1)


class EmbeddingUsage(pydantic.BaseModel):
    """Tokens read, where nothing is written."""

    prompt_tokens: int


class EmbeddingsBody(pydantic.BaseModel):
    """The parts we read of the response to a request for vectors."""

    data: list[EmbeddingItem]
    usage: EmbeddingUsage | None = None


@dataclass
class PartialAnswer:
    """An answer as far as it has arrived."""

    started: float = field(default_factory=time.perf_counter)
    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    tokens: list[Token] = field(default_factory=list)


@dataclass(frozen=True)
class ResponseParser:
    """Reads the replies of one endpoint."""

    base_url: str
    model: str
    api_key_env: str
    key: str = field(repr=False)

    @property
    def url(self) -> str:
        """Where questions are sent."""
        return f"{self.base_url}/chat/completions"

    def read(self, content: str, answer: PartialAnswer) -> None:
        """Fill `answer` from a whole response body. Raises BadAnswer or Unavailable."""
        body = self._body(content)
        if not body.choices or body.choices[0].message is None:
            raise self._nonsense(content)
        answer.text = body.choices[0].message.text()
        answer.finish_reason, answer.usage = body.choices[0].finish_reason, body.usage
        answer.tokens.extend(body.choices[0].tokens())

    def parse_event(self, line: str, answer: PartialAnswer) -> Chunk | None:
        """What is new in one line of a stream, None if nothing; `answer` takes in what the line holds."""
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
        answer.tokens.extend(tokens)
        return Chunk(text=piece, tokens=tokens) if piece or tokens else None

    def parse_embeddings(self, content: str, n: int) -> EmbeddingsBody:
        """Vectors of `n` texts, in their order. Raises BadAnswer."""
        try:
            body = EmbeddingsBody.model_validate_json(content)
        except pydantic.ValidationError:
            raise self._no_vectors(content) from None
        body.data.sort(key=lambda one: one.index)
        if [one.index for one in body.data] != list(range(n)):
            raise self._no_vectors(content)
        return body

    def refusal(self, status: int, content: str, tries: int) -> ModelError:
        """The error that a response outside 2xx means, after `tries` tries."""
        said = self._shown(content)
        if status in (401, 403):
            return Unauthorised(
                f"{self.url} refused the key (HTTP {status}): {said}",
                hint=f"put a key that may use {self.model} into the variable {self.api_key_env}",
            )
        if status == 429:
            return RateLimited(
                f"{self.url} asks to slow down (HTTP 429){after_attempts(tries)}: {said}",
                hint="wait a while, or lower max_concurrency",
            )
        if status == 408 or status >= 500:
            return self.down(f"HTTP {status}{after_attempts(tries)}: {said}")
        if 300 <= status < 400:
            said = "a redirect, which is not followed because the key would go along"
        return BadAnswer(
            f"{self.url} refused the request (HTTP {status}): {said}",
            hint=f'check base_url, and that the endpoint knows the model "{self.model}"',
        )

    def down(self, what: str) -> Unavailable:
        """The error for an endpoint that gives no answer."""
        return Unavailable(
            f"large model down: {self.url}: {what}",
            hint=f"see if it is up: curl {self.base_url}/models",
        )

    def _body(self, content: str) -> ChatCompletionBody:
        try:
            body = ChatCompletionBody.model_validate_json(content)
        except pydantic.ValidationError:
            raise self._nonsense(content) from None
        if body.error is not None:
            raise self.down(f"failed while answering: {self._shown(str(body.error))}")
        return body

    def _nonsense(self, content: str) -> BadAnswer:
        return BadAnswer(
            f"{self.url} gave something that is no chat completion: {self._shown(content)}",
            hint="check that base_url ends where the API begins, usually /v1",
        )

    def _no_vectors(self, content: str) -> BadAnswer:
        return BadAnswer(
            f"{self.base_url}/embeddings gave something that is not one vector a text: {self._shown(content)}",
            hint=f'check that "{self.model}" is a model for embeddings there',
        )

    def _shown(self, content: str) -> str:
        text = " ".join(content.split())
        if self.key:
            text = text.replace(self.key, "•••")
        return text[:SHOWN_CHARACTERS] or "(nothing)"


def retry_after_s(value: str) -> float | None:
    """Seconds that a Retry-After header asks for, number or date; None if absent or unreadable."""
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


def after_attempts(tries: int) -> str:
    """' after 4 tries', or nothing for one."""
    return f" after {tries} tries" if tries > 1 else ""
