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
from typing import Any

from smallfirst.base.errors import did_you_mean
from smallfirst.models.protocol import Request
from smallfirst.models.usage import collect_unfinished
from smallfirst.serving.completions import chat, check_requested_schema, complete, completion
from smallfirst.serving.embeddings import embeddings
from smallfirst.serving.openai.errors import ApiError
from smallfirst.serving.openai.wire import parse_chat, read_fields
from smallfirst.serving.request_lifecycle import ApiCall, Handler

PATHS = (
    "/invocations",
    "/endpoints/{name}/invocations",
    "/serving-endpoints/{name}/invocations",
    "/serving-endpoints/{name}/served-models/{entity}/invocations",
)
DEFAULT_MODEL = "auto"
"""The model that is asked where none is named, if it is served; else the first one served."""
_WHOLE: dict[str, Handler] = {"messages": chat, "prompt": completion, "input": embeddings}
"""What answers a body that is no table, by the field that it has."""
_TABLES = {
    "dataframe_split": '{"columns": [names], "data": [[one value for each column], …]}',
    "dataframe_records": "a list of rows",
    "inputs": "a list of rows, a text, or lists of equal length by column",
    "instances": "a list of rows",
}
_KINDS = (*_WHOLE, *_TABLES)
MAX_ROWS = 256


async def invoke(call: ApiCall, body: bytes) -> None:
    """Answer a body in one of MLflow's formats; a name in the path counts more than one in the body."""
    values, named = read_fields(body), call.scope["path_params"]
    in_path = "/".join(named[part] for part in ("name", "entity") if part in named)
    in_body = values.pop("model", None)
    name = in_path or in_body or await asyncio.to_thread(_default_model, call)
    kind, rows = parse(values)
    if kind in _WHOLE:
        await _WHOLE[kind](call, _body(values, name))
    else:
        await _predict(call, rows, name)


def parse(body: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """Return the field that says what a body is, and for a table a chat a row, not checked yet. Raise ApiError 400."""
    found = [kind for kind in _KINDS if body.get(kind) is not None]
    if len(found) != 1:
        unknown = next((name[:64] for name in body if name not in _KINDS), "")
        problem = f"{', '.join(found)} were sent together" if found else f"none was sent{did_you_mean(unknown, _KINDS)}"
        raise ApiError(400, f"Exactly one of {', '.join(_KINDS)} is needed; {problem}.", param=(*found, unknown)[0])
    kind = found[0]
    if kind in _WHOLE:
        return kind, []
    params = {} if body.get("params") is None else body["params"]
    for name in sorted(body.keys() - {kind, "params", "client_request_id"}):
        what = f'Unknown field beside {kind}: "{name[:64]}": settings of a chat go into `params`.'
        raise ApiError(400, what, param=name[:64])
    if not isinstance(params, dict) or params.keys() & {"model", "messages", "stream", "n"}:
        what = "`params` must be an object of chat settings, such as max_tokens, without model, messages, stream and n."
        raise ApiError(400, what, param="params")
    try:
        rows = _rows(kind, body[kind])
    except (TypeError, ValueError, KeyError):
        raise ApiError(400, f"`{kind}` must be {_TABLES[kind]}.", param=kind) from None
    if not 1 <= len(rows) <= MAX_ROWS:
        raise ApiError(400, f"{len(rows)} rows; 1 to {MAX_ROWS} are allowed.", param=kind)
    return kind, [{"messages": _messages(row, f"{kind}[{place}]"), **params} for place, row in enumerate(rows)]


async def _predict(call: ApiCall, bodies: list[dict[str, Any]], name: object) -> None:
    # All rows have the settings of the first one, which may be large: they are parsed and checked once.
    parsed = [
        parse_chat(_body(row, name), max_messages=call.app.settings.max_messages)
        for row in (bodies[0], *({"messages": row["messages"]} for row in bodies[1:]))
    ]
    first = parsed[0].request
    requests = [first.model_copy(update={"messages": one.request.messages}) for one in parsed]
    model = call.accept(parsed[0].model, requests)
    await check_requested_schema(first)
    ids = [f"{call.response.id}-{i}" for i in range(len(requests))]

    async def predict(id: str, request: Request) -> dict[str, Any]:
        response = call.response._replace(id=id)
        row = dataclasses.replace(
            call, response=response, requests=(request,), unfinished=collect_unfinished(), answers=[]
        )
        try:
            async with row.admitted(model) as reservation:
                found = await complete(row, model, request)
                reservation.add(found)
            await row.record(found)
        except BaseException:
            if not row.recorded:
                call.unfinished.extend([*row.answers, *row.unfinished])
            raise
        return response.whole(found)

    try:
        with call.places(len(ids)):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(predict(*row)) for row in zip(ids, call.requests, strict=True)]
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


def _rows(kind: str, table: Any) -> list[Any]:
    """Return the rows of a table. Raise TypeError or ValueError for another form."""
    if kind == "dataframe_split":
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    if kind == "inputs" and isinstance(table, dict) and "messages" not in table:
        return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    if kind == "inputs" and isinstance(table, str | dict):
        return [table]
    if not isinstance(table, list):
        raise TypeError
    return table


def _messages(row: object, place: str) -> list[Any]:
    """Return a row as a chat: its `messages`, or its text as the user's."""
    if isinstance(row, dict):
        if isinstance(row.get("messages"), list):
            return list(row["messages"])
        name = next(iter(row)) if len(row) == 1 else "text"
        row, place = row.get(name), f"{place}.{str(name)[:64]}"
    if not isinstance(row, str):
        raise ApiError(400, "A row must be a text, or an object with `messages`, `text` or one text.", param=place)
    return [{"role": "user", "content": row}]
