"""The server's routes, without those of plugins, as an OpenAPI 3.1 document, at /openapi.json.

Request bodies are described by the classes that parse them, so the document cannot promise what is then refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import pydantic

from smallfirst.serving.openai.requests import (
    CHAT_IGNORED,
    COMPLETION_IGNORED,
    EMBEDDING_IGNORED,
    ChatBody,
    CompletionBody,
)
from smallfirst.serving.routes.embeddings import EmbeddingBody, ScoreBody

Json = dict[str, Any]


def _object(required: Json, optional: Json | None = None) -> Json:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def _list(item: Json) -> Json:
    return {"type": "array", "items": item}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


_TEXT: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_NUMBER: Json = {"type": "number"}
_CHANCE: Json = {"type": "number", "minimum": 0, "maximum": 1}
_FINISH_REASON: Json = {"enum": ["stop", "length"]}
_READ = _object({"prompt_tokens": _COUNT, "total_tokens": _COUNT})
_USAGE = _object({"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT})
_ERROR = _object(
    {"error": _object({"message": _TEXT, "type": _TEXT, "param": _or_null(_TEXT), "code": _or_null(_TEXT)})}
)
_TOKEN = {"token": _TEXT, "logprob": _NUMBER, "bytes": _list(_COUNT)}
_LOGPROBS = _or_null(
    _object(
        {"content": _list(_object({**_TOKEN, "top_logprobs": _list(_object(_TOKEN))})), "refusal": {"type": "null"}}
    )
)
_EXPLANATION = _object(
    {
        "route": _TEXT,
        "why": _or_null(_TEXT),
        "certified": {"type": "boolean"},
        "certified_fields": _or_null(_list(_TEXT)),
        "confidence": _or_null(_CHANCE),
        "cost_usd": {"type": "number", "minimum": 0},
        "charges": _list({"type": "object"}),
        "latency_ms": {"type": "number", "minimum": 0},
        "answered_by": _TEXT,
        "alternatives": _list(_object({"label": _TEXT, "probability": _CHANCE})),
    }
)
_MESSAGE = _object({"role": {"const": "assistant"}, "content": _or_null(_TEXT), "refusal": _or_null(_TEXT)})
_MODEL = _object(
    {"id": _TEXT, "object": {"const": "model"}, "created": _COUNT, "owned_by": _TEXT}, {"description": _TEXT}
)


def _answer(kind: str, said: Json, logprobs: Json) -> Json:
    choice = _object({"index": _COUNT, **said, "logprobs": logprobs, "finish_reason": _FINISH_REASON})
    whole = {"id": _TEXT, "object": {"const": kind}, "created": _COUNT, "model": _TEXT, "choices": _list(choice)}
    return _object({**whole, "usage": _USAGE, "smallfirst": _EXPLANATION})


_CHAT = _answer("chat.completion", {"message": _MESSAGE}, _LOGPROBS)
_COMPLETION = _answer("text_completion", {"text": _TEXT}, _or_null({"type": "object"}))
_VECTOR = {"anyOf": [_list(_NUMBER), _TEXT]}
_EMBEDDINGS = _object(
    {
        "object": {"const": "list"},
        "model": _TEXT,
        "data": _list(_object({"object": {"const": "embedding"}, "index": _COUNT, "embedding": _VECTOR})),
        "usage": _READ,
    }
)
_LABELS = {"type": "object", "additionalProperties": _CHANCE}
_SCORES = _object(
    {
        "object": {"const": "list"},
        "model": _TEXT,
        "data": _list(
            _object({"object": {"const": "label_scores"}, "index": _COUNT, "label": _TEXT, "scores": _LABELS})
        ),
        "usage": _READ,
    }
)
_ONE_OR_MANY = ("prompt", "input", "stop")
"""Lists for which a single text may be sent."""
_SINGLE = {"type": "string", "minLength": 1, "maxLength": 256}
_REF_TEMPLATE = "#/components/schemas/{model}"
_PROMPT_TEXT = {"type": "string", "minLength": 1, "maxLength": 2000}
_TURN = {**_object({"role": {"const": "user"}, "content": _PROMPT_TEXT}), "additionalProperties": False}
_ROW_COUNT = {"minItems": 1, "maxItems": 8}
_SERVED = {"model": {"$ref": _REF_TEMPLATE.format(model="Served")}}
_INVOCATION: Json = {
    "anyOf": [
        {**_object({"messages": {**_list(_TURN), **_ROW_COUNT}}, _SERVED), "additionalProperties": False},
        {**_object({"inputs": {**_list(_PROMPT_TEXT), **_ROW_COUNT}}, _SERVED), "additionalProperties": False},
        {
            **_object({"dataframe_records": {**_list(_object({"text": _PROMPT_TEXT})), **_ROW_COUNT}}, _SERVED),
            "additionalProperties": False,
        },
    ]
}
_KEY_ERRORS = (401, 403, 404, 429)
"""Statuses that a key can meet on any route."""
_MODEL_ERRORS = (400, 408, 413, 415, 500, 502, 503, 504)
"""Further statuses of requests for an answer."""


def openapi_document(version: str, names: Sequence[str]) -> Json:
    """Return the document of this release for a caller who may use the models of these names."""
    alive, ready = _object({"status": {"const": "ok"}, "version": _TEXT}), {"enum": ["ready", "not ready"]}
    place = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "smallfirst", "version": version, "license": {"name": "Apache-2.0"}},
        "security": [{"key": []}],
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {**_parts(), "Served": {"enum": list(names)}},
        },
        "paths": {
            "/v1/chat/completions": _post("Answer a chat", _body(ChatBody, CHAT_IGNORED), _CHAT, streams=True),
            "/v1/completions": _post(
                "Answer prompts", _body(CompletionBody, COMPLETION_IGNORED), _COMPLETION, streams=True
            ),
            "/v1/embeddings": _post("Vectors of texts", _body(EmbeddingBody, EMBEDDING_IGNORED), _EMBEDDINGS),
            "/v1/score": _post("Probabilities of labels", _body(ScoreBody, EMBEDDING_IGNORED), _SCORES),
            "/invocations": _post("MLflow's formats", _INVOCATION, {"type": "object"}),
            "/v1/models": _get("What is served", _object({"object": {"const": "list"}, "data": _list(_MODEL)})),
            "/v1/models/{model}": _get("One served model", _MODEL, parameters=[place]),
            "/health": _get("Whether the server is alive", alive, errors=(403,), security=[]),
            "/ready": _get("Whether it would answer now", _object({"status": ready}), 503, errors=(403,), security=[]),
        },
    }


def _body(kind: type[pydantic.BaseModel], ignored: Iterable[str]) -> Json:
    schema = kind.model_json_schema(ref_template=_REF_TEMPLATE)
    found: Json = {name: value for name, value in schema.items() if name != "$defs"}
    properties = {**schema["properties"], "model": {"$ref": _REF_TEMPLATE.format(model="Served")}}
    single = {name: {"anyOf": [_SINGLE, properties[name]]} for name in _ONE_OR_MANY if name in properties}
    found["properties"] = {**properties, **single, **{name: {} for name in sorted(ignored)}}
    found["additionalProperties"] = False
    return found


@cache
def _parts() -> Json:
    found: Json = {}
    for kind in (ChatBody, CompletionBody, EmbeddingBody, ScoreBody):
        found |= kind.model_json_schema(ref_template=_REF_TEMPLATE).get("$defs", {})
    return found


def _post(what: str, body: Json, answer: Json, *, streams: bool = False) -> Json:
    found = _operation(what, answer, 200, errors=sorted({*_KEY_ERRORS, *_MODEL_ERRORS}))
    if streams:  # events, each of them JSON: no schema of the whole says that
        found["responses"]["200"]["content"]["text/event-stream"] = {}
    return {"post": {**found, "requestBody": {"required": True, "content": _json(body)}}}


def _get(what: str, answer: Json, *other: int, errors: Iterable[int] = _KEY_ERRORS, **more: Any) -> Json:
    return {"get": {**_operation(what, answer, 200, *other, errors=errors), **more}}


def _operation(what: str, answer: Json, *statuses: int, errors: Iterable[int]) -> Json:
    found = {str(status): {"description": "The answer", "content": _json(answer)} for status in statuses}
    failures = {
        str(status): {"description": "An error in OpenAI's format", "content": _json(_ERROR)} for status in errors
    }
    return {"summary": what, "responses": {**found, **failures}}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}
