"""MLflow's POST /invocations: a chat, a completion, texts to embed, or a table of which every row is a chat.

Each row of a table is recorded with an id of its own, so that audits and feedback work as for any other answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

from smallfirst.serving.openai.errors import ApiError
from smallfirst.serving.openai.requests import parse_chat, read_fields
from smallfirst.serving.openai.responses import ResponseBuilder
from smallfirst.serving.request_lifecycle import ApiCall, Handler
from smallfirst.serving.routes.completions import chat, complete_choices, completion
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
    name = in_path or values.pop("model", None) or _default_model(call)
    values.pop("model", None)
    invocation = parse(values)
    bodies = [json.dumps({**one, "model": name}).encode() for one in invocation.bodies]
    if invocation.shape == "predictions":
        await _predict(call, invocation, bodies)
    else:
        await _HANDLERS[invocation.shape](call, bodies[0])


async def _predict(call: ApiCall, invocation: Invocation, bodies: list[bytes]) -> None:
    parsed = [parse_chat(body, max_messages=call.app.settings.max_messages) for body in bodies]
    model = call.accept(parsed[0].model, parsed[0].requests)
    ids = [f"{call.response.id}-{i}" for i in range(len(parsed))]

    async def predict(id: str, i: int) -> dict[str, Any]:
        response = ResponseBuilder(id, call.response.created, parsed[i].model)
        row = dataclasses.replace(call, response=response, requests=())
        row.accept(parsed[i].model, parsed[i].requests)
        with row.admitted() as reservation:
            (found,) = await complete_choices(row, model, parsed[i]._replace(requests=row.requests))
            reservation.add(found)
        await row.record(found)
        return response.whole([found])

    try:
        with call.places(len(ids)):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(predict(id, i)) for i, id in enumerate(ids)]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    call.recorded = True
    await call.send_json(200, {**answer(invocation.shape, [task.result() for task in tasks]), "ids": ids}, {})


def _default_model(call: ApiCall) -> str:
    served = list(call.app.models)
    if not served:
        raise ApiError(404, "No model is served here.", param="model", code="model_not_found")
    return DEFAULT_MODEL if DEFAULT_MODEL in served else served[0]
