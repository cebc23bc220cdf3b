"""The proxy as an ASGI application: answer small what may be, pass everything else on, and hand both to the capture.

There is no router in the path of a request: own routes are looked up by method and path, all others below `/v1` go on.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import uvicorn

from smallfirst.data.redaction import redact_logs
from smallfirst.serving.admission import cancel_on_disconnect
from smallfirst.serving.errors import ApiError, ClientDisconnected, server_error
from smallfirst.serving.http_limits import ConnectionLimits
from smallfirst.serving.server import server_config
from smallfirst.traffic.gateway.access import OWN_PATHS, Access, check_path, may_ask, only_models
from smallfirst.traffic.gateway.capture import Capture
from smallfirst.traffic.gateway.http import (
    BrokenOff,
    Captured,
    Client,
    Copy,
    GatewayRequest,
    GatewayResponse,
    Receive,
    Send,
    UpstreamAnswer,
    json_response,
    refusal,
)
from smallfirst.traffic.gateway.upstreams import Target, Upstreams, pass_back
from smallfirst.traffic.settings import GatewaySettings

if TYPE_CHECKING:
    from smallfirst.traffic.gateway.tasks import TakenOverTasks

_log = logging.getLogger("smallfirst.gateway")
MAX_ROUTED_BYTES = 64 * 1024 * 1024
"""Largest request body whose model's name decides something, with `models` or a limited key: it is read whole."""
_MOST_COPIED = 4 * 1024 * 1024
"""Answers of more bytes are not handed to `TakenOverTasks.passed`."""

Handler = Callable[[GatewayRequest, Upstreams], Awaitable[GatewayResponse | None]]
"""An own route. It gets the whole request and the upstreams; with None the request is passed on."""


class Gateway:
    """The ASGI application."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        local: TakenOverTasks | None = None,
        routes: Mapping[tuple[str, str], Handler] = {},
        capture: Capture | None = None,
        access: Access | None = None,
    ) -> None:
        """`routes` are own routes by method and path, such as `("POST", "/v1/decisions")`.

        Those that are not below /v1 are public. Without `access` everybody is served who reaches it. Raise ConfigError
        if the key of an upstream is missing.
        """
        for upstream in settings.upstreams.values():
            upstream.key()
        self.settings, self.local, self.capture, self.access = settings, local, capture, access
        self.upstreams: Upstreams
        """Made by `start`."""
        self.routes: dict[tuple[str, str], Handler] = {
            ("GET", "/health"): _health,
            ("GET", "/v1/smallfirst/status"): self._status,
            **routes,
        }
        self.counts: Counter[str] = Counter()
        """Requests since the start: `small`, `own` (own routes), `passed`, and the codes of the proxy's own errors."""

    async def start(self) -> None:
        """Make ready for the first request; call it inside the loop that serves."""
        self.upstreams = Upstreams(self.settings, self.local.credentials if self.local is not None else None)
        if self.local is not None:
            await self.local.start()

    async def aclose(self) -> None:
        """Let go of the upstreams, and wait until what was captured is stored."""
        if self.local is not None:
            await self.local.aclose()
        await self.upstreams.aclose()
        if self.capture is not None:
            await asyncio.to_thread(self.capture.close)

    async def _status(self, _: GatewayRequest, __: Upstreams) -> GatewayResponse:
        kept = self.capture.counts if self.capture else None
        return json_response({"requests": dict(self.counts), "capture": kept})

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        client, request = Client(receive, send), _head(scope)
        try:
            await cancel_on_disconnect(self._serve(request, client), client.until_gone)
        except ClientDisconnected:
            pass
        except Exception as error:
            if not isinstance(error, ApiError):
                _log.error("a request failed", exc_info=error)
                error = server_error(500, "The proxy failed; its log says why.", "internal_error")
            self.counts[error.code or "refused"] += 1
            if client.started:
                raise BrokenOff(str(error)) from None
            await client.answer(refusal(error))
        finally:
            request.watched = None  # which may know the request: what went wrong would stay until a collection

    async def _serve(self, request: GatewayRequest, client: Client) -> None:
        public = (request.method, request.path) in self.routes and not request.path.startswith("/v1/")
        if not public:
            check_passable(request)
        async with nullcontext(()) if self.access is None or public else self.access.admit(request) as models:
            await self._admitted(request, client, models)

    async def _admitted(self, request: GatewayRequest, client: Client, models: tuple[str, ...]) -> None:
        # Where a model's name decides, it must be known before anything is sent to an upstream.
        most = max(self.settings.max_buffered_bytes, MAX_ROUTED_BYTES if self.settings.models or models else 0)
        request.body, more = await client.read(most)
        response = await self._of_limited_key(request, models) if models else None
        if more:
            await self._pass_while_it_arrives(request, client)
            return
        response = response or await self._own_answer(request)
        if response is None:
            await self._exchange(request, client, *self.upstreams.place(request))
        else:
            await client.answer(response)
            self._keep(request, response.captured)

    async def _of_limited_key(self, request: GatewayRequest, models: tuple[str, ...]) -> GatewayResponse | None:
        """Return the list of the models that may be asked for, where it is wanted; None: the request is allowed."""
        if (request.method, request.path, request.body) == ("GET", "/v1/models", b""):
            return only_models(await self.upstreams.ask(request), models)
        if not (request.path.startswith(OWN_PATHS) or may_ask(request, models)):
            message = (
                f"This key may use {', '.join(models)} alone, by a POST of JSON that names it once, and GET /v1/models."
            )
            raise ApiError(403, message, code="model_not_allowed")
        return None

    async def _own_answer(self, request: GatewayRequest) -> GatewayResponse | None:
        handler = self.routes.get((request.method, request.path))
        if handler is not None:
            self.counts["own"] += 1
            return await handler(request, self.upstreams)
        if self.local is None or request.method != "POST" or len(request.body) > self.settings.max_buffered_bytes:
            return None
        try:
            answer = await self.local.answer(request, self.upstreams) if request.json() is not None else None
            self.counts["small"] += answer is not None
            return answer
        except Exception:
            _log.exception("a small answer failed; the request is passed on")
            return None

    async def _pass_while_it_arrives(self, request: GatewayRequest, client: Client) -> None:
        beginning, request.body = request.body, b""
        if self.settings.models:
            limit = f"{MAX_ROUTED_BYTES:,} bytes"
            message = f"The body is larger than {limit}, within which the model is looked for."
            await client.discard(MAX_ROUTED_BYTES)
            raise ApiError(413, message, code="body_too_large")
        await self._exchange(request, client, self.upstreams.target(None, request.headers), client.rest(beginning))

    async def _exchange(
        self, request: GatewayRequest, client: Client, target: Target, body: bytes | AsyncIterator[bytes]
    ) -> None:
        self.counts["passed"] += 1
        capture = self.capture if self.capture and isinstance(body, bytes) and self.capture.wants(request) else None
        copied = capture is not None or request.watched is not None
        began = time.perf_counter()
        response = await self.upstreams.send(request, target, body, readable=copied)
        copy = Copy(_MOST_COPIED) if copied else None

        def whole() -> UpstreamAnswer:
            assert copy is not None
            latency_ms = 1000 * (time.perf_counter() - began)
            return UpstreamAnswer(response.status, response.headers, copy.body(), target.upstream, latency_ms)

        def keep() -> None:
            """Hand it over before the client has the end: an answer that was given is kept even if we are killed."""
            if capture is not None and copy is not None and copy.whole and response.status == 200:
                capture.keep(request, whole())

        try:
            await pass_back(response, client, copy, keep)
        except asyncio.CancelledError:
            if not (client.gone and copy is not None and copy.says_done):
                raise
        finally:
            response.close()
        if self.local is not None and request.watched is not None and copy is not None and copy.whole:
            await self._tell(request, whole())

    async def _tell(self, request: GatewayRequest, answer: UpstreamAnswer) -> None:
        assert self.local is not None
        try:
            await self.local.passed(request, answer)
        except Exception:
            _log.exception("an upstream's answer could not be looked at")

    def _keep(self, request: GatewayRequest, captured: Captured | None) -> None:
        if captured is not None and self.capture is not None and self.capture.wants(request):
            self.capture.keep(replace(request, body=captured.request), captured.answer)


def check_passable(request: GatewayRequest) -> None:
    """Raise ApiError for a request that cannot be passed on."""
    if request.header(b"upgrade").lower() == b"websocket":
        message = "WebSockets are not passed on; connect to the upstream itself for realtime sessions."
        raise ApiError(501, message, code="websocket_not_supported")
    if not (request.path.startswith("/v1/") or request.path in ("/v1", "/health")):
        message = (
            f"Only paths below /v1 are passed on, not {request.path[:100]}; the client's base URL must end in /v1."
        )
        raise ApiError(404, message, code="not_below_v1")
    check_path(request.path)


async def _health(_: GatewayRequest, __: Upstreams) -> GatewayResponse:
    return json_response({"status": "ok"})


def _head(scope: Mapping[str, Any]) -> GatewayRequest:
    path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    return GatewayRequest(scope["method"], path, scope["query_string"], list(scope["headers"]), b"")


DRAIN_S = 30
"""Seconds that running answers have when the proxy is told to stop."""
LIMITS = ConnectionLimits(max_head_bytes=256 * 1024, max_connections=100_000, body_s=60.0, body_bytes_per_s=1024)
"""Slow lines and speech as it is spoken pass; who sends less for ever would hold what is buffered, or an upstream."""


def gateway_config(gateway: Gateway) -> uvicorn.Config:
    """Return how uvicorn serves the gateway: nothing is added to an answer."""
    return server_config(gateway, LIMITS, date_header=False, timeout_graceful_shutdown=DRAIN_S)


def run(gateway: Gateway, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, let running answers end, and close the gateway; logs are redacted."""
    redact_logs()
    logging.getLogger("uvicorn.error").addFilter(_is_no_broken_answer)
    config = gateway_config(gateway)
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(uvicorn.Server(config), listener, gateway))


async def _serve(server: uvicorn.Server, listener: socket.socket, gateway: Gateway) -> None:
    try:
        await gateway.start()
        await server.serve(sockets=[listener])
    finally:
        await gateway.aclose()


def _is_no_broken_answer(record: logging.LogRecord) -> bool:
    """Leave out what uvicorn says of an answer that the upstream broke off: the client sees the same."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, BrokenOff)
