"""MLflow's POST /invocations: a chat, a completion, texts to embed, or a table of which every row is a chat.

A table is answered as one and written down row by row, each with an id of its own, so that audits and feedback work
as for any other answer.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

from smallfirst.serving.exchange import Exchange
from smallfirst.serving.openai.errors import ApiError
from smallfirst.serving.openai.requests import read_fields
from smallfirst.serving.openai.responses import ResponseBuilder
from smallfirst.serving.request_lifecycle import AppContext, Handler
from smallfirst.serving.routes.completions import CompletionHandler, complete_choices
from smallfirst.serving.routes.embeddings import EmbeddingHandler
from smallfirst.serving.routes.invocation_formats import Invocation, answer, parse

DEFAULT = "auto"
"""Who is asked where the body names nobody and there is a model of this name; else the first one served."""


class InvocationHandler:
    """The work behind POST /invocations."""

    form: Literal["chat", "text"] = "chat"
    route = "invocations"

    def __init__(self, house: AppContext) -> None:
        """Asks as the other routes of `house` do."""
        self._house = house
        self._whole: dict[str, Handler] = {
            "chat": CompletionHandler(house, "chat"),
            "completion": CompletionHandler(house, "text"),
            "embeddings": EmbeddingHandler(house, "embeddings"),
        }

    async def answer(self, exchange: Exchange, body: bytes) -> None:
        """Nothing; the answer is sent and recorded. Raises what `as_refusal` reads."""
        values = read_fields(body)
        name = values.pop("model", None) or self._default()
        asked = parse(values)
        bodies = [json.dumps({**one, "model": name}).encode() for one in asked.bodies]
        if asked.shape == "predictions":
            await self._table(exchange, asked, bodies)
            return
        work = self._whole[asked.shape]
        exchange.reply = exchange.reply._replace(form=work.form)
        await work.answer(exchange, bodies[0])

    async def _table(self, exchange: Exchange, asked: Invocation, bodies: list[bytes]) -> None:
        chats = CompletionHandler(self._house, "chat")
        rows = [chats.parse(body) for body in bodies]
        exchange.taken(rows[0])
        model = self._house.model(rows[0].model)
        ids = [f"{exchange.reply.id}-{place}" for place in range(len(rows))]

        async def one(place: int) -> dict[str, Any]:
            reply = ResponseBuilder(ids[place], exchange.reply.created, rows[place].model)
            row = Exchange(reply, exchange.send, exchange.at)
            row.taken(rows[place])
            async with chats.turn(rows[place]) as bill:
                (completion,) = await complete_choices(model, rows[place])
                bill.add(completion)
            await self._house.record(row, completion)
            return reply.whole([completion])

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(place)) for place in range(len(rows))]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        exchange.recorded = True
        answers = [task.result() for task in tasks]
        told = answer(asked.shape, answers)
        await exchange.json(200, {**told, "ids": ids}, {})

    def _default(self) -> str:
        served = list(self._house.models)
        if not served:
            raise ApiError(404, "Nothing is served here.", param="model", code="model_not_found")
        return DEFAULT if DEFAULT in served else served[0]
