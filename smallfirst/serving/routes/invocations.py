"""MLflow's POST /invocations: a chat, a completion, texts to embed, or a table of which every row is a chat.

Each row of a table is recorded with an id of its own, so that audits and feedback work as for any other answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from smallfirst.models.protocol import Request
from smallfirst.models.usage import collect_unfinished
from smallfirst.serving.openai.errors import ApiError
from smallfirst.serving.openai.requests import ParsedRequest, parse_chat, read_fields
from smallfirst.serving.openai.responses import ResponseBuilder
from smallfirst.serving.request_lifecycle import ApiCall, Handler
from smallfirst.serving.routes.completions import chat, check_requested_schema, complete_choices, completion
from smallfirst.serving.routes.embeddings import embeddings
from smallfirst.serving.routes.invocation_formats import Invocation, answer, parse

PATHS = (
    "/invocations",
    "/endpoints/{name}/invocations",
    "/serving-endpoints/{name}/invocations",
    "/serving-endpoints/{name}/served-models/{entity}/invocations",
)
DEFAULT_MODEL = "auto"
"""The model that is asked where none is named, if it is served; else the first one served."""
_HANDLERS: dict[str, Handler] = {"chat": chat, "completion": completion, "embeddings": embeddings}


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
    await call.send_json(200, {**answer(invocation.shape, [task.result() for task in tasks]), "ids": ids}, {})


def _body(values: Mapping[str, Any], name: object) -> bytes:
    return json.dumps({**values, "model": name}).encode()


def _default_model(call: ApiCall) -> str:
    served = list(call.app.models)
    if not served:
        raise ApiError(404, "No model is served here.", param="model", code="model_not_found")
    return DEFAULT_MODEL if DEFAULT_MODEL in served else served[0]
