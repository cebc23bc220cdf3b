"""The process around the application: listen, serve, and stop without losing an answer."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp

from smallfirst.base.errors import ConfigError
from smallfirst.data.redaction import redact_logs
from smallfirst.serving.http_limits import ConnectionLimits, limited_protocol
from smallfirst.serving.request_lifecycle import ERROR_SEND_TIMEOUT_S

_POLL_S = 0.02
"""Seconds between two checks of the drain."""


class AsyncCloseable(Protocol):
    """Something to close when the server has stopped."""

    async def aclose(self) -> None: ...


def run(
    app: ASGIApp,
    listener: socket.socket,
    *,
    drain_s: float,
    stopping: Callable[[], None],
    held: Sequence[AsyncCloseable],
) -> None:
    """Serve until the process is told to stop, drain, and close `held`; call `stopping` at the first signal.

    Logs are redacted.
    """
    redact_logs()
    server = Server(app, stopping)
    # What was imported and loaded stays: a full collection that visits it would hold the loop for a tenth of a second.
    gc.collect()
    gc.freeze()
    asyncio.run(server.serve_and_close(listener, drain_s=drain_s, held=held))


class Server(uvicorn.Server):
    """uvicorn stops accepting at the first signal and raises it again at the end; here the drain comes first."""

    def __init__(self, app: ASGIApp, stopping: Callable[[], None]) -> None:
        super().__init__(server_config(app, ConnectionLimits(), timeout_graceful_shutdown=1))  # the drain is over
        self._stopping, self._n_signals = stopping, 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._n_signals += 1
        self._stopping()
        if self._n_signals > 1:
            self.should_exit = self.force_exit = True

    async def serve_and_close(self, listener: socket.socket, *, drain_s: float, held: Sequence[AsyncCloseable]) -> None:
        """Serve until `handle_exit` is called, drain, and close `held`."""
        draining = asyncio.create_task(self._drain(drain_s))
        try:
            await self.serve(sockets=[listener])
            if cut_off := self.server_state.tasks:
                # Cancelled at the end of the drain; they still answer their clients and write their rows.
                await asyncio.wait(cut_off, timeout=ERROR_SEND_TIMEOUT_S)
        finally:
            draining.cancel()
            # A Model may be served under two names; closing it twice is allowed. Plugins end before the models.
            for one in reversed(held):
                await asyncio.gather(one.aclose(), return_exceptions=True)

    async def _drain(self, drain_s: float) -> None:
        while not self._n_signals:
            await asyncio.sleep(_POLL_S)
        end = time.monotonic() + drain_s
        while self.server_state.tasks and time.monotonic() < end:
            await asyncio.sleep(_POLL_S)
        self.should_exit = True


def server_config(app: Any, limits: ConnectionLimits, **more: Any) -> uvicorn.Config:
    """Return how uvicorn serves an ASGI application: within limits, without its logs and name; `more` as it takes."""
    return uvicorn.Config(
        app,
        http=limited_protocol(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,  # longer than clients keep idle connections (aiohttp: 15 s, load balancers: 60 s)
        **more,
    )


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket: clients can connect before the server answers. Raise ConfigError."""
    # With the protocol named, asyncio switches Nagle's algorithm off.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="stop the other server, or choose another port (0 takes a free one)",
        ) from None
    return listener
