"""The frame around every route that asks a model: a place, a deadline, a client who waits, and a row for each failure.

Everything that can go wrong ends in `_fail`, as an error body in OpenAI's form and as a row of the ledger.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal, NamedTuple, Protocol

from starlette.types import Receive, Scope, Send

from smallfirst.models.protocol import Completion, Model
from smallfirst.serving.admission import Admission, ClientDisconnected, cancel_on_disconnect, read_body
from smallfirst.serving.error_responses import log_error, server_stopping, to_api_error
from smallfirst.serving.exchange import Exchange
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.metrics import Metrics
from smallfirst.serving.openai.errors import model_not_found
from smallfirst.serving.openai.responses import ResponseBuilder, sse_event
from smallfirst.serving.plugins import AnswerObserver
from smallfirst.serving.readiness import Readiness
from smallfirst.serving.settings import ServeSettings

_log = logging.getLogger("smallfirst.serving")

ERROR_SEND_TIMEOUT_S = 5.0
"""Time a client has to take an error in."""


class AppContext(NamedTuple):
    """What all routes of one server share."""

    models: Mapping[str, Model]
    ledger: Ledger
    settings: ServeSettings
    admission: Admission
    meter: Metrics
    readiness: Readiness
    watcher: AnswerObserver | None = None
    """Told of each answer once it is recorded."""

    def model(self, name: str) -> Model:
        """The model of this name. Raises WireError 404."""
        found = self.models.get(name)
        if found is None:
            raise model_not_found(name, self.models)
        return found

    async def record(self, exchange: Exchange, completion: Completion) -> None:
        """Nothing, once the answer is in the ledger and counted, and the watcher told."""
        assert exchange.asked is not None
        exchange.recorded = True
        await self.ledger.append_async(exchange.answered_row(completion, store_bodies=self.settings.store_bodies))
        stage = exchange.reply.stage(completion)
        self.meter.answered(stage, completion, exchange.first_token_s or exchange.elapsed_s)
        if self.watcher is not None:
            try:
                self.watcher.answered(exchange.reply.id, exchange.asked.requests[0], completion)
            except Exception:  # who watches must not take away an answer that is recorded
                _log.exception("%s: the watcher failed", exchange.reply.id)


class Handler(Protocol):
    """What a route does between the body and the answer."""

    @property
    def route(self) -> str:
        """Its name in the figures."""

    @property
    def form(self) -> Literal["chat", "text"]:
        """The form of its answers."""

    async def answer(self, exchange: Exchange, body: bytes) -> None:
        """Nothing; the answer is sent and recorded. Raises what `to_api_error` reads."""


class RequestLifecycle:
    """The ASGI application around one kind of work."""

    def __init__(self, house: AppContext, work: Handler) -> None:
        """`work` has the body; the rest is the same for all."""
        self._house, self._work = house, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Nothing; the answer, or the reason why there is none, has been sent and recorded."""
        now = datetime.now(UTC)
        exchange = Exchange(
            ResponseBuilder(scope["smallfirst.id"], int(now.timestamp()), "", self._work.form), send, now
        )
        limits = self._house.settings
        try:
            async with asyncio.timeout(limits.request_timeout_s):
                if self._house.readiness.stopping:
                    raise server_stopping()
                with self._house.admission.place():
                    body = await read_body(scope, receive, max_bytes=limits.max_body_bytes)
                    await cancel_on_disconnect(self._work.answer(exchange, body), receive)
        except asyncio.CancelledError:
            # Not raised again: the task ends here, and the web server would log it as a bug.
            await self._fail(exchange, server_stopping())
        except Exception as error:
            await self._fail(exchange, error)
        self._house.meter.done(self._work.route, exchange.status, exchange.elapsed_s)

    async def _fail(self, exchange: Exchange, error: Exception) -> None:
        """The row first, then the error body; in a stream that has begun, an error event."""
        refusal = to_api_error(error, exchange.reply.served_name)
        log_error(exchange.reply.id, exchange.reply.served_name, refusal, error)
        if not exchange.recorded:
            exchange.recorded = True
            store = self._house.settings.store_bodies
            row = exchange.row(status=refusal.status, latency_ms=exchange.elapsed_s * 1000, store_bodies=store)
            try:
                await self._house.ledger.append_async(row.model_copy(update={"error_code": refusal.code}))
            except Exception:  # the client still gets its error
                _log.exception("%s: the ledger did not take a row", exchange.reply.id)
        if isinstance(error, ClientDisconnected):
            exchange.status = refusal.status
            return
        # A client that has stopped reading would hold this up for ever.
        with suppress(TimeoutError):
            async with asyncio.timeout(ERROR_SEND_TIMEOUT_S):
                if exchange.head_sent:
                    await exchange.body(sse_event(refusal.body), more=False)
                else:
                    await exchange.json(refusal.status, refusal.body, refusal.headers)
        exchange.status = refusal.status
