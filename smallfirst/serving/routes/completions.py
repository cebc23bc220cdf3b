"""Chats and completions: what is asked, who answers, and the answer whole or piece by piece.

An answer is in the ledger before the client has the end of it; an answer that cannot be recorded is not given out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.models.response_format import check_response_format
from smallfirst.serving.admission import estimate_tokens
from smallfirst.serving.auth.middleware import caller_digest, current_caller
from smallfirst.serving.auth.rate_limits import TokenReservation
from smallfirst.serving.exchange import Exchange
from smallfirst.serving.openai.json_limits import check_schema
from smallfirst.serving.openai.requests import ParsedRequest, parse_chat, parse_completion
from smallfirst.serving.openai.responses import combine, sse_event
from smallfirst.serving.request_lifecycle import AppContext
from smallfirst.serving.routes.stream_buffer import buffer_stream, first_chunk, next_chunk


class CompletionHandler:
    """The work behind POST /v1/chat/completions, or /v1/completions."""

    def __init__(self, house: AppContext, form: Literal["chat", "text"] = "chat") -> None:
        """Answers in OpenAI's form for chats or for completions."""
        self._house, self.form = house, form
        self.route = "chat/completions" if form == "chat" else "completions"

    async def answer(self, exchange: Exchange, body: bytes) -> None:
        """Nothing; the answer is sent and recorded. Raises what `as_refusal` reads."""
        asked = self.parse(body)
        exchange.taken(asked)
        await _check_form(asked)
        model = self._house.model(asked.model)
        async with self.turn(asked) as bill:
            if not asked.stream:
                completion = await self._whole(exchange, asked, model)
            elif len(asked.requests) * asked.n == 1:
                completion = await self._stream(exchange, asked, model)
            else:
                completion = await self._several(exchange, asked, model)
            bill.add(completion)

    @asynccontextmanager
    async def turn(self, asked: ParsedRequest) -> AsyncIterator[TokenReservation]:
        """A turn at the models, and the caller's bill. Raises WireError 429 or 503 where there is no room."""
        admission, tokens = self._house.admission, sum(map(estimate_tokens, asked.requests))
        with current_caller().tokens(tokens) as bill, admission.load(tokens):
            async with admission.turn:
                yield bill

    def parse(self, body: bytes) -> ParsedRequest:
        """What a body of this form asks for. Raises WireError 400."""
        if self.form == "text":
            asked = parse_completion(body)
        else:
            asked = parse_chat(body, max_messages=self._house.settings.max_messages)
        if not (tenant := caller_digest()):
            return asked
        told = {"tenant": tenant}
        return asked._replace(requests=tuple(request.model_copy(update=told) for request in asked.requests))

    async def _whole(self, exchange: Exchange, asked: ParsedRequest, model: Model) -> Completion:
        answers = await complete_choices(model, asked)
        completion = combine(answers, asked.n)
        exchange.first_token_s = exchange.elapsed_s
        await self._house.record(exchange, completion)
        reply = exchange.reply
        await exchange.json(200, reply.whole(answers, asked.n), reply.headers(completion))
        return completion

    async def _stream(self, exchange: Exchange, asked: ParsedRequest, model: Model) -> Completion:
        """Sends the answer in pieces.

        Headers wait for the first text and for all that the model has made ready with it. A label is ready whole, so
        its route is in the headers; a written answer says its route in the last chunk.
        """
        reply, usage = exchange.reply, asked.include_usage
        (request,) = asked.requests
        async with buffer_stream(model.stream(request)) as chunks:
            chunk = await first_chunk(chunks)
            exchange.first_token_s = exchange.elapsed_s
            await self._open(exchange, reply.headers(chunk.completion) if chunk.completion else {})
            if self.form == "chat":
                await exchange.body(sse_event(reply.opening(include_usage=usage)), more=True)
            while True:
                if chunk.text:
                    piece = reply.piece(chunk.text, chunk.tokens, include_usage=usage)
                    await exchange.body(sse_event(piece), more=True)
                if chunk.completion is not None:
                    break
                chunk = await next_chunk(chunks)
        completion = chunk.completion
        check_response_format(completion, request.response_format)
        await self._house.record(exchange, completion)
        last = reply.last(completion, include_usage=usage)
        last["smallfirst"]["first_token_ms"] = exchange.first_token_s * 1000
        await self._close(exchange, asked, (completion,), [last])
        return completion

    async def _several(self, exchange: Exchange, asked: ParsedRequest, model: Model) -> Completion:
        """Sends several answers, each whole once all are there."""
        reply, usage = exchange.reply, asked.include_usage
        answers = await complete_choices(model, asked)
        completion = combine(answers, asked.n)
        exchange.first_token_s = exchange.elapsed_s
        await self._house.record(exchange, completion)
        await self._open(exchange, reply.headers(completion))
        chunks = []
        for index, answer in enumerate(answers):
            if self.form == "chat":
                chunks.append(reply.opening(index, include_usage=usage))
            chunks.append(reply.piece(answer.text, answer.tokens, index=index, include_usage=usage))
            chunks.append(reply.last(answer, index, include_usage=usage))
        await self._close(exchange, asked, answers, chunks)
        return completion

    async def _open(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        head = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        await exchange.start(200, {**head, **headers})

    async def _close(
        self, exchange: Exchange, asked: ParsedRequest, answers: Sequence[Completion], chunks: Sequence[dict[str, Any]]
    ) -> None:
        counted = [exchange.reply.counted(answers, asked.n)] if asked.include_usage else []
        await exchange.body(
            b"".join([*map(sse_event, chunks), *map(sse_event, counted), sse_event("[DONE]")]), more=False
        )


async def _check_form(asked: ParsedRequest) -> None:
    """Nothing if the schema asked for, if any, is one that an answer can be held to. Raises WireError 400."""
    form = asked.requests[0].response_format
    if form is not None and form.json_schema:
        await asyncio.to_thread(check_schema, form.json_schema)


async def complete_choices(model: Model, asked: ParsedRequest) -> list[Completion]:
    """`n` answers to each prompt, in order, in the form asked for. Raises the first failure, the others cancelled."""
    draws = asked.draws()
    if len(draws) == 1:
        made = [await _checked(model, draws[0])]
    else:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_checked(model, request)) for request in draws]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        made = [task.result() for task in tasks]
    copies = len(asked.requests) * asked.n // len(made)
    return [answer for answer in made for _ in range(copies)]


async def _checked(model: Model, request: Request) -> Completion:
    completion = await model.complete(request)
    check_response_format(completion, request.response_format)
    return completion
