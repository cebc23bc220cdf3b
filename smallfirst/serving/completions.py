"""POST /v1/chat/completions, /v1/completions and MLflow's /invocations: ask the model and send its answer.

An answer is in the ledger before the client has the end of it; an answer that cannot be recorded is not given out.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from smallfirst.base.errors import BadAnswer, MissingExtra
from smallfirst.data.sources.documents import DocumentReader
from smallfirst.models.protocol import Chunk, Completion, Model, Request, estimate_written_tokens, open_stream
from smallfirst.models.response_format import check_response_format
from smallfirst.serving.admission import Turns
from smallfirst.serving.errors import ApiError
from smallfirst.serving.function_calls import check_functions
from smallfirst.serving.request_lifecycle import ApiCall
from smallfirst.serving.wire import (
    ParsedRequest,
    check_schema,
    parse_chat,
    parse_completion,
    parse_json_object,
    read_fields,
    sse_event,
)
from smallfirst.tasks.json.fields import map_values

INVOCATION_PATHS = (
    "/invocations",
    "/endpoints/{name}/invocations",
    "/serving-endpoints/{name}/invocations",
    "/serving-endpoints/{name}/served-models/{entity}/invocations",
)
DEFAULT_MODEL = "auto"
"""The model that /invocations asks where none is named, if it is served; else the first one served."""
_MAX_AHEAD = 64
"""Chunks that a model may be ahead of its client."""
_Chunks = asyncio.Queue[Chunk | Exception]


async def chat(call: ApiCall, body: bytes) -> None:
    """Answer a chat. Raise what `to_api_error` knows."""
    if b'"file' in body:
        body = await with_texts(body, call.app.admission.readers, call.owner)
    await _answer(call, parse_chat(body, max_messages=call.app.settings.max_messages))


async def completion(call: ApiCall, body: bytes) -> None:
    """Answer a prompt in OpenAI's older format. Raise what `to_api_error` knows."""
    call.response = call.response._replace(form="text")
    await _answer(call, parse_completion(body))


async def invoke(call: ApiCall, body: bytes) -> None:
    """Answer MLflow's chat or prompt by the model of the path, else of the body. Raise what `to_api_error` knows."""
    values, named = read_fields(body), call.scope["path_params"]
    in_path = "/".join(named[part] for part in ("name", "entity") if part in named)
    name = in_path or values.get("model") or await asyncio.to_thread(_default_model, call)
    answer = completion if "prompt" in values else chat
    await answer(call, json.dumps({**values, "model": name}).encode())


def _default_model(call: ApiCall) -> str:
    served = list(call.app.models)
    if not served:
        raise ApiError(404, "No model is served here.", param="model", code="model_not_found")
    return DEFAULT_MODEL if DEFAULT_MODEL in served else served[0]


async def _answer(call: ApiCall, parsed: ParsedRequest) -> None:
    model, request = call.accept(parsed.model, parsed.request)
    if parsed.places and (request.tools or parsed.stream or request.logprobs is not None or request.response_format):
        rule = "places are part of a whole answer; leave out tools, stream, logprobs and response_format"
        raise ApiError(400, f"smallfirst.places: {rule}.", param="smallfirst.places")
    if request.tools:
        check_functions(model, request)
        call.response = call.response._replace(calls=True)
    wanted = request.response_format
    if wanted is not None and wanted.json_schema:
        await asyncio.to_thread(check_schema, wanted.json_schema)
    async with call.admitted(model, request) as reservation:
        if parsed.stream:
            answer = await _stream(call, model, request, include_usage=parsed.include_usage)
        else:
            answer = await _complete(call, model, request)
            shown = with_places(answer) if parsed.places else answer
            await call.send_json(200, call.response.whole(shown), {}, answer=answer)
        reservation.add(answer)


def with_places(answer: Completion) -> Completion:
    """Return a JSON answer with each value as an object: `value`, and `page`, `offset`, `words` of where it was read.

    These are null where that is not known, as of what a large model says. An answer without fields stays as it is.
    """

    def placed(path: str, value: Any) -> dict[str, Any]:
        place = answer.read.get(path)
        return {"value": value, **{name: place and getattr(place, name) for name in ("page", "offset", "words")}}

    with suppress(ValueError, RecursionError):
        if isinstance(said := json.loads(answer.text), dict) and not answer.refusal:
            return answer.model_copy(update={"text": json.dumps(map_values(said, placed), ensure_ascii=False)})
    return answer


async def _complete(call: ApiCall, model: Model, request: Request) -> Completion:
    """Return the model's answer once it is this caller's turn, in the format that was asked for."""
    async with call.turn():
        with call.asking(request, lambda: request.max_tokens):
            answer = await model.complete(request)
    call.answers.append(answer)
    if request.response_format is not None:
        await check_response_format(answer, request.response_format)
    call.first_token_s = call.elapsed_s
    return answer


async def _stream(call: ApiCall, model: Model, request: Request, *, include_usage: bool) -> Completion:
    """Send the headers with the first text; the route is in the last chunk."""
    response, usage = call.response, include_usage
    async with call.turn(), _buffer_stream(call, model, request) as chunks:
        chunk = await _first_chunk(chunks)
        call.first_token_s = call.elapsed_s
        head = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        await call.send_head(200, head)
        if response.form == "chat":
            await call.send_body(sse_event(response.opening(include_usage=usage)), more=True)
        while True:
            if chunk.text and not response.calls and not (chunk.completion and chunk.completion.refusal):
                piece = response.piece(chunk.text, chunk.tokens, include_usage=usage)
                await call.send_body(sse_event(piece), more=True)
            if chunk.completion is not None:
                break
            chunk = await _next_chunk(chunks)
    answer = chunk.completion
    if request.response_format is not None:
        await check_response_format(answer, request.response_format)
    last = response.last(answer, include_usage=usage)
    last["smallfirst"]["first_token_ms"] = call.first_token_s * 1000
    chunks_left = [last, *([response.usage_chunk(answer)] if usage else [])]
    # Before the row: an answer with a number that JSON lacks has failed.
    end = b"".join([*map(sse_event, chunks_left), sse_event("[DONE]")])
    await call.record(answer)
    await call.send_body(end, more=False)
    return answer


@asynccontextmanager
async def _buffer_stream(call: ApiCall, model: Model, request: Request) -> AsyncIterator[_Chunks]:
    """Yield a queue that a task fills from the model's stream; that task also closes the stream at the end."""
    chunks: _Chunks = asyncio.Queue(_MAX_AHEAD)
    filling = asyncio.create_task(_fill(chunks, call, model, request))
    try:
        yield chunks
    finally:
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)


async def _fill(chunks: _Chunks, call: ApiCall, model: Model, request: Request) -> None:
    n_chunks = n_characters = 0
    try:
        with call.asking(request, lambda: estimate_written_tokens(n_chunks, n_characters)):
            async with open_stream(model, request) as stream:
                async for chunk in stream:
                    if chunk.completion is not None:
                        call.answers.append(chunk.completion)
                        await chunks.put(chunk)
                        return
                    n_chunks, n_characters = n_chunks + bool(chunk.text), n_characters + len(chunk.text)
                    await chunks.put(chunk)
            raise BadAnswer("the stream ended without a completion")
    except Exception as error:
        await chunks.put(error)


async def _next_chunk(chunks: _Chunks) -> Chunk:
    item = await chunks.get()
    if isinstance(item, Exception):
        raise item
    return item


async def _first_chunk(chunks: _Chunks) -> Chunk:
    """Return the first text with all that is ready by then, perhaps the Completion. Raise what the stream raised."""
    found = await _next_chunk(chunks)
    while found.completion is None and (not found.text or not chunks.empty()):
        more = await _next_chunk(chunks)
        found = Chunk(text=found.text + more.text, tokens=found.tokens + more.tokens, completion=more.completion)
    if not found.text and found.completion is not None:
        # A model may send its whole answer with the Completion alone.
        return Chunk(text=found.completion.text, tokens=found.completion.tokens, completion=found.completion)
    return found


async def with_texts(body: bytes, readers: Turns, owner: str) -> bytes:
    """Return the body of a chat with the texts of its documents in their place. Raise ApiError 400 naming one at fault.

    A document that has no text, such as a scanned one, is refused: nothing is guessed. Owners of keys take turns.
    """
    values = await asyncio.to_thread(parse_json_object, body)
    turns = values.get("messages")
    for n, turn in enumerate(turns if isinstance(turns, list) else ()):
        parts = turn.get("content") if isinstance(turn, dict) else None
        for m, part in enumerate(parts if isinstance(parts, list) else ()):
            if isinstance(part, dict) and part.get("type") == "file":
                await readers.wait(owner)
                reading = asyncio.ensure_future(
                    asyncio.to_thread(_text, part.pop("file", None), f"messages[{n}].content[{m}]")
                )
                # Not before its end: a client that leaves does not stop the process that reads.
                reading.add_done_callback(lambda _: readers.give_back(owner))
                part.update(type="text", text=await asyncio.shield(reading))
    return await asyncio.to_thread(lambda: json.dumps(values).encode())


def _text(file: Any, place: str) -> str:
    file = file if isinstance(file, dict) else {}
    name, data = file.get("filename"), file.get("file_data")
    if not isinstance(name, str) or not isinstance(data, str):
        rule = "a file has `filename` and `file_data` in base64; ids of files are not accepted"
        raise ApiError(400, f"{place}: {rule}.", param=place, code="invalid_file")
    try:
        raw = base64.b64decode(data.partition(",")[2] if data.startswith("data:") else data, validate=True)
        with DocumentReader() as reader:
            found = reader.read(name[:200], raw)
    except binascii.Error:
        raise ApiError(400, f"{place}: file_data is no base64.", param=place, code="invalid_file") from None
    except MissingExtra as error:
        raise ApiError(400, f"{place}: {error}", param=place, code="invalid_file") from None
    if found.rule:
        raise ApiError(400, f"{place}: {name[:200]}: {found.rule}.", param=place, code="unreadable_document")
    return found.text
