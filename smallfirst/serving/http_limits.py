"""The web server's connections with an end to every wait, and without what makes two parsers disagree.

uvicorn waits for ever for the rest of a head, for the rest of a body that nobody reads, and for a client that takes
nothing in; h11 accepts a length beside chunks, folded lines, and a head of any size that comes in one piece. Here:

    head           within 10 s of its first byte (of the connection for the first one), at most 16 KiB and 100 lines
    body           within 20 s and a second more for every 500 bytes that have come; while the server is slower than
                   the client, the clock stands still; of a request that is answered already, within 10 s
    answer         a client that takes in less than 500 bytes a second, of what waits for it, is cut off after 30 s
    connections    1,000 at once; one more is told 503 and closed
    refused        Content-Length beside Transfer-Encoding, a Content-Length that says two things, folded lines,
                   versions other than 1.0 and 1.1

Refusals are in OpenAI's form and close the connection. The price: one timer for a connection that waits for its client,
two copies of a head's bytes, and uvicorn's own H11 classes underneath, whose insides are not promised to stay.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import re
import socket
import struct
import sys
import termios
import time
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from smallfirst.records import Record
from smallfirst.serving.openai.errors import ApiError

_HEAD_END = re.compile(rb"\n\r?\n")
_FOLDED = re.compile(rb"\n[ \t]")
_LENGTH = re.compile(rb"\ncontent-length[ \t]*:([^\r\n]*)", re.IGNORECASE)
_CODING = re.compile(rb"\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large", 503: b"Unavailable"}

Phase = Literal["head", "body", "rest", "ours"]
"""What is waited for: a head, a body, the rest of a body that was answered already, or nothing of the client's."""


class ConnectionLimits(Record):
    """How long a connection may wait for its client, and how many there may be."""

    head_s: float = 10.0
    """Longest time from the first byte of a head to its last."""
    body_s: float = 20.0
    """Longest time for a body, beside what its bytes earn."""
    bytes_per_s: int = 500
    """Bytes that earn another second, of a body that comes and of an answer that is taken in."""
    unread_s: float = 30.0
    """Longest time that a client may take nothing in while there is something to send."""
    max_head_bytes: int = 16 * 1024
    """Largest head."""
    max_head_lines: int = 100
    """Most lines of a head."""
    max_connections: int = 1_000
    """Connections at once; leave room below the process's limit of open files."""


class _Bad(NamedTuple):
    """Why a head is refused."""

    status: int
    rule: str


class _StrictConnection(h11.Connection):
    """h11's parser, which refuses what other parsers may read in another way."""

    def __init__(self, limits: ConnectionLimits) -> None:
        super().__init__(h11.SERVER, limits.max_head_bytes)
        self._limits = limits
        self.bad: _Bad | None = None
        """Why the head was refused, if it was refused here."""

    def next_event(self) -> Any:
        """As h11's. Raises RemoteProtocolError."""
        if self.their_state is h11.IDLE:
            self.bad = self._wrong(self.trailing_data[0].lstrip(b"\r\n"))
        if self.bad is not None:
            raise h11.RemoteProtocolError(self.bad.rule, error_status_hint=self.bad.status)
        return super().next_event()

    def _wrong(self, waiting: bytes) -> _Bad | None:
        if not waiting:
            return None
        end = _HEAD_END.search(waiting)
        head = waiting[: end.start()] if end else waiting
        if len(head) > self._limits.max_head_bytes:
            return _Bad(431, f"the head is larger than {self._limits.max_head_bytes} bytes")
        if head.count(b"\n") > self._limits.max_head_lines:
            return _Bad(431, f"the head has more than {self._limits.max_head_lines} lines")
        if _FOLDED.search(head):
            return _Bad(400, "a header goes over several lines")
        if end and not head.partition(b"\n")[0].rstrip(b"\r").endswith((b" HTTP/1.1", b" HTTP/1.0")):
            return _Bad(400, "it is no HTTP/1.1")
        return _wrong_length(head) if end else None


def _wrong_length(head: bytes) -> _Bad | None:
    """What is wrong with how a whole head says where its body ends (h11 would make one of equal lengths)."""
    lengths = _LENGTH.findall(head)
    if len(lengths) > 1 or any(b"," in length for length in lengths):
        return _Bad(400, "content-length is there more than once")
    if lengths and _CODING.search(head):
        return _Bad(400, "content-length and transfer-encoding are both there")
    return None


class LimitedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 connection with deadlines; `limited_protocol` gives it limits."""

    limits = ConnectionLimits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As uvicorn makes it."""
        super().__init__(*args, **kwargs)
        self.conn: _StrictConnection = _StrictConnection(self.limits)
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._since_s, self._n_bytes, self._phase = time.monotonic(), 0, "ours"

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The clock for the first head starts, or the connection is one too many."""
        super().connection_made(transport)
        # Nothing stays in our memory unseen: `pause_writing` says at once that the client takes nothing in.
        transport.set_write_buffer_limits(high=0)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(503, "The server has too many connections; try again shortly.", "overloaded")
            return
        self._watch(0)

    def data_received(self, data: bytes) -> None:
        """The bytes are parsed, and the clock asks what is still missing."""
        super().data_received(data)
        self._watch(len(data))

    def on_response_complete(self) -> None:
        """A client that still sends the body of an answered request is on the clock as before."""
        super().on_response_complete()
        self._watch(0)

    def connection_lost(self, exc: Exception | None) -> None:
        """Clocks are stopped."""
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()
        self._timer = self._unread = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client takes nothing in: it has `unread_s`."""
        super().pause_writing()
        self._watch_unread(self._n_waiting())

    def resume_writing(self) -> None:
        """It took something in."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:
        """What cannot be parsed is refused in OpenAI's form."""
        bad = self.conn.bad or _Bad(400, "it is no HTTP/1.1")
        self._refuse(bad.status, f"The request cannot be read: {bad.rule}.", "invalid_http")

    def _now(self) -> Phase:
        """Whom the connection waits for."""
        if self.conn.their_state is h11.SEND_BODY:
            return "rest" if self.cycle.response_complete else "body"
        fresh = self.cycle is None or bool(self.conn.trailing_data[0])
        return "head" if self.conn.their_state is h11.IDLE and fresh else "ours"

    def _watch(self, n_bytes: int) -> None:
        """Sets the clock if the client's turn has begun, and stops it if it is over."""
        phase = self._now()
        if phase != self._phase:
            self._phase, self._since_s, self._n_bytes = phase, time.monotonic(), 0
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        if phase == "ours":
            return
        self._n_bytes += n_bytes
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self._left_s(), self._ring)

    def _left_s(self) -> float:
        given_s = self.limits.head_s
        if self._phase == "body":
            given_s = self.limits.body_s + self._n_bytes / self.limits.bytes_per_s
        return self._since_s + given_s - time.monotonic()

    def _ring(self) -> None:
        """The time is up, unless more was earned, or we are the ones who do not read."""
        self._timer = None
        if self.flow.read_paused:
            self._since_s = time.monotonic()
        if (left_s := self._left_s()) > 0:
            self._timer = self.loop.call_later(left_s, self._ring)
        elif not self.transport.is_closing():
            self._refuse(408, "The rest of the request did not come in time.", "request_timeout")

    def _watch_unread(self, n_bytes: int) -> None:
        """Sets the clock for a client that has `n_bytes` to take in."""
        self._unread = self.loop.call_later(self.limits.unread_s, self._ring_unread, n_bytes)

    def _ring_unread(self, n_bytes: int) -> None:
        """The time is up, unless the client is slow and not still."""
        left = self._n_waiting()
        if n_bytes - left >= self.limits.unread_s * self.limits.bytes_per_s:
            self._watch_unread(left)
        else:
            self._cut_off()

    def _n_waiting(self) -> int:
        """Bytes that the client has not taken in: ours, and those of the kernel, which asks for more in large lumps."""
        held = bytearray(4)
        with suppress(OSError):
            fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, held)
        return self.transport.get_write_buffer_size() + int.from_bytes(held, sys.byteorder)

    def _cut_off(self) -> None:
        """Drops the connection with all that waits for its client, in the kernel as well."""
        line = self.transport.get_extra_info("socket")
        if line is not None:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Says why, if no answer has begun, and closes; the application is told that the client has left."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(ApiError(status, message, code=code).body).encode()
            fields = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d" % len(body)
            self.transport.write(b"HTTP/1.1 %d %s\r\n%s\r\n\r\n%s" % (status, _REASONS[status], fields, body))
        self.transport.close()


def limited_protocol(limits: ConnectionLimits) -> type[LimitedProtocol]:
    """The class to give to `uvicorn.Config(http=…)`."""
    return type("BoundedProtocol", (LimitedProtocol,), {"limits": limits})
