"""MLflow's POST /invocations: a chat, a completion, texts to embed, or a table of which every row is a chat.

    {"messages": […]}                    answered as /v1/chat/completions does
    {"prompt": …}                        answered as /v1/completions does
    {"input": …}                         answered as /v1/embeddings does
    {"dataframe_split": {columns, data}}, {"dataframe_records": […]}, {"inputs": …}, {"instances": …}
                                         rows, each asked as a chat of one message, answered {"predictions": […]}

Rows may come with `params`, which are those of a chat. A table is answered when its last row is; each row is recorded
with an id of its own, so that audits and feedback work as for any other answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from smallfirst.errors import did_you_mean
from smallfirst.models.protocol import Request
from smallfirst.models.usage import collect_unfinished
from smallfirst.serving.openai.errors import ApiError
from smallfirst.serving.openai.requests import ParsedRequest, parse_chat, read_fields
from smallfirst.serving.openai.responses import ResponseBuilder
from smallfirst.serving.request_lifecycle import ApiCall, Handler
from smallfirst.serving.routes.completions import chat, check_requested_schema, complete_choices, completion
from smallfirst.serving.routes.embeddings import embeddings

PATHS = (
    "/invocations",
    "/endpoints/{name}/invocations",
    "/serving-endpoints/{name}/invocations",
    "/serving-endpoints/{name}/served-models/{entity}/invocations",
)
DEFAULT_MODEL = "auto"
"""The model that is asked where none is named, if it is served; else the first one served."""
_HANDLERS: dict[str, Handler] = {"chat": chat, "completion": completion, "embeddings": embeddings}

Shape = Literal["chat", "completion", "embeddings", "predictions"]

MAX_ROWS = 256
TEXT_COLUMNS = ("text", "prompt", "question", "query", "input", "content")
"""Columns that are read as text, in order of preference."""
_WHOLE: dict[str, Shape] = {"messages": "chat", "prompt": "completion", "input": "embeddings"}
_TABLES = ("dataframe_split", "dataframe_records", "inputs", "instances")
_KINDS = (*_WHOLE, *_TABLES)
_NOT_IN_PARAMS = ("model", "messages", "stream", "n")


class Invocation(NamedTuple):
    """A parsed body."""

    shape: Shape
    bodies: tuple[dict[str, Any], ...]
    """Without `model`: one body of the route that `shape` names; for `predictions` a chat body a row."""


def parse(body: Mapping[str, Any]) -> Invocation:
    """Parse an MLflow body; the bodies in it are not checked yet. Raise ApiError 400."""
    found = [kind for kind in _KINDS if body.get(kind) is not None]
    if len(found) != 1:
        unknown = next((name[:64] for name in body if name not in _KINDS), "")
        near = did_you_mean(unknown, _KINDS) if not found else ""
        problem = f"{', '.join(found)} were sent together" if found else f"none was sent{near}"
        raise ApiError(400, f"Exactly one of {', '.join(_KINDS)} is needed; {problem}.", param=(*found, unknown)[0])
    kind = found[0]
    if kind in _WHOLE:
        return Invocation(_WHOLE[kind], (dict(body),))
    unknown_field = next((name[:64] for name in body if name not in (kind, "params", "client_request_id")), None)
    if unknown_field is not None:
        near = did_you_mean(unknown_field, ("params",)) or ": settings of a chat go into `params`"
        raise ApiError(400, f'Unknown field beside {kind}: "{unknown_field}"{near}.', param=unknown_field)
    params, rows = _params(body.get("params")), _rows(kind, body[kind])
    if not 1 <= len(rows) <= MAX_ROWS:
        raise ApiError(400, f"{len(rows)} rows; 1 to {MAX_ROWS} are allowed.", param=kind)
    chats = [{"messages": _messages(row, f"{kind}[{place}]"), **params} for place, row in enumerate(rows)]
    return Invocation("predictions", tuple(chats))


async def invoke(call: ApiCall, body: bytes) -> None:
    """Answer a body in one of MLflow's formats; a name in the path counts more than one in the body."""
    values = read_fields(body)
    named = call.scope["path_params"]
    in_path = "/".join(named[part] for part in ("name", "entity") if part in named)
    name = in_path or values.pop("model", None) or await asyncio.to_thread(_default_model, call)
    values.pop("model", None)
    invocation = parse(values)
    if invocation.shape == "predictions":
        await _predict(call, invocation, name)
    else:
        await _HANDLERS[invocation.shape](call, _body(invocation.bodies[0], name))


async def _predict(call: ApiCall, invocation: Invocation, name: object) -> None:
    def parse_row(row: Mapping[str, Any]) -> ParsedRequest:
        return parse_chat(_body(row, name), max_messages=call.app.settings.max_messages)

    # All rows have the settings of the first one, which may be large: they are parsed and checked once.
    shared, *others = invocation.bodies
    first = parse_row(shared)
    chats = [
        first.requests[0].messages,
        *(parse_row({"messages": row["messages"]}).requests[0].messages for row in others),
    ]
    requests = [first.requests[0].model_copy(update={"messages": messages}) for messages in chats]
    model = call.accept(first.model, first.requests)
    await check_requested_schema(first)
    ids = [f"{call.response.id}-{i}" for i in range(len(requests))]

    async def predict(id: str, request: Request) -> dict[str, Any]:
        response = ResponseBuilder(id, call.response.created, first.model)
        row = dataclasses.replace(call, response=response, requests=(), unfinished=collect_unfinished(), answers=[])
        row.accept(first.model, (request,))
        try:
            async with row.admitted(model) as reservation:
                (found,) = await complete_choices(row, model, first._replace(requests=row.requests))
                reservation.add(found)
            await row.record(found)
        except BaseException:
            if not row.recorded:
                call.unfinished.extend([*row.answers, *row.unfinished])
            raise
        return response.whole([found])

    try:
        with call.places(len(ids)):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(predict(*row)) for row in zip(ids, requests, strict=True)]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    call.recorded = True
    found = [task.result() for task in tasks]
    answers = {
        "predictions": [one["choices"][0]["message"]["content"] for one in found],
        "smallfirst": [one["smallfirst"] for one in found],
        "ids": ids,
    }
    await call.send_json(200, answers, {})


def _body(values: Mapping[str, Any], name: object) -> bytes:
    return json.dumps({**values, "model": name}).encode()


def _default_model(call: ApiCall) -> str:
    served = list(call.app.models)
    if not served:
        raise ApiError(404, "No model is served here.", param="model", code="model_not_found")
    return DEFAULT_MODEL if DEFAULT_MODEL in served else served[0]


def _params(given: object) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ApiError(400, "`params` must be an object of chat settings, such as max_tokens.", param="params")
    for name in _NOT_IN_PARAMS:
        if name in given:
            raise ApiError(400, f"`params` cannot contain `{name}`.", param=f"params.{name}")
    return given


def _rows(kind: str, table: object) -> list[Any]:
    if kind == "dataframe_split":
        return _split(table)
    if isinstance(table, str) and kind == "inputs":
        return [table]
    if isinstance(table, dict) and kind == "inputs":
        return _columns(table)
    if not isinstance(table, list):
        raise ApiError(400, f"`{kind}` must be a list of rows.", param=kind)
    # A matrix of one column is a list of texts.
    return [row[0] if isinstance(row, list) and len(row) == 1 else row for row in table]


def _split(table: object) -> list[Any]:
    columns, data = (table.get("columns"), table.get("data")) if isinstance(table, dict) else (None, None)
    if not isinstance(columns, list) or not isinstance(data, list) or not all(isinstance(c, str) for c in columns):
        what = '`dataframe_split` must be {"columns": [names], "data": [[values of a row], …]}.'
        raise ApiError(400, what, param="dataframe_split")
    for place, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(columns):
            what = f"A row must have {len(columns)} values, one for each column."
            raise ApiError(400, what, param=f"dataframe_split.data[{place}]")
    return [dict(zip(columns, row, strict=True)) for row in data]


def _columns(table: dict[str, Any]) -> list[Any]:
    """Return the rows of a mapping from column to values; a mapping to single values is one row."""
    if "messages" in table or not any(isinstance(values, list) for values in table.values()):
        return [table]
    if len({len(values) if isinstance(values, list) else -1 for values in table.values()}) != 1:
        raise ApiError(400, "All columns of `inputs` must be lists of equal length.", param="inputs")
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def _messages(row: object, place: str) -> list[Any]:
    if isinstance(row, dict):
        if isinstance(row.get("messages"), list):
            return list(row["messages"])
        name = next(iter(row)) if len(row) == 1 else next((c for c in TEXT_COLUMNS if c in row), None)
        if name is None:
            shown = ", ".join(column[:64] for column in list(row)[:10]) or "no column"
            what = f"No text column: found {shown}; one of {', '.join(TEXT_COLUMNS)} is read."
            raise ApiError(400, what, param=place)
        row, place = row[name], f"{place}.{name[:64]}"
    if not isinstance(row, str):
        raise ApiError(400, "A row must be a text, or an object with one.", param=place)
    return [{"role": "user", "content": row}]
