"""One chat request from the first byte to the ledger row and the last byte of the answer.

Everything that can go wrong ends in `_fail`, as an error body in OpenAI's form and as a row. An
answer is in the ledger before the client has the end of it; an answer that cannot be recorded is
not given out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.types import Receive, Scope, Send

from smallfirst.errors import BadAnswer, ModelError, RateLimited, Unauthorised, Unavailable
from smallfirst.models.model import Chunk, Completion, Model, Route
from smallfirst.serving.answers import Reply, certified, confidence, event
from smallfirst.serving.entries import LedgerRow
from smallfirst.serving.extension import Watcher
from smallfirst.serving.intake import RETRY_AFTER_S, Admission, ClientGone, read_body, unless_gone
from smallfirst.serving.ledger import Ledger
from smallfirst.serving.settings import ServeSettings
from smallfirst.serving.wire import (
    ChatCall,
    WireError,
    messages_json,
    messages_sha256,
    model_missing,
    parse_chat,
)

_log = logging.getLogger("smallfirst.serving")

_AHEAD = 64
"""Chunks a model may be ahead of its client before it has to wait."""
LAST_WORDS_S = 5.0
"""Time a client has to take an error in."""


@dataclass
class _Exchange:
    """What is known so far of one request; the only thing here that changes."""

    reply: Reply
    send: Send
    at: datetime
    started_s: float = field(default_factory=time.perf_counter)
    call: ChatCall | None = None
    head_sent: bool = False
    recorded: bool = False

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Sends status and headers."""
        self.head_sent = True
        raw = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})

    async def body(self, content: bytes, *, more: bool) -> None:
        """Sends a part of the body."""
        await self.send({"type": "http.response.body", "body": content, "more_body": more})

    async def json(self, status: int, value: dict[str, Any], headers: Mapping[str, str]) -> None:
        """Sends a whole JSON answer."""
        content = json.dumps(value).encode()
        head = {"content-type": "application/json", "content-length": str(len(content))}
        await self.start(status, {**head, **headers})
        await self.body(content, more=False)


class ChatEndpoint:
    """The ASGI application behind POST /v1/chat/completions."""

    def __init__(
        self, models: Mapping[str, Model], *, ledger: Ledger, settings: ServeSettings, watcher: Watcher | None = None
    ) -> None:
        """Answers for the names in `models`; `watcher` is told of each answer once it is recorded."""
        self._watcher = watcher
        self._models = models
        self._ledger = ledger
        self._settings = settings
        self._admission = Admission(in_flight=settings.max_in_flight, queue=settings.max_queue)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Nothing; the answer, or the reason why there is none, has been sent and recorded."""
        now = datetime.now(UTC)
        exchange = _Exchange(Reply(scope["smallfirst.id"], int(now.timestamp()), ""), send, now)
        limits = self._settings
        try:
            async with asyncio.timeout(limits.request_timeout_s):
                with self._admission.place():
                    body = await read_body(scope, receive, max_bytes=limits.max_body_bytes)
                    await unless_gone(self._answer(exchange, body), receive)
        except asyncio.CancelledError:
            stopping = WireError(
                503,
                "The server is stopping; try again shortly.",
                kind="server_error",
                code="stopping",
                retry_after_s=RETRY_AFTER_S,
            )
            # Not raised again: the task ends here, and the web server would log it as a bug.
            await self._fail(exchange, stopping)
        except Exception as error:
            await self._fail(exchange, error)

    async def _answer(self, exchange: _Exchange, body: bytes) -> None:
        call = parse_chat(body, max_messages=self._settings.max_messages)
        exchange.call = call
        exchange.reply = exchange.reply._replace(served_name=call.model)
        model = self._models.get(call.model)
        if model is None:
            raise model_missing(call.model, self._models)
        async with self._admission.turn:
            if call.stream:
                await self._stream(exchange, call, model)
            else:
                completion = await model.complete(call.request)
                await self._record(exchange, completion)
                reply = exchange.reply
                await exchange.json(200, reply.whole(completion), reply.headers(completion))

    async def _stream(self, exchange: _Exchange, call: ChatCall, model: Model) -> None:
        """Sends the answer in pieces.

        Headers wait for the first text and for all that the model has made ready with it. A label
        is ready whole, so its route is in the headers; a written answer says its route in the last
        chunk.
        """
        reply, with_usage = exchange.reply, call.include_usage
        async with _ahead(model.stream(call.request)) as chunks:
            text, completion = await _opening(chunks)
            known = reply.headers(completion) if completion else {}
            head = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
            await exchange.start(200, {**head, **known})
            await exchange.body(event(reply.opening(include_usage=with_usage)), more=True)
            while True:
                if text:
                    piece = reply.piece(text, include_usage=with_usage)
                    await exchange.body(event(piece), more=True)
                if completion is not None:
                    break
                text, completion = await _next(chunks)
        await self._record(exchange, completion)
        last = reply.closing(completion, include_usage=with_usage)
        ending = b"".join([*map(event, last), event("[DONE]")])
        await exchange.body(ending, more=False)

    async def _record(self, exchange: _Exchange, completion: Completion) -> None:
        assert exchange.call is not None
        route = completion.route
        row = self._row(exchange, status=200, latency_ms=completion.latency_ms).model_copy(
            update={
                "answered_by": completion.answered_by,
                "stage": exchange.reply.stage(completion),
                "certified": certified(completion),
                "confidence": confidence(completion),
                "threshold": route.threshold if route else None,
                "prompt_tokens": completion.prompt_tokens,
                "completion_tokens": completion.completion_tokens,
                "cost_usd": completion.cost_usd,
                "answer_text": completion.text if self._settings.store_bodies else None,
                **(_way(route) if route else {}),
            }
        )
        exchange.recorded = True
        await self._ledger.append_async(row)
        if self._watcher is not None:
            try:
                self._watcher.answered(exchange.reply.id, exchange.call.request, completion)
            except Exception:  # who watches must not take away an answer that is recorded
                _log.exception("%s: the watcher failed", exchange.reply.id)

    async def _fail(self, exchange: _Exchange, error: Exception) -> None:
        """The row first, then the error body; in a stream that has begun, an error event."""
        refusal = _as_refusal(error, exchange.reply.served_name)
        _report(exchange.reply, refusal, error)
        if not exchange.recorded:
            exchange.recorded = True
            waited_ms = (time.perf_counter() - exchange.started_s) * 1000
            row = self._row(exchange, status=refusal.status, latency_ms=waited_ms)
            try:
                await self._ledger.append_async(row.model_copy(update={"error_code": refusal.code}))
            except Exception:  # the client still gets its error
                _log.exception("%s: the ledger did not take a row", exchange.reply.id)
        if isinstance(error, ClientGone):
            return
        # A client that has stopped reading would hold this up for ever.
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                if exchange.head_sent:
                    await exchange.body(event(refusal.body), more=False)
                else:
                    await exchange.json(refusal.status, refusal.body, refusal.headers)

    def _row(self, exchange: _Exchange, *, status: int, latency_ms: float) -> LedgerRow:
        request = exchange.call.request if exchange.call else None
        return LedgerRow(
            id=exchange.reply.id,
            at=exchange.at,
            served_name=exchange.reply.served_name[:128],
            status=status,
            latency_ms=latency_ms,
            request_sha256=messages_sha256(request) if request else None,
            request_text=messages_json(request) if request and self._settings.store_bodies else None,
        )


def _way(route: Route) -> dict[str, object]:
    """What the ledger keeps of a Router's way, by column."""
    trail = [step.model_dump(exclude_defaults=True) for step in route.trail]
    return {
        "task": route.task or None,
        "promise": route.promise or None,
        "trail": json.dumps(trail, ensure_ascii=False, separators=(",", ":")) if trail else None,
        "audit_share": route.audit_share,
        "audited": route.audited,
    }


_Chunks = asyncio.Queue[Chunk | Exception]


@asynccontextmanager
async def _ahead(stream: AsyncIterator[Chunk]) -> AsyncIterator[_Chunks]:
    """A queue that one task fills from `stream`: a stream must be read and closed in one task."""
    chunks: _Chunks = asyncio.Queue(_AHEAD)
    filling = asyncio.create_task(_fill(chunks, stream))
    try:
        yield chunks
    finally:
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)


async def _fill(chunks: _Chunks, stream: AsyncIterator[Chunk]) -> None:
    try:
        async for chunk in stream:
            await chunks.put(chunk)
            if chunk.completion is not None:
                return
        await chunks.put(BadAnswer("the stream ended without a completion"))
    except Exception as error:
        await chunks.put(error)
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


async def _next(chunks: _Chunks) -> tuple[str, Completion | None]:
    item = await chunks.get()
    if isinstance(item, Exception):
        raise item
    return item.text, item.completion


async def _opening(chunks: _Chunks) -> tuple[str, Completion | None]:
    """Some text, and all else that is ready by then: more text, perhaps the Completion."""
    text, completion = await _next(chunks)
    while completion is None and (not text or not chunks.empty()):
        more, completion = await _next(chunks)
        text += more
    # A model may send its whole answer with the Completion alone.
    return text or (completion.text if completion else ""), completion


def _as_refusal(error: Exception, served_name: str) -> WireError:
    """What the client is told. Nothing of the server's insides: those are in the log."""
    name = f'"{served_name}"'
    wait = RETRY_AFTER_S
    match error:
        case WireError():
            return error
        case ClientGone():
            return WireError(499, "The client left.", code="client_gone")
        case TimeoutError():
            return _server(504, "The answer took too long.", "timeout")
        case RateLimited():
            return WireError(
                429,
                f"The model behind {name} asks to slow down.",
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after_s=wait,
            )
        case Unavailable():
            return _server(503, f"The model behind {name} is down.", "model_unavailable", wait)
        case Unauthorised():
            what = f"The model behind {name} refused the key of this server."
            return _server(502, what, "upstream_unauthorised")
        case ModelError():
            return _server(502, f"The model behind {name} gave no usable answer.", "bad_answer")
        case _:
            return _server(500, "Something broke inside the server.", "internal_error")


def _server(status: int, message: str, code: str, retry_after_s: int | None = None) -> WireError:
    return WireError(status, message, kind="server_error", code=code, retry_after_s=retry_after_s)


def _report(reply: Reply, refusal: WireError, error: Exception) -> None:
    """One log line: what the client did wrong is not news, what the server did wrong is."""
    if refusal.status == 500:
        _log.error("%s: failed", reply.id, exc_info=error)
    elif isinstance(error, ModelError):
        said = " ".join(str(error).split())[:300]
        _log.warning("%s: %r, %s: %s", reply.id, reply.served_name, type(error).__name__, said)
    else:
        _log.info("%s: %r, %d %s", reply.id, reply.served_name, refusal.status, refusal.code)
