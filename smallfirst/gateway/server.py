"""The process around the proxy: listen, serve, and stop without breaking an answer off."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import socket

import uvicorn

from smallfirst.data.redaction import redact_logs
from smallfirst.gateway.app import Gateway
from smallfirst.gateway.http import BrokenOff
from smallfirst.serving.http_limits import ConnectionLimits, limited_protocol

DRAIN_S = 30
"""Seconds that running answers have when the proxy is told to stop."""
LIMITS = ConnectionLimits(max_head_bytes=256 * 1024, max_connections=100_000, body_s=math.inf)
"""Bodies are passed on while they arrive, at whatever pace."""


def run(gateway: Gateway, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, let running answers end, and close the gateway; logs are redacted."""
    redact_logs()
    logging.getLogger("uvicorn.error").addFilter(_is_no_broken_answer)
    config = server_config(gateway)
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(uvicorn.Server(config), listener, gateway))


def server_config(gateway: Gateway) -> uvicorn.Config:
    """Return how uvicorn serves the gateway: nothing is added to an answer."""
    return uvicorn.Config(
        gateway,
        http=limited_protocol(LIMITS),
        loop="auto",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=DRAIN_S,
    )


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
