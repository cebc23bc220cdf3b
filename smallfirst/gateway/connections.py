"""Connections of the proxy: httptools' parser with a bound on the size and the time of a request's head.

uvicorn bounds neither with this parser. Bodies are not bounded: they are passed on while they arrive.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from smallfirst.gateway.http import error_response

MAX_HEAD_BYTES = 256 * 1024
"""Of method, address and headers together; about as many more may arrive in one piece."""
HEAD_S = 10.0
"""Seconds from the first byte of a head, or from the connection, to its end."""
_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class BoundedProtocol(HttpToolsProtocol):
    """One connection; for `uvicorn.Config(http=…)`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head, self._head_bytes = True, 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, f"The head is larger than {MAX_HEAD_BYTES:,} bytes.", "head_too_large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._timer is None:
            self._start_clock()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_clock()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "The request is not valid HTTP.", "invalid_http")

    def _start_clock(self) -> None:
        self._timer = self.loop.call_later(HEAD_S, self._refuse, 408, "The head did not come in time.", "head_timeout")

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Say why and close; an answer that is under way is cut off."""
        if self.cycle is None or self.cycle.response_complete:
            response = error_response(status, message, code)
            assert isinstance(response.body, bytes)
            fields = [*response.headers, (b"connection", b"close"), (b"content-length", b"%d" % len(response.body))]
            lines = b"".join(name + b": " + value + b"\r\n" for name, value in fields)
            self.transport.write(b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (status, _REASONS[status], lines, response.body))
        self.transport.close()
