"""POST /v1/embeddings and /v1/score: vectors of texts, and the probability of every label."""

from __future__ import annotations

import base64
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

from smallfirst.models.pricing.charge import Charge, itemized, total_usd
from smallfirst.models.protocol import Completion, Model, Request, embedding_model, label_probability_model
from smallfirst.serving.openai.errors import ApiError
from smallfirst.serving.openai.wire import Refused, parse_body, read_fields
from smallfirst.serving.request_lifecycle import ApiCall

MAX_TEXTS = 256
_IGNORED = frozenset({"user"})
_REFUSED: Refused = {"dimensions": ("the vectors of a model have a fixed length", ())}


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
            raise PydanticCustomError("input", "inputs must be texts; token ids of another model are not accepted")
        return texts


class EmbeddingBody(ScoreBody):
    """The body of a request for embeddings."""

    encoding_format: Literal["float", "base64"] = "float"


Computed = tuple[list[dict[str, Any]], int, tuple[Charge, ...]]
"""The entries of `data`, the tokens read, and the lines of the bill."""


async def embeddings(call: ApiCall, body: bytes) -> None:
    """Answer with one vector per text. Raise what `to_api_error` knows."""
    parsed = parse_body(EmbeddingBody, read_fields(body), _IGNORED, _REFUSED)
    as_text = parsed.encoding_format == "base64"

    async def embed(model: Model) -> Computed:
        able = embedding_model(model)
        if able is None:
            raise _unsupported(parsed.model, "embeddings")
        found = await able.embed(parsed.input)
        data = [
            {"object": "embedding", "index": index, "embedding": _base64(vector) if as_text else vector}
            for index, vector in enumerate(found.vectors)
        ]
        return data, found.n_tokens, itemized(model.name, found.cost_usd, found.charges)

    await _answer(call, parsed, embed)


async def score(call: ApiCall, body: bytes) -> None:
    """Answer with the probability of every label for each text. Raise what `to_api_error` knows."""
    parsed = parse_body(ScoreBody, read_fields(body), _IGNORED, _REFUSED)

    async def probabilities(model: Model) -> Computed:
        able = label_probability_model(model)
        if able is None:
            raise _unsupported(parsed.model, "label probabilities")
        found = await able.probabilities(parsed.input)
        data = [
            {
                "object": "label_scores",
                "index": index,
                "label": max(zip(one.probabilities, one.labels, strict=True), key=lambda pair: pair[0])[1],
                "scores": dict(zip(one.labels, one.probabilities, strict=True)),
            }
            for index, one in enumerate(found)
        ]
        charges = (charge for one in found for charge in itemized(model.name, one.cost_usd, one.charges))
        return data, sum(one.n_tokens for one in found), tuple(charges)

    await _answer(call, parsed, probabilities)


async def _answer(call: ApiCall, parsed: ScoreBody, compute: Callable[[Model], Awaitable[Computed]]) -> None:
    model = call.accept(parsed.model, [Request.ask(text) for text in parsed.input])
    async with call.admitted(model, writes=False) as reservation:
        async with call.turn():
            data, n_tokens, charges = await compute(model)
        call.first_token_s = call.elapsed_s
        # The ledger keeps it as an answer without text.
        answer = Completion(
            text="",
            answered_by=model.name,
            latency_ms=call.first_token_s * 1000,
            cost_usd=total_usd(charges),
            charges=charges,
            prompt_tokens=n_tokens,
        )
        call.answers.append(answer)
        reservation.add(answer)
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    whole = {"object": "list", "model": parsed.model, "data": data, "usage": usage}
    await call.send_json(200, whole, {"x-smallfirst-cost-usd": f"{answer.cost_usd:.9f}"}, answer=answer)


def _unsupported(name: str, what: str) -> ApiError:
    return ApiError(400, f'The model "{name}" has no {what}.', param="model", code="unsupported_by_model")


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
