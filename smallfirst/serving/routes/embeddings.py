"""What a small model makes of texts without writing: vectors (/v1/embeddings), label probabilities (/v1/score).

The same frame as for answers: a place, a deadline, a row in the ledger with tokens and cost.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

from smallfirst.data.dataset import Message
from smallfirst.models.protocol import Completion, Model, Request, embedding_model, label_probability_model
from smallfirst.serving.admission import estimate_tokens
from smallfirst.serving.auth.middleware import caller_digest, current_caller
from smallfirst.serving.exchange import Exchange
from smallfirst.serving.openai.errors import ApiError, validation_error
from smallfirst.serving.openai.parameters import EMBEDDING_IGNORED, EMBEDDING_REFUSED, check_parameters
from smallfirst.serving.openai.requests import ParsedRequest, read_fields
from smallfirst.serving.request_lifecycle import AppContext

MAX_TEXTS = 256
"""Texts of one request at most."""


class ScoreBody(pydantic.BaseModel):
    """The body of a request for label probabilities."""

    model_config = pydantic.ConfigDict(extra="ignore", strict=True)
    model: str = Field(min_length=1, max_length=256)
    input: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1, max_length=MAX_TEXTS)

    @pydantic.field_validator("input", mode="before")
    @classmethod
    def _as_texts(cls, value: object) -> object:
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and any(isinstance(text, int | list) for text in texts):
            raise PydanticCustomError("input", "texts are read; token ids of another model mean nothing here")
        return texts


class EmbeddingBody(ScoreBody):
    """The body of a request for embeddings."""

    encoding_format: Literal["float", "base64"] = "float"


class EmbeddingHandler:
    """The work behind POST /v1/embeddings, or /v1/score."""

    form: Literal["chat", "text"] = "chat"

    def __init__(self, house: AppContext, route: Literal["embeddings", "score"]) -> None:
        """Gives vectors, or the probabilities of all labels."""
        self._house, self.route = house, route

    async def answer(self, exchange: Exchange, body: bytes) -> None:
        """Nothing; the answer is sent and recorded. Raises what `as_refusal` reads."""
        parsed = _parse(EmbeddingBody if self.route == "embeddings" else ScoreBody, body)
        texts = [Message(role="user", content=text) for text in parsed.input]
        asked = ParsedRequest(parsed.model, tuple(Request(messages=(text,), tenant=caller_digest()) for text in texts))
        exchange.taken(asked)
        model = self._house.model(asked.model)
        admission, tokens = self._house.admission, sum(map(estimate_tokens, asked.requests))
        with current_caller().tokens(tokens) as bill, admission.load(tokens):
            async with admission.turn:
                data, taken = await (self._embed if self.route == "embeddings" else self._score)(parsed, model)
            bill.add(taken)
        exchange.first_token_s = exchange.elapsed_s
        completion = taken.model_copy(update={"latency_ms": exchange.elapsed_s * 1000})
        await self._house.record(exchange, completion)
        read = {"prompt_tokens": taken.prompt_tokens, "total_tokens": taken.prompt_tokens}
        whole = {"object": "list", "model": asked.model, "data": data, "usage": read}
        await exchange.json(200, whole, {"x-smallfirst-cost-usd": f"{taken.cost_usd:.9f}"})

    async def _embed(self, asked: ScoreBody, model: Model) -> tuple[list[dict[str, Any]], Completion]:
        able = next(filter(None, map(embedding_model, _behind(model))), None)
        if able is None:
            raise _cannot(asked.model, "not give embeddings")
        found = await able.embed(asked.input)
        as_text = isinstance(asked, EmbeddingBody) and asked.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _base64(vector) if as_text else vector}
            for index, vector in enumerate(found.vectors)
        ]
        return data, _taken(model, found.n_tokens, found.cost_usd)

    async def _score(self, asked: ScoreBody, model: Model) -> tuple[list[dict[str, Any]], Completion]:
        able = next(filter(None, map(label_probability_model, _behind(model))), None)
        if able is None:
            raise _cannot(asked.model, "not give label probabilities")
        found = await able.probabilities(asked.input)
        data = [
            {
                "object": "label_scores",
                "index": index,
                "label": max(zip(one.probabilities, one.labels, strict=True), key=lambda pair: pair[0])[1],
                "scores": dict(zip(one.labels, one.probabilities, strict=True)),
            }
            for index, one in enumerate(found)
        ]
        return data, _taken(model, sum(one.n_tokens for one in found), sum(one.cost_usd for one in found))


def _parse(kind: type[ScoreBody], body: bytes) -> ScoreBody:
    values = read_fields(body)
    check_parameters(values, kind.model_fields, EMBEDDING_IGNORED, EMBEDDING_REFUSED)
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        raise validation_error(error) from None


def _behind(model: Model) -> Iterator[Model]:
    """The model itself, or what a Router drafts with, the last stage first."""
    router = getattr(model, "router", model)
    for stage in reversed(getattr(router, "drafts", ())):
        yield stage.model
    yield model


def _taken(model: Model, tokens: int, cost_usd: float) -> Completion:
    """What reading took, as the ledger writes it down: an answer without words."""
    return Completion(text="", answered_by=model.name, latency_ms=0, cost_usd=cost_usd, prompt_tokens=tokens)


def _cannot(name: str, what: str) -> ApiError:
    return ApiError(400, f'The model "{name}" can {what}.', param="model", code="model_cannot")


def _base64(vector: Sequence[float]) -> str:
    """Little-endian 32-bit floats, as OpenAI packs them."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
